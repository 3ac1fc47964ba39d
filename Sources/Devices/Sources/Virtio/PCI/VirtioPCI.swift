import BatonRuntime

/// A virtio device on PCI, modern only (virtio 1.3, 4.1): QEMU's layout of
/// capabilities and BARs with `disable-legacy=on`.
public final class VirtioPCI: PCIFunction, VirtioTransport {
    public let device: VirtioDevice
    /// MSI-X vectors; 0 for none.
    public let vectors: Int

    var deviceFeaturesSelect: UInt32 = 0
    var driverFeaturesSelect: UInt32 = 0
    var queueSelect: UInt16 = 0
    /// What the driver has not read yet, while INTx is in use.
    var interruptStatus: UInt8 = 0
    var configVector = VirtioPCI.noVector
    /// One a queue.
    var queueVectors: [UInt16]
    private var accessCapability = 0

    static let noVector: UInt16 = 0xffff

    /// Parts of BAR 4, each a page.
    enum Part {
        static let common: UInt64 = 0
        static let status: UInt64 = 0x1000
        static let device: UInt64 = 0x2000
        static let notify: UInt64 = 0x3000
        static let size: UInt64 = 0x1000
        /// Bytes between the notification registers of two queues.
        static let notifyStride: UInt32 = 4
    }

    /// The types of the vendor capabilities.
    private enum Structure {
        static let common: UInt8 = 1
        static let notify: UInt8 = 2
        static let status: UInt8 = 3
        static let device: UInt8 = 4
        static let access: UInt8 = 5
    }

    /// - Parameter vectors: 0 to 2048; nil for one a queue and one for changes
    ///   of the configuration.
    public init(_ device: VirtioDevice, model: String, id: String?, vectors: Int? = nil) {
        self.device = device
        self.vectors = vectors ?? device.queues.count + 1
        queueVectors = Array(repeating: VirtioPCI.noVector, count: device.queues.count)
        super.init(
            vm: device.vm, model: model, id: id,
            identity: PCIIdentity(
                vendor: 0x1af4, device: 0x1040 + UInt16(truncatingIfNeeded: device.deviceID),
                classCode: VirtioPCI.classCode(device.deviceID), revision: 1, subsystemVendor: 0x1af4,
                subsystem: 0x1100))
        let registers = PCIBar(index: 4, space: .memory64, size: 4 * Part.size, isPrefetchable: true)
        registers.add(registers: CommonRegisters(self), at: Part.common, size: Part.size)
        registers.add(registers: StatusRegister(self), at: Part.status, size: Part.size)
        registers.add(registers: DeviceRegisters(self), at: Part.device, size: Part.size)
        registers.add(registers: NotifyRegisters(self), at: Part.notify, size: Part.size)
        if self.vectors > 0 {
            // The table, and the pending bits in the other half.
            let tableSize = UInt64(self.vectors * 16)
            let half = max(2048, tableSize.nextPowerOfTwo)
            let bar = PCIBar(index: 1, space: .memory32, size: 2 * half)
            add(bar)
            addMSIX(vectors: self.vectors, table: (bar, 0), pending: (bar, half))
            msix?.onControlChange = { [unowned self] in driveInterrupt() }
        }
        add(registers)
        addStructure(Structure.common, at: Part.common)
        addStructure(Structure.status, at: Part.status)
        addStructure(Structure.device, at: Part.device)
        let notify = addStructure(Structure.notify, at: Part.notify, size: 20)
        config.set(notify + 16, Part.notifyStride)
        accessCapability = addStructure(Structure.access, at: 0, length: 0, size: 20)
        config.setWritable(accessCapability + 4, 0xff as UInt8)
        config.setWritable(accessCapability + 8, UInt32.max)
        config.setWritable(accessCapability + 12, UInt32.max)
        config.setWritable(accessCapability + 16, UInt32.max)
        device.transport = self
        device.setBusMaster(false)
    }

    /// The class that QEMU gives a device type.
    private static func classCode(_ deviceID: UInt32) -> UInt16 {
        switch deviceID {
        case 1: 0x0200
        case 2, 8: 0x0100
        case 3, 19: 0x0780
        case 26: 0x0180
        default: 0x00ff
        }
    }

    @discardableResult
    private func addStructure(_ type: UInt8, at offset: UInt64, length: UInt64 = Part.size, size: Int = 16) -> Int {
        let at = config.addCapability(PCICapabilityID.vendor, size: size)
        config.set(at + 2, UInt8(size))
        config.set(at + 3, type)
        config.set(at + 4, type == Structure.access ? 0 : 4 as UInt8)
        config.set(at + 8, UInt32(truncatingIfNeeded: offset))
        config.set(at + 12, UInt32(truncatingIfNeeded: length))
        return at
    }

    // MARK: Interrupts

    public func interrupt(queue: Int) {
        guard queueVectors.indices.contains(queue) else { return }
        raise(1, queueVectors[queue])
    }

    public func configInterrupt() { raise(2, configVector) }

    private func raise(_ cause: UInt8, _ vector: UInt16) {
        if let msix, msix.isEnabled {
            if vector != VirtioPCI.noVector { msix.notify(Int(vector)) }
        } else {
            interruptStatus |= cause
            driveInterrupt()
        }
    }

