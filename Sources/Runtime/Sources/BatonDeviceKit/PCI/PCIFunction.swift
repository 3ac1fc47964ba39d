import BatonBase
import BatonMachine

/// A PCI function: configuration space, BARs, INTx, MSI and MSI-X. Subclasses
/// are the devices; modules may subclass it.
///
/// Make it with what it has, then plug it into a bus (`PCIBus.plug`), which
/// also adds it to the VM. With the VM lock held.
open class PCIFunction: Device {
    public let vm: VirtualMachine
    /// The device's type, which is part of the state's name, as in `-device`.
    public let model: String
    /// `id=` of `-device`.
    public let id: String?
    public var config: PCIConfigSpace
    /// In order of their numbers.
    public private(set) var bars: [PCIBar] = []
    /// Present after `addMSI` and `addMSIX`.
    public private(set) var msi: PCIMSI?
    public private(set) var msix: PCIMSIX?
    /// Set when it is plugged.
    public internal(set) weak var bus: PCIBus?
    public internal(set) var slot: PCISlot?
    /// The level that the device drives on its INTx pin, before the command
    /// register's disable bit.
    public private(set) var interruptLevel = false

    /// - Parameters:
    ///   - isBridge: whether the header is of type 1, which has other registers behind the second BAR.
    ///   - configSize: 256, or 4096 for a PCI Express function.
    public init(
        vm: VirtualMachine, model: String, id: String?, identity: PCIIdentity, isBridge: Bool = false,
        configSize: Int = 256
    ) {
        self.vm = vm
        self.model = model
        self.id = id
        stateName = model
        config = PCIConfigSpace(size: configSize)
        config.set(PCIRegister.vendorID, identity.vendor)
        config.set(PCIRegister.deviceID, identity.device)
        config.set(PCIRegister.revisionID, identity.revision)
        config.set(PCIRegister.classCode, identity.programmingInterface)
        config.set(PCIRegister.classCode + 1, identity.classCode)
        if !isBridge {
            config.set(PCIRegister.subsystemVendorID, identity.subsystemVendor)
            config.set(PCIRegister.subsystemID, identity.subsystem)
        }
        config.set(PCIRegister.interruptPin, min(identity.interruptPin, 4))
        config.setWritable(
            PCIRegister.command, PCICommand.busMaster | PCICommand.serrEnable | PCICommand.interruptDisable)
        config.setClearable(PCIRegister.status, PCIStatus.clearable)
        config.setOwned(PCIRegister.status, PCIStatus.interrupt | PCIStatus.clearable)
        config.setWritable(PCIRegister.cacheLineSize, 0xff as UInt8)
        config.setWritable(PCIRegister.interruptLine, 0xff as UInt8)
    }

    // MARK: Set-up

    /// Adds a BAR, before the function is plugged.
    public func add(_ bar: PCIBar) {
        precondition(slot == nil && !bars.contains { taken($0, bar.index) || taken(bar, $0.index) })
        bars.append(bar)
        bars.sort { $0.index < $1.index }
        let command: UInt16 = bar.space == .io ? PCICommand.ioSpace : PCICommand.memorySpace
        config.addWritable(PCIRegister.command, command)
        config.set(bar.register, bar.flags)
        config.setWritable(bar.register, UInt32(truncatingIfNeeded: ~(bar.size - 1)) | (bar.isROM ? 1 : 0))
        if bar.space == .memory64 {
            config.setWritable(bar.register + 4, UInt32(truncatingIfNeeded: ~(bar.size - 1) >> 32))
        }
    }

    private func taken(_ bar: PCIBar, _ index: Int) -> Bool {
        bar.index == index || (bar.space == .memory64 && bar.index + 1 == index)
    }

    /// Gives the function the MSI capability.
    /// - Parameters:
    ///   - vectors: 1, 2, 4, 8, 16 or 32.
    ///   - offset: where the capability is to be; by default behind the last.
    @discardableResult
    public func addMSI(vectors: Int, at offset: Int? = nil) -> PCIMSI {
        precondition(msi == nil && slot == nil)
        let msi = PCIMSI(function: self, vectors: vectors, at: offset)
        self.msi = msi
        return msi
    }

    /// Gives the function the MSI-X capability, and puts table and pending
    /// bits into BARs that it has.
    /// - Parameters:
    ///   - vectors: 1 to 2048.
    ///   - offset: where the capability is to be; by default behind the last.
    @discardableResult
    public func addMSIX(
        vectors: Int, table: (bar: PCIBar, offset: UInt64), pending: (bar: PCIBar, offset: UInt64),
        at offset: Int? = nil
    ) -> PCIMSIX {
        precondition(msix == nil && slot == nil)
        let msix = PCIMSIX(function: self, vectors: vectors, table: table, pending: pending, at: offset)
        self.msix = msix
        return msix
    }

    // MARK: For subclasses

    /// The guest reads 1, 2 or 4 bytes, aligned and within `config.size`.
    open func readConfig(_ offset: Int, width: Int) -> UInt32 {
        if msi?.hasPending(offset, width) == true { collectEvents() }
        return config.read(offset, width: width)
    }

