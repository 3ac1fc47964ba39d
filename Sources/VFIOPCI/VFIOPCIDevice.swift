import BatonRuntime

/// A PCI function that is elsewhere: in the host's hardware, or in another
/// process.
///
/// The VMM serves BAR registers, MSI, MSI-X and the interrupt line; the rest
/// of the configuration space and all of the BARs are the device's own.
public final class VFIOPCIDevice: PCIFunction {
    /// The host's name of the device.
    public let hostName: String
    /// The beginning of messages about it.
    public let label: String
    public let transport: any VFIOTransport
    public let shape: VFIOShape
    let memory: VFIODeviceMemory
    private let layout: VFIOLayout
    private let placement: VFIOPlacement
    private var rom: VFIOROM?
    public private(set) var interrupts: VFIOInterrupts!
    public private(set) var notices: VFIONotices!
    /// Whether the device may be touched: not before the commit in a process
    /// that takes it over.
    private var isOurs: Bool
    /// A reset of another device has reset this one with it, ahead of its turn.
    private var wasReset = false

    /// - Parameters:
    ///   - label: the beginning of messages about it.
    ///   - inherited: what the process before handed over; nil in a fresh start.
    ///   - notices: what the host is to tell of the device.
    ///   - placement: the devices that share the address space with it, to which it is added when it is plugged.
    ///   - romSource: where the expansion ROM comes from.
    /// - Throws: an error for a device that the guest cannot be given.
    public init(
        vm: VirtualMachine, model: String, id: String?, hostName: String, label: String, transport: any VFIOTransport,
        shape: VFIOShape, inherited: VFIOInheritedInterrupts?, notices wanted: [VFIONotices.Kind],
        placement: VFIOPlacement, romSource: VFIOROMSource = .device
    ) throws(VMMError) {
        self.hostName = hostName
        self.label = label
        self.transport = transport
        self.shape = shape
        self.placement = placement
        memory = VFIODeviceMemory(filesMayShrink: transport.filesMayShrink)
        isOurs = inherited == nil
        layout = try VFIOLayout(shape)
        super.init(vm: vm, model: model, id: id, identity: layout.identity, configSize: layout.passed.count)
        interrupts =
            inherited.map { VFIOInterrupts(self, inherited: $0.kind, events: $0.events) } ?? VFIOInterrupts(self)
        notices = VFIONotices(self, wanted: wanted, inherited: inherited?.notices ?? [:])
        addBars(mapping: vm.cpr?.isTrial != true)
        addROM(romSource)
        addCapabilities()
        msi?.onChange = { [unowned self] in interruptsChanged() }
        msix?.onControlChange = { [unowned self] in interruptsChanged() }
        vm.addressSpace.expectForeignWriters()
        if isOurs { notices.update() }
    }

    private func addBars(mapping: Bool) {
        for found in layout.bars {
            let bar = PCIBar(
                index: found.index, space: found.space, size: found.size, isPrefetchable: found.isPrefetchable)
            let region = shape.regions[found.index]
            bar.add(registers: VFIORegionAccess(self, region), size: region.size)
            add(bar)
            guard mapping, found.space != .io, let file = transport.file(of: region) else { continue }
            for area in directAreas(of: region, bar: found.index)
            where !memory.map(file.fd, from: file.offset, region, bar: bar, offset: area.start, size: area.size) {
                let what = "\(label): Failed to mmap BAR \(found.index), performance may be slow"
                Report.warning(VMMError.system(what).message)
            }
        }
    }

    private func addROM(_ source: VFIOROMSource) {
        guard let rom = VFIOROM(self, source) else { return }
        let bar = PCIBar(index: PCIBar.rom, space: .memory32, size: rom.size)
        bar.add(registers: rom, size: rom.size)
        add(bar)
        self.rom = rom
    }

    /// The parts that can be mapped and have nothing of MSI-X.
    private func directAreas(of region: VFIORegion, bar: Int) -> [(start: UInt64, size: UInt64)] {
        var areas = region.areas
        guard let msix = layout.msix else { return areas }
        let hidden = [
            (msix.table, UInt64(msix.vectors * 16)), (msix.pending, UInt64((msix.vectors + 63) / 64 * 8)),
        ]
        for (place, size) in hidden where place.bar == bar {
            let from = place.offset & ~4095
            let to = (place.offset + size + 4095) & ~4095
            areas = areas.flatMap { area in
                let end = area.start + area.size
                return [(area.start, min(end, from)), (max(area.start, to), end)]
                    .filter { $0.0 < $0.1 }.map { (start: $0.0, size: $0.1 - $0.0) }
            }
        }
        return areas
    }

    private func addCapabilities() {
        for capability in layout.capabilities {
            switch capability.id {
            case PCICapabilityID.msi:
                if let msi = layout.msi { addMSI(vectors: msi.vectors, at: msi.offset) }
            case PCICapabilityID.msix:
                guard let msix = layout.msix, let table = bar(msix.table.bar), let pending = bar(msix.pending.bar)
                else { break }
                addMSIX(
                    vectors: msix.vectors, table: (table, msix.table.offset), pending: (pending, msix.pending.offset),
                    at: capability.offset)
            default:
                // Its bytes are the device's.
                config.addCapability(capability.id, size: 2, at: capability.offset)
            }
        }
        for (offset, bytes) in layout.own {
            for (index, byte) in bytes.enumerated() { config.set(offset + index, byte) }
        }
    }

