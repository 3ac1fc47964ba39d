import BatonRuntime

/// One virtio-mmio slot, version 2 (virtio 1.3, 4.2), with or without a device.
public final class VirtioMMIO: VirtioTransport, MMIODevice, Device, DeviceBus {
    /// The slot's number: its bus is `virtio-mmio-bus.N`.
    public let slot: Int
    public let stateName: String
    /// Bytes that a slot answers: half of them are the device's configuration.
    public static let registersSize: UInt64 = 0x200
    public private(set) var device: VirtioDevice?
    public static let busType = "virtio-bus"
    public var busName: String { "virtio-mmio-bus.\(slot)" }
    public var isFull: Bool { device != nil }
    private let line: InterruptLine
    private let address: UInt64?

    private var deviceFeaturesSelect: UInt32 = 0
    private var driverFeaturesSelect: UInt32 = 0
    private var queueSelect: UInt32 = 0
    private var interruptStatus: UInt32 = 0

    /// - Parameters:
    ///   - line: the wire to the interrupt controller.
    ///   - address: where the board maps the slot, guest-physical; nil where notifications always come as calls.
    public init(slot: Int, line: InterruptLine, address: UInt64? = nil) {
        self.slot = slot
        self.address = address
        self.stateName = "virtio-mmio.\(slot)"
        self.line = line
    }

    /// Puts a device into the slot, before the machine runs.
    /// - Throws: QEMU's error when there is one.
    public func plug(_ device: VirtioDevice) throws(VMMError) {
        guard self.device == nil else { throw VMMError("Bus '\(busName)' is full") }
        device.stateName = "\(stateName)/\(device.model)"
        device.transport = self
        self.device = device
    }

    // MARK: Interrupts

    public func interrupt(queue: Int) { raise(1) }
    public func configInterrupt() { raise(2) }

    public func notification(queue: Int) -> VirtioNotification? {
        address.map { VirtioNotification(address: $0 + Register.queueNotify, width: 4, value: UInt64(queue)) }
    }

    private func raise(_ cause: UInt32) {
        interruptStatus |= cause
        line.set(true)
    }

    // MARK: Registers

    private enum Register {
        static let magic: UInt64 = 0x000
        static let version: UInt64 = 0x004
        static let deviceID: UInt64 = 0x008
        static let vendorID: UInt64 = 0x00c
        static let deviceFeatures: UInt64 = 0x010
        static let deviceFeaturesSelect: UInt64 = 0x014
        static let driverFeatures: UInt64 = 0x020
        static let driverFeaturesSelect: UInt64 = 0x024
        static let queueSelect: UInt64 = 0x030
        static let queueSizeMax: UInt64 = 0x034
        static let queueSize: UInt64 = 0x038
        static let queueReady: UInt64 = 0x044
        static let queueNotify: UInt64 = 0x050
        static let interruptStatus: UInt64 = 0x060
        static let interruptAcknowledge: UInt64 = 0x064
        static let status: UInt64 = 0x070
        static let queueDescriptors: UInt64 = 0x080
        static let queueDriver: UInt64 = 0x090
        static let queueDevice: UInt64 = 0x0a0
        static let sharedMemorySelect: UInt64 = 0x0ac
        static let sharedMemory: ClosedRange<UInt64> = 0x0b0...0x0bf
        static let configGeneration: UInt64 = 0x0fc
        static let config: UInt64 = 0x100
    }

