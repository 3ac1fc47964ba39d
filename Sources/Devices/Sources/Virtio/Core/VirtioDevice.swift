import BatonRuntime

/// The part of a virtio device that does not depend on the transport: status,
/// features, queues and configuration space. Subclasses are the devices.
open class VirtioDevice: Device {
    /// The name in state sections: `virtio-blk`.
    public let model: String
    /// virtio 1.3, 5.
    public let deviceID: UInt32
    public let vm: VirtualMachine
    public let queues: [VirtQueue]
    /// Features that the device offers, with those of the rings.
    public let offeredFeatures: UInt64
    public internal(set) var driverFeatures: UInt64 = 0
    public internal(set) var status: UInt8 = 0
    /// Changes whenever more than one field of the configuration space may
    /// have changed (virtio 1.3, 4.2.2.1).
    public private(set) var configGeneration: UInt32 = 0
    /// The configuration space as the driver reads it; set by the device.
    public var config: [UInt8]
    public weak var transport: VirtioTransport?
    /// Unique in the VM; set when the device is plugged.
    public internal(set) var stateName: String
    /// False from `pause` to `resume`, and before the first `resume`: the
    /// device must not touch guest RAM then nor take input from the host.
    public private(set) var isRunning = false
    /// Whether the driver lets the device access memory; always on virtio-mmio.
    private var isBusMaster = true
    // Ready, not failed and bus master: kept for the rings' hot path.
    private(set) var isOperating = false
    private var doorbells: QueueDoorbells!

    /// - Parameter ringFeatures: features of the rings and of virtio itself;
    ///   by default those that `VirtQueue` implements.
    public init(
        model: String, deviceID: UInt32, vm: VirtualMachine, features: UInt64,
        ringFeatures: UInt64 = VirtioFeature.common, queueSizes: [UInt16], config: [UInt8]
    ) {
        self.model = model
        self.deviceID = deviceID
        self.vm = vm
        self.offeredFeatures = features | ringFeatures
        self.config = config
        self.stateName = model
        let space = vm.addressSpace
        queues = queueSizes.enumerated().map { VirtQueue(index: $0.offset, maxSize: $0.element, addressSpace: space) }
        for queue in queues { queue.owner = self }
        doorbells = QueueDoorbells(self)
        vm.metrics.add { [weak self] in self?.queueMetrics ?? [] }
    }

    // MARK: For subclasses

    /// The driver has made buffers available in a queue, the device has just
    /// become ready or runs again, or goes on with what it has put off.
    open func handle(_ queue: VirtQueue) {}
    /// Whether `handle` takes the chains of a queue.
    open func isServedHere(_ queue: VirtQueue) -> Bool { true }
    /// For a queue that is not served here: an eventfd that tells whoever serves it of a notification; nil when `handle`
    /// must see each. Borrowed for the device's life.
    open func kickEvent(_ queue: VirtQueue) -> Int32? { nil }
    /// The driver takes a queue, or the device's right to access memory, back: what is in hand of it ends before this
    /// returns.
    open func finish(_ queue: VirtQueue) {}
    /// By queue, how many chains a saved state has that were taken and not given back. They are read and checked in
    /// `loadDevice`.
    open func unfinished(in reader: StateReader) throws(VMMError) -> [Int] { queues.map { _ in 0 } }
    /// The driver has written the last of the initialisation's status bits.
    open func driverReady() {}
    /// Back to power-on state; status, features and queues are done already.
    open func resetDevice() {}
    /// The driver writes the configuration space.
    open func writeConfig(offset: Int, width: Int, value: UInt64) {
        Log.guestError("\(stateName): write of the read-only configuration at \(Hex(offset))")
    }
    open func saveDevice(to writer: inout StateWriter) {}
    /// Reads and checks what `saveDevice` wrote.
    /// - Returns: what applies it, after everything else was checked.
    open func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void { {} }
    open func pauseDevice() {}
    open func resumeDevice() {}

    /// Whether a feature was negotiated.
    @inline(__always)
    public func has(_ feature: UInt64) -> Bool { driverFeatures & feature != 0 }