    public func notification(queue: Int) -> VirtioNotification? {
        // Any write counts (virtio 1.3, 4.1.4.4).
        bar(4)?.address.map {
            VirtioNotification(
                address: $0 + Part.notify + UInt64(Part.notifyStride) * UInt64(queue), width: 0, value: nil)
        }
    }

    public override func barUnmapped(_ bar: PCIBar) { if bar.index == 4 { device.notificationsMoved() } }
    public override func barMoved(_ bar: PCIBar) { if bar.index == 4 { device.notificationsMoved() } }

    public func interruptEvent(
        queue: Int, event: Int32, mayBeDirect: @escaping () -> Bool, onEvent: @escaping () -> Void
    ) -> InterruptEvent? {
        let made = InterruptEvent(
            vm: vm, event: event,
            message: { [unowned self] in
                mayBeDirect() ? msix?.directMessage(Int(queueVectors[queue])) : nil
            }, onEvent: onEvent)
        add(made)
        return made
    }

    func driveInterrupt() { setInterrupt(interruptStatus != 0 && msix?.isEnabled != true) }

    // MARK: Access through the configuration space (virtio 1.3, 4.1.4.9)

    /// What the access capability's fields select, when it is allowed.
    private func selectedAccess() -> (bar: PCIBar, offset: UInt64, width: Int)? {
        let length: UInt32 = config.value(accessCapability + 12)
        let offset: UInt32 = config.value(accessCapability + 8)
        guard [1, 2, 4].contains(length), offset % length == 0,
            let bar = bar(Int(config.value(accessCapability + 4, as: UInt8.self))),
            UInt64(offset) + UInt64(length) <= bar.size
        else {
            Log.guestError("\(stateName): access of \(length) bytes at \(Hex(UInt64(offset))) by configuration space")
            return nil
        }
        return (bar, UInt64(offset), Int(length))
    }

    private func touchesAccessData(_ offset: Int, _ width: Int) -> Bool {
        offset < accessCapability + 20 && offset + width > accessCapability + 16
    }

    public override func readConfig(_ offset: Int, width: Int) -> UInt32 {
        if touchesAccessData(offset, width), let (bar, at, length) = selectedAccess() {
            config.update(accessCapability + 16, UInt32(truncatingIfNeeded: bar.read(at, width: length)))
        }
        return super.readConfig(offset, width: width)
    }

    public override func writeConfig(_ offset: Int, width: Int, value: UInt32) {
        super.writeConfig(offset, width: width, value: value)
        if touchesAccessData(offset, width), let (bar, at, length) = selectedAccess() {
            let data: UInt32 = config.value(accessCapability + 16)
            bar.write(at, width: length, UInt64(length == 4 ? data : data & (1 << UInt32(8 * length) - 1)))
        }
    }

    // MARK: PCIFunction

    public override func busMasterChanged() { device.setBusMaster(isBusMaster) }

    public override func resetFunction() {
        resetRegisters()
        device.setBusMaster(false)
    }

    /// Also when the driver resets the device by its status.
    func resetRegisters() {
        deviceFeaturesSelect = 0
        driverFeaturesSelect = 0
        queueSelect = 0
        interruptStatus = 0
        configVector = VirtioPCI.noVector
        for index in queueVectors.indices { queueVectors[index] = VirtioPCI.noVector }
        messagesChanged()
        driveInterrupt()
    }

    public override func saveFunction(to writer: inout StateWriter) {
        writer.put("device-features-select", UInt64(deviceFeaturesSelect))
        writer.put("driver-features-select", UInt64(driverFeaturesSelect))
        writer.put("queue-select", UInt64(queueSelect))
        writer.put("interrupt-status", UInt64(interruptStatus))
        writer.put("config-vector", UInt64(configVector))
        writer.put("queue-vectors", queueVectors.map(UInt64.init))
    }

    public override func loadFunction(from reader: StateReader) throws(VMMError) -> () -> Void {
        let deviceSelect = try reader.uint32("device-features-select")
        let driverSelect = try reader.uint32("driver-features-select")
        let queue = UInt16(try reader.unsigned("queue-select", in: 0...0xffff))
        let status = UInt8(try reader.unsigned("interrupt-status", in: 0...3))
        let newConfigVector = try reader.unsigned("config-vector", in: 0...0xffff)
        let newQueueVectors = try reader.array("queue-vectors", count: queueVectors.count...queueVectors.count)
        for vector in newQueueVectors + [newConfigVector]
        where vector != UInt64(VirtioPCI.noVector) && vector >= UInt64(vectors) {
            throw VMMError("section '\(reader.section)' has the vector \(vector), of \(vectors)")
        }
        return { [self] in
            deviceFeaturesSelect = deviceSelect
            driverFeaturesSelect = driverSelect
            queueSelect = queue
            interruptStatus = status
            configVector = UInt16(truncatingIfNeeded: newConfigVector)
            queueVectors = newQueueVectors.map { UInt16(truncatingIfNeeded: $0) }
            device.restoreBusMaster(isBusMaster)
            // MSI-X, restored before, has looked at the cause of before.
            driveInterrupt()
        }
    }
}

extension UInt64 {
    /// The least power of two that is not below it.
    fileprivate var nextPowerOfTwo: UInt64 { self <= 1 ? 1 : 1 << UInt64(64 - (self - 1).leadingZeroBitCount) }
}
