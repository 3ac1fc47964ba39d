import BatonRuntime

/// A virtio device that a module serves: the driver's side is here, and the
/// rings are looked at by nobody in this process.
public final class VirtioOffloadDevice: VirtioDevice, VirtioOffloadHost {
    private let offload: any VirtioOffload

    public init(vm: VirtualMachine, offload: any VirtioOffload) {
        self.offload = offload
        super.init(
            model: offload.model, deviceID: offload.deviceID, vm: vm, features: offload.features, ringFeatures: 0,
            queueSizes: offload.queueSizes, config: offload.config)
        // Others store to guest RAM from now on, at times of their own.
        vm.addressSpace.expectForeignWriters()
        offload.plugged(into: self)
    }

    // MARK: VirtioOffloadHost

    public var driver: VirtioDriverSetup? {
        guard isOperating else { return nil }
        let ready = queues.filter(\.ready).map { queue in
            VirtioQueueSetup(
                index: queue.index, size: queue.size, descriptors: queue.descriptorAddress,
                available: queue.driverAddress, used: queue.deviceAddress)
        }
        return VirtioDriverSetup(features: driverFeatures, queues: ready)
    }

    public func usedBuffers(queue: Int) { transport?.interrupt(queue: queue) }

    public func configChanged(_ config: [UInt8]) {
        self.config = config
        configChanged()
    }

    public func fail(_ reason: String) { super.fail(reason) }

    // MARK: VirtioDevice

    public override func handle(_ queue: VirtQueue) { offload.kick(queue: queue.index) }
    public override func driverReady() { offload.start() }
    public override func resetDevice() { offload.stop() }
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