    /// Tells the driver that the configuration space has changed.
    public func configChanged() {
        configGeneration &+= 1
        if status & VirtioStatus.driverOK != 0 { transport?.configInterrupt() }
    }

    /// The driver broke the rules: the device stops until it is reset
    /// (virtio 1.3, 2.1.2).
    @inline(never)
    public func fail(_ reason: @autoclosure () -> String) {
        Log.guestError("\(stateName): \(reason())")
        guard status & VirtioStatus.needsReset == 0 else { return }
        let wasReady = status & VirtioStatus.driverOK != 0
        setStatus(status | VirtioStatus.needsReset)
        doorbells.update()
        if wasReady { transport?.configInterrupt() }
    }

    // MARK: For transports

    private func setStatus(_ value: UInt8) {
        status = value
        updateOperating()
    }

    private func updateOperating() {
        isOperating = isBusMaster && status & (VirtioStatus.driverOK | VirtioStatus.needsReset) == VirtioStatus.driverOK
    }

    /// The driver allows the device to access memory, or takes that back.
    func setBusMaster(_ allowed: Bool) {
        guard allowed != isBusMaster else { return }
        let was = isOperating
        if !allowed { for queue in queues { finish(queue) } }
        restoreBusMaster(allowed)
        if isOperating && !was { becameReady() }
        doorbells.update()
    }

    /// As `setBusMaster`, for a loaded state.
    func restoreBusMaster(_ allowed: Bool) {
        isBusMaster = allowed
        updateOperating()
    }

    private func becameReady() {
        driverReady()
        for queue in queues where queue.ready && queue.hasAvailable { handle(queue) }
    }

    func readConfig(offset: Int, width: Int) -> UInt64 {
        var value: UInt64 = 0
        for index in 0..<width where offset + index < config.count {
            value |= UInt64(config[offset + index]) << UInt64(8 * index)
        }
        return value
    }

    /// The driver writes the status field (virtio 1.3, 2.1 and 3.1).
    func writeStatus(_ value: UInt8) {
        if value == 0 { return resetAll() }
        var value = value | (status & VirtioStatus.needsReset)
        guard status & ~value == 0 else {
            return Log.guestError("\(stateName): driver clears status bits (\(status) to \(value))")
        }
        let added = value & ~status
        if added & VirtioStatus.featuresOK != 0 {
            if driverFeatures & VirtioFeature.version1 == 0 || driverFeatures & ~offeredFeatures != 0 {
                Log.guestError("\(stateName): refused features \(Hex(driverFeatures)), offered \(Hex(offeredFeatures))")
                value &= ~(VirtioStatus.featuresOK | VirtioStatus.driverOK)
            }
        }
        if added & VirtioStatus.driverOK != 0, value & VirtioStatus.featuresOK == 0 {
            Log.guestError("\(stateName): DRIVER_OK without FEATURES_OK")
            value &= ~VirtioStatus.driverOK
        }
        setStatus(value & VirtioStatus.all)
        if added & value & VirtioStatus.driverOK != 0, isOperating { becameReady() }
        doorbells.update()
    }

    /// The driver writes half of its feature bits.
    func writeFeatures(_ half: UInt32, select: UInt32) {
        guard status & VirtioStatus.featuresOK == 0 else {
            return Log.guestError("\(stateName): features written after FEATURES_OK")
        }
        switch select {
        case 0: driverFeatures = driverFeatures & ~0xffff_ffff | UInt64(half)
        case 1: driverFeatures = driverFeatures & 0xffff_ffff | UInt64(half) << 32
        default: if half != 0 { Log.guestError("\(stateName): feature bits \(select):\(Hex(UInt64(half))) written") }
        }
    }

    /// The driver says that a queue is set up, or takes it back.
    func setReady(_ queue: VirtQueue, _ ready: Bool) {
        defer { if isOperating { doorbells.update() } }
        if !ready {
            finish(queue)
            return queue.disable()
        }
        guard !queue.ready else { return }
        guard status & VirtioStatus.featuresOK != 0 else {
            return Log.guestError("\(stateName): queue \(queue.index) enabled before FEATURES_OK")
        }
        do {
            let rings = try queue.locate(
                size: queue.size, descriptors: queue.descriptorAddress, driver: queue.driverAddress,
                device: queue.deviceAddress)
            queue.enable(rings, features: driverFeatures)
        } catch {
            fail(error.message)
        }
    }