    /// The guest writes 1, 2 or 4 bytes, aligned and within `config.size`. An
    /// override calls this for what the header, MSI and MSI-X are to do.
    open func writeConfig(_ offset: Int, width: Int, value: UInt32) {
        let before: UInt16 = config.value(PCIRegister.command)
        config.write(offset, width: width, value)
        let end = offset + width
        if offset < PCIRegister.status && end > PCIRegister.command {
            let after: UInt16 = config.value(PCIRegister.command)
            if before != after { commandChanged(before ^ after) }
        } else if offset < PCIRegister.firstBar + 24 && end > PCIRegister.firstBar
            || offset < PCIRegister.expansionROM + 4 && end > PCIRegister.expansionROM
        {
            bus?.host?.mappingsChanged(self)
        }
        msi?.didWriteConfig(offset, end)
        msix?.didWriteConfig(offset, end)
    }

    private func commandChanged(_ changed: UInt16) {
        if changed & (PCICommand.ioSpace | PCICommand.memorySpace) != 0 { bus?.host?.mappingsChanged(self) }
        if changed & PCICommand.interruptDisable != 0 { driveInterrupt() }
        if changed & PCICommand.busMaster != 0 {
            messagesChanged()
            busMasterChanged()
        }
    }

    /// The guest has allowed the device to use the bus (`isBusMaster`), or not.
    open func busMasterChanged() {}

    /// A BAR has lost its address (`bar.address` is nil), and may have another soon: before any BAR of the bus gets one.
    open func barUnmapped(_ bar: PCIBar) {}

    /// A BAR has a new address, or none any more (`bar.address`).
    open func barMoved(_ bar: PCIBar) {}

    /// Back to power-on state; what is in the configuration space, MSI and
    /// MSI-X is done already.
    open func resetFunction() {}
    open func saveFunction(to writer: inout StateWriter) {}
    /// Reads and checks what `saveFunction` wrote.
    /// - Returns: what applies it, after everything else was checked.
    open func loadFunction(from reader: StateReader) throws(VMMError) -> () -> Void { {} }
    /// Lets go of the function's `InterruptEvent`s, whose events wait from here on. An override calls this.
    open func prepareToPause() { for event in events { event.pause() } }
    open func pause() {}
    open func resume() {}

    // MARK: For devices

    /// Whether the guest lets the device access memory. A device that is not
    /// bus master neither reads nor writes guest memory, nor sends messages.
    public var isBusMaster: Bool {
        config.value(PCIRegister.command, as: UInt16.self) & PCICommand.busMaster != 0
    }

    public func bar(_ index: Int) -> PCIBar? { bars.first { $0.index == index } }

    /// Drives the INTx pin. Without effect where the function has none.
    public func setInterrupt(_ level: Bool) {
        guard level != interruptLevel, pin > 0 else { return }
        interruptLevel = level
        let status: UInt16 = config.value(PCIRegister.status)
        config.update(PCIRegister.status, level ? status | PCIStatus.interrupt : status & ~PCIStatus.interrupt)
        driveInterrupt()
    }

    /// Takes over the level of a checkpoint, whose status register has it.
    func restoreInterrupt(_ level: Bool) { interruptLevel = level }

    /// 1 to 4 for INTA to INTD, 0 for none.
    public var pin: Int { Int(config.value(PCIRegister.interruptPin, as: UInt8.self)) }

    /// The level on the wire.
    public var drivenLevel: Bool {
        interruptLevel && config.value(PCIRegister.command, as: UInt16.self) & PCICommand.interruptDisable == 0
    }

    private func driveInterrupt() { bus?.host?.interruptChanged(self) }

    /// Sends a message signalled interrupt, as the function's MSI and MSI-X do.
    /// - Returns: false when the function may not, or nothing takes it.
    @discardableResult
    public func sendMessage(address: UInt64, data: UInt32) -> Bool {
        guard isBusMaster else {
            Log.guestError("\(stateName): message without bus mastering")
            return false
        }
        return bus?.host?.send(address: address, data: data) ?? false
    }

    private var events: [InterruptEvent] = []
    /// Adds an eventfd whose events are this function's messages (`PCIMSIX.directMessage`).
    public func add(_ event: InterruptEvent) { events.append(event) }
    public func remove(_ event: InterruptEvent) { events.removeAll { $0 === event } }
    /// What the guest allows of messages may be something else.
    public func messagesChanged() { for event in events { event.update() } }
    /// Takes note of events of masked vectors that have come.
    func collectEvents() { for event in events { event.collect() } }

    /// The address that a BAR's registers say, where the command register lets
    /// it be decoded.
    func requestedAddress(_ bar: PCIBar) -> UInt64? {
        let enable = bar.space == .io ? PCICommand.ioSpace : PCICommand.memorySpace
        guard config.value(PCIRegister.command, as: UInt16.self) & enable != 0 else { return nil }
        let register = UInt64(config.value(bar.register, as: UInt32.self))
        // The ROM has a switch of its own (PCI 3.0, 6.2.5.2).
        guard !bar.isROM || register & 1 != 0 else { return nil }
        var address = register & ~(bar.space == .io ? 3 : 15)
        if bar.space == .memory64 { address |= UInt64(config.value(bar.register + 4, as: UInt32.self)) << 32 }
        return address & ~(bar.size - 1)
    }

    // MARK: Device

    /// `pcie.0/05.0/MODEL`; the model alone until it is plugged.
    public internal(set) var stateName: String
    open var stateVersion: UInt32 { 1 }

    public func reset() {
        resetBusState()
        resetFunction()
    }

    /// What a reset of the bus does to any function: INTx down, nothing mapped,
    /// messages off.
    public func resetBusState() {
        setInterrupt(false)
        config.reset()
        msi?.reset()
        msix?.reset()
        bus?.host?.mappingsChanged(self)
    }
}