    private var selectedQueue: VirtQueue? {
        guard let device, queueSelect < UInt32(device.queues.count) else { return nil }
        return device.queues[Int(queueSelect)]
    }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        if width == 8 { return mmioReadHalves(offset: offset) }
        // A slot without a device has these in any width, as QEMU's has.
        if device == nil || width == 4 {
            let mask = UInt64.max >> UInt64(64 - 8 * width)
            switch offset {
            case Register.magic: return 0x7472_6976 & mask
            case Register.version: return 2
            case Register.vendorID: return 0x554d_4551 & mask
            default: break
            }
        }
        guard let device else { return 0 }
        if offset >= Register.config {
            return device.readConfig(offset: Int(truncatingIfNeeded: offset - Register.config), width: width)
        }
        guard width == 4, offset % 4 == 0 else {
            Log.guestError("\(stateName): read of \(width) bytes at \(Hex(offset))")
            return 0
        }
        switch offset {
        case Register.deviceID: return UInt64(device.deviceID)
        case Register.deviceFeatures:
            switch deviceFeaturesSelect {
            case 0: return device.offeredFeatures & 0xffff_ffff
            case 1: return device.offeredFeatures >> 32
            default: return 0
            }
        case Register.queueSizeMax: return UInt64(selectedQueue?.maxSize ?? 0)
        case Register.queueReady: return selectedQueue?.ready == true ? 1 : 0
        case Register.interruptStatus: return UInt64(interruptStatus)
        case Register.status: return UInt64(device.status)
        case Register.sharedMemory: return 0xffff_ffff
        case Register.configGeneration: return UInt64(device.configGeneration)
        default:
            Log.guestError("\(stateName): read of the register at \(Hex(offset))")
            return 0
        }
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        if width == 8 { return mmioWriteHalves(offset: offset, value: value) }
        guard let device else { return }
        if offset >= Register.config {
            return device.writeConfig(
                offset: Int(truncatingIfNeeded: offset - Register.config), width: width, value: value)
        }
        guard width == 4, offset % 4 == 0 else {
            return Log.guestError("\(stateName): write of \(width) bytes at \(Hex(offset))")
        }
        let value = UInt32(truncatingIfNeeded: value)
        switch offset {
        case Register.queueNotify: device.notify(value)
        case Register.interruptAcknowledge:
            interruptStatus &= ~value
            if interruptStatus == 0 { line.set(false) } else { line.renew() }
        case Register.deviceFeaturesSelect: deviceFeaturesSelect = value
        case Register.driverFeatures: device.writeFeatures(value, select: driverFeaturesSelect)
        case Register.driverFeaturesSelect: driverFeaturesSelect = value
        case Register.queueSelect: queueSelect = value
        case Register.sharedMemorySelect: break
        case Register.status:
            device.writeStatus(UInt8(truncatingIfNeeded: value))
            if value & 0xff == 0 { resetRegisters() }
        case Register.queueReady:
            guard let queue = selectedQueue else { return badQueue() }
            device.setReady(queue, value & 1 != 0)
        default: writeQueueRegister(offset, value)
        }
    }

    private func writeQueueRegister(_ offset: UInt64, _ value: UInt32) {
        func half(_ address: UInt64, high: Bool) -> UInt64 {
            high ? address & 0xffff_ffff | UInt64(value) << 32 : address & ~0xffff_ffff | UInt64(value)
        }
        switch offset {
        case Register.queueSize, Register.queueDescriptors, Register.queueDescriptors + 4,
            Register.queueDriver, Register.queueDriver + 4, Register.queueDevice, Register.queueDevice + 4:
            break
        default:
            return Log.guestError("\(stateName): write of the register at \(Hex(offset))")
        }
        guard let queue = selectedQueue else { return badQueue() }
        guard !queue.ready else {
            return Log.guestError("\(stateName): queue \(queue.index) changed while it is in use")
        }
        switch offset {
        case Register.queueSize: queue.size = UInt16(exactly: value) ?? 0
        case Register.queueDescriptors: queue.descriptorAddress = half(queue.descriptorAddress, high: false)
        case Register.queueDescriptors + 4: queue.descriptorAddress = half(queue.descriptorAddress, high: true)
        case Register.queueDriver: queue.driverAddress = half(queue.driverAddress, high: false)
        case Register.queueDriver + 4: queue.driverAddress = half(queue.driverAddress, high: true)
        case Register.queueDevice: queue.deviceAddress = half(queue.deviceAddress, high: false)
        default: queue.deviceAddress = half(queue.deviceAddress, high: true)
        }
    }

    private func badQueue() {
        Log.guestError("\(stateName): queue \(queueSelect) does not exist")
    }

    private func resetRegisters() {
        deviceFeaturesSelect = 0
        driverFeaturesSelect = 0
        queueSelect = 0
        interruptStatus = 0
        line.set(false)
    }

    // MARK: Device

    public func reset() { resetRegisters() }

    public func save(to writer: inout StateWriter) {
        writer.put("device-features-select", UInt64(deviceFeaturesSelect))
        writer.put("driver-features-select", UInt64(driverFeaturesSelect))
        writer.put("queue-select", UInt64(queueSelect))
        writer.put("interrupt-status", UInt64(interruptStatus))
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let deviceSelect = try reader.uint32("device-features-select")
        let driverSelect = try reader.uint32("driver-features-select")
        let queue = try reader.uint32("queue-select")
        let interrupts = UInt32(try reader.unsigned("interrupt-status", in: 0...3))
        try reader.finish()
        return { [self] in
            deviceFeaturesSelect = deviceSelect
            driverFeaturesSelect = driverSelect
            queueSelect = queue
            interruptStatus = interrupts
            line.set(interrupts != 0)
        }
    }
}