    /// The driver notifies of a queue.
    func notify(_ queueIndex: UInt32) {
        guard queueIndex < UInt32(queues.count) else {
            return Log.guestError("\(stateName): notification of queue \(queueIndex), which does not exist")
        }
        let queue = queues[Int(queueIndex)]
        guard isOperating, queue.ready else {
            return Log.guestError("\(stateName): notification of queue \(queueIndex), which is not in use")
        }
        // However often it is told, it has its share of a turn.
        if queue.isPutOff { return }
        handle(queue)
    }

    /// The driver has notified of a queue, without a call.
    func rang(_ queue: VirtQueue) {
        // After a pause `resume` looks at the queue.
        guard isRunning, isOperating, queue.ready, !queue.isPutOff else { return }
        handle(queue)
    }

    /// Notifications of the driver have another place.
    func notificationsMoved() { doorbells.update() }

    private func resetAll() {
        for queue in queues { finish(queue) }
        setStatus(0)
        doorbells.update()
        driverFeatures = 0
        for queue in queues { queue.reset() }
        resetDevice()
    }

    // MARK: Device

    public var stateVersion: UInt32 { 1 }

    public func reset() { resetAll() }

    open func hold() {}
    open var isBusy: Bool { false }
    open var workInHand: String { "work of '\(stateName)'" }
    open func release() {}

    public func pause() {
        guard isRunning else { return }
        pauseDevice()
        isRunning = false
    }

    public func resume() {
        guard !isRunning else { return }
        isRunning = true
        resumeDevice()
        // When the guest runs, which does not wait for it.
        if isOperating { vm.loop.later { [weak self] in self?.doorbells.update() } }
        // What was put off before the pause, here or in another process.
        for queue in queues where isServedHere(queue) && queue.hasAvailable { handle(queue) }
    }

    public func save(to writer: inout StateWriter) {
        writer.put("device-id", UInt64(deviceID))
        writer.put("status", UInt64(status))
        writer.put("features", driverFeatures)
        writer.put("config-generation", UInt64(configGeneration))
        writer.put("queues", UInt64(queues.count))
        for queue in queues { queue.save(to: &writer) }
        saveDevice(to: &writer)
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let id = try reader.uint32("device-id")
        guard id == deviceID else {
            throw VMMError("section '\(reader.section)' is of virtio device \(id), not \(deviceID)")
        }
        let newStatus = UInt8(try reader.unsigned("status", in: 0...255))
        guard newStatus & ~VirtioStatus.all == 0 else {
            throw VMMError("section '\(reader.section)' has the invalid status \(newStatus)")
        }
        let features = try reader.unsigned("features")
        if newStatus & VirtioStatus.featuresOK != 0, features & ~offeredFeatures != 0 {
            throw VMMError(
                "section '\(reader.section)': Features \(Hex(features)) unsupported. "
                    + "Allowed features: \(Hex(offeredFeatures))")
        }
        let generation = try reader.uint32("config-generation")
        let count = try reader.unsigned("queues")
        guard count == UInt64(queues.count) else {
            throw VMMError(
                "section '\(reader.section)' has \(count) queues, this device \(queues.count)",
                hint: "Give the device the properties that it had (a network card mq= and ctrl_vq=).")
        }
        var states: [VirtQueue.Loaded] = []
        let unfinished = try unfinished(in: reader)
        for (queue, count) in zip(queues, unfinished) {
            states.append(try queue.loaded(from: reader, status: newStatus, unfinished: count))
        }
        let apply = try loadDevice(from: reader)
        try reader.finish()

        return { [self] in
            driverFeatures = features
            configGeneration = generation
            for (queue, state) in zip(queues, states) { queue.apply(state, features: features) }
            setStatus(newStatus)
            doorbells.update()
            apply()
        }
    }
}