    // MARK: Configuration space

    private func isPassed(_ offset: Int) -> Bool { layout.passed.indices.contains(offset) && layout.passed[offset] }

    public override func readConfig(_ offset: Int, width: Int) -> UInt32 {
        let own = super.readConfig(offset, width: width)
        guard (offset..<offset + width).contains(where: isPassed) else { return own }
        var raw: UInt32 = 0
        let result = withUnsafeMutableBytes(of: &raw) {
            transport.read(
                shape.configRegion, at: UInt64(offset), into: UnsafeMutableRawBufferPointer(rebasing: $0[..<width]))
        }
        let device = result == 0 ? UInt32(littleEndian: raw) : UInt32.max
        var value: UInt32 = 0
        for index in 0..<width {
            value |= (isPassed(offset + index) ? device : own) & 0xff << UInt32(8 * index)
        }
        return value
    }

    public override func writeConfig(_ offset: Int, width: Int, value: UInt32) {
        super.writeConfig(offset, width: width, value: value)
        // The device has the command register too: it decodes addresses, and
        // masters the bus, when the guest says so.
        func isDevices(_ offset: Int) -> Bool { isPassed(offset) || (offset & ~1) == PCIRegister.command }
        if (offset..<offset + width).allSatisfy(isDevices) {
            writeDeviceConfig(offset, width: width, value)
        } else {
            for index in 0..<width where isDevices(offset + index) {
                writeDeviceConfig(offset + index, width: 1, value >> UInt32(8 * index))
            }
        }
    }

    private func writeDeviceConfig(_ offset: Int, width: Int, _ value: UInt32) {
        let result = withUnsafeBytes(of: value.littleEndian) {
            transport.write(
                shape.configRegion, at: UInt64(offset), from: UnsafeRawBufferPointer(rebasing: $0[..<width]))
        }
        if result != 0 {
            Log.guestError("\(stateName): write of \(width) bytes at \(Hex(offset)) of the configuration space failed")
        }
    }

    // MARK: BARs

    public override func barMoved(_ bar: PCIBar) { placement.place(in: vm.addressSpace) }

    /// Whether the guest's accesses go to the device without the VMM.
    func setDirectAccess(_ on: Bool) {
        guard memory.isDirect != on else { return }
        memory.isDirect = on
        placement.place(in: vm.addressSpace)
    }

    // MARK: Interrupts and life

    private func interruptsChanged() { if isOurs { interrupts.update() } }

    /// The guest is this process' now.
    public func settle() {
        isOurs = true
        interrupts.update()
        notices.update()
    }

    public override func resetFunction() {
        guard isOurs else { return }
        prepareForReset()
        if !wasReset { resetDevice() }
        wasReset = false
        interrupts.update()
    }

    /// Before a reset of the device, which may be another's (`finishReset`).
    public func prepareForReset() {
        interrupts.disable()
        setDirectAccess(true)
        writeDeviceConfig(PCIRegister.command, width: 2, 0)
    }

    /// A reset of another device has reset this one too.
    /// - Parameter isFirst: its own reset is still to come, and need not
    ///   reset it again.
    public func finishReset(isFirst: Bool) {
        wasReset = isFirst
        interrupts.update()
    }

    /// Resets the function alone if it can be, or else its bus; what a change
    /// of the power state resets is uncertain, so that comes last.
    private func resetDevice() {
        var result: Int32 = 0
        func reset() -> Bool {
            result = transport.reset()
            return result == 0
        }
        if shape.resets && (layout.hasFLR || !layout.hasPowerReset) && reset() { return }
        if transport.resetBus() == 0 { return }
        if shape.resets && layout.hasPowerReset && reset() { return }
        guard result != 0 else { return }
        Report.warning(VMMError.system("\(label): failed to reset the device", errno: result).message)
    }

    public override func pause() {
        interrupts.pause()
        notices.pause()
    }
    public override func resume() {
        interrupts.resume()
        notices.resume()
    }

    public override func saveFunction(to writer: inout StateWriter) {
        writer.put("host", hostName)
        writer.put("intx-pending", interrupts.isPending)
        writer.put("rom-size", rom?.size ?? 0)
    }

    public override func loadFunction(from reader: StateReader) throws(VMMError) -> () -> Void {
        let host = try reader.string("host")
        guard host == hostName else {
            throw VMMError(
                "section '\(reader.section)' is of the host's device \(host), this is \(hostName)",
                hint: "Give the new VMM the devices of the old one.")
        }
        let romSize = reader.has("rom-size") ? try reader.unsigned("rom-size") : 0
        guard romSize == rom?.size ?? 0 else {
            throw VMMError(
                "section '\(reader.section)' has an expansion ROM of \(romSize) bytes, this device one of "
                    + "\(rom?.size ?? 0)", hint: "Give the new VMM the rombar= and romfile= of the old one.")
        }
        let isPending = try reader.bool("intx-pending")
        return { [unowned self] in interrupts.restore(isPending: isPending) }
    }
}
