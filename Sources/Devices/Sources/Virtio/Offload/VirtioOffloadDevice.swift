import BatonRuntime

/// A virtio device that a module serves: the driver's side is here, and the
/// rings are looked at by nobody in this process.
public class VirtioOffloadDevice: VirtioDevice, VirtioOffloadHost {
    private let offload: any VirtioOffload
    private let ownFeatures: UInt64

    /// - Parameters:
    ///   - ownFeatures: offered besides those of `offload`, and nothing to it.
    ///   - ownQueues: the sizes of queues behind those of `offload`, which are served here.
    init(vm: VirtualMachine, offload: any VirtioOffload, ownFeatures: UInt64 = 0, ownQueues: [UInt16] = []) {
        self.offload = offload
        self.ownFeatures = ownFeatures
        super.init(
            model: offload.model, deviceID: offload.deviceID, vm: vm,
            features: offload.features | ownFeatures, ringFeatures: 0,
            queueSizes: offload.queueSizes + ownQueues, config: offload.config)
        // Others store to guest RAM from now on, at times of their own.
        vm.addressSpace.expectForeignWriters()
        offload.plugged(into: self)
    }

    // MARK: VirtioOffloadHost

    public var driver: VirtioDriverSetup? {
        guard isOperating else { return nil }
        let ready = queues.filter { $0.ready && isServedOutside($0) }.map { queue in
            VirtioQueueSetup(
                index: queue.index, size: queue.size, descriptors: queue.descriptorAddress,
                available: queue.driverAddress, used: queue.deviceAddress)
        }
        return VirtioDriverSetup(features: driverFeatures & ~ownFeatures, queues: ready)
    }

    /// Whether a queue is one of the offload's.
    func isServedOutside(_ queue: VirtQueue) -> Bool { true }

    public func usedBuffers(queue: Int) { transport?.interrupt(queue: queue) }

    public func interruptEvent(
        queue: Int, event: Int32, mayBeDirect: @escaping () -> Bool, onEvent: @escaping () -> Void
    ) -> InterruptEvent {
        transport?.interruptEvent(queue: queue, event: event, mayBeDirect: mayBeDirect, onEvent: onEvent)
            ?? InterruptEvent(vm: vm, event: event, message: { nil }, onEvent: onEvent)
    }

    public func configChanged(_ config: [UInt8]) {
        self.config = config
        configChanged()
    }

    public func fail(_ reason: String) { super.fail(reason) }

    // MARK: VirtioDevice

    public override func isServedHere(_ queue: VirtQueue) -> Bool { !isServedOutside(queue) }
    public override func handle(_ queue: VirtQueue) { offload.kick(queue: queue.index) }
    public override func kickEvent(_ queue: VirtQueue) -> Int32? { offload.kickEvent(queue: queue.index) }
    public override func driverReady() { offload.start() }
    public override func resetDevice() { offload.stop() }
    public override var isBusy: Bool { offload.isBusy }
    public override var workInHand: String { offload.workInHand }
    public override func pauseDevice() { offload.pause() }
    public override func resumeDevice() { offload.resume() }

    public override func writeConfig(offset: Int, width: Int, value: UInt64) {
        offload.writeConfig(offset: offset, width: width, value: value)
    }

    public override func saveDevice(to writer: inout StateWriter) { offload.save(to: &writer) }

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        try offload.load(from: reader)
    }
}
