import BatonRuntime

/// virtio-vsock whose packets somebody else carries. The queue of events is served here (virtio 1.2, 5.10.6.7).
final class VirtioOffloadVsock: VirtioOffloadDevice, VsockOffloadHost {
    private static let eventQueue = 2
    /// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
    private static let transportReset: UInt32 = 0

    /// The driver is still to be told that its connections are no more.
    private var owesReset = false

    init(vm: VirtualMachine, offload: any VsockOffload) {
        super.init(vm: vm, offload: offload, ownQueues: [128])
    }

    override func isServedOutside(_ queue: VirtQueue) -> Bool { queue.index < VirtioOffloadVsock.eventQueue }

    override func handle(_ queue: VirtQueue) {
        if isServedOutside(queue) { super.handle(queue) } else { sendReset() }
    }

    func lostConnections() {
        // A driver that has not set the device up has none.
        guard status & VirtioStatus.driverOK != 0 else { return }
        owesReset = true
        sendReset()
    }

    /// Sends what is owed when there is a buffer. With the machine stopped, `resume` comes back to it.
    private func sendReset() {
        guard owesReset, isRunning, isOperating else { return }
        let queue = queues[VirtioOffloadVsock.eventQueue]
        guard send(littleEndianBytes(VirtioOffloadVsock.transportReset), kind: "events", by: queue) else { return }
        queue.signal()
        owesReset = false
    }

    override func resetDevice() {
        owesReset = false
        super.resetDevice()
    }

    override func resumeDevice() {
        super.resumeDevice()
        sendReset()
    }

    // MARK: State

    override func saveDevice(to writer: inout StateWriter) {
        writer.put("owes-reset", owesReset)
        super.saveDevice(to: &writer)
    }

    override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        let owes = try reader.bool("owes-reset")
        let apply = try super.loadDevice(from: reader)
        return { [self] in
            owesReset = owes
            apply()
        }
    }
}
