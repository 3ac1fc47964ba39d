import BatonRuntime
import CBaton

/// A virtio-vsock device (virtio 1.2, 5.10) whose packets the kernel carries. The queue of events is the core's.
///
/// `isServing` implies that there is a kernel's device with the guest's address.
final class VhostVsock: VsockOffload {
    /// Those of packets: to the guest, and from it.
    static let queueCount = 2
    private static let queueSize: UInt16 = 128
    private static let seqpacket: UInt64 = 1 << 1
    /// INDIRECT_DESC, EVENT_IDX, VERSION_1: as of other devices that are served elsewhere.
    private static let ringFeatures: UInt64 = 1 << 28 | 1 << 29 | version1
    private static let version1: UInt64 = 1 << 32
    /// Nanoseconds until an address that another has is tried again.
    private static let retryInterval: Int64 = 20_000_000

    let vm: VirtualMachine
    /// The guest's.
    let address: UInt32
    let features: UInt64
    private let label: String
    private let events: QueueEvents
    private let closing: SlowClose
    private weak var host: (any VirtioOffloadHost)?

    /// What serves the device; nil from `letGo` until there is another.
    private var kernel: KernelVsock?
    /// What takes its place in this process when nothing comes of an update.
    private var spare: KernelVsock?
    /// It has been let go of, for a save or an update.
    private var isAway = false
    private var retry: EventLoop.Timer?
    private var isRetryReported = false
    /// Between `resume` and `pause`.
    private var isActive = false
    private var isServing = false
    /// By queue, the available ring's index to go on at, while it is not served.
    private var bases = [UInt16](repeating: 0, count: VhostVsock.queueCount)

    /// - Parameters:
    ///   - given: `vhostfd=`.
    ///   - seqpacket: whether there have to be sockets of packets; nil if it does not matter.
    ///   - label: the device's name in messages.
    init(
        address: UInt32, given: String?, seqpacket: Bool?, label: String, vm: VirtualMachine
    ) throws(VMMError) {
        self.vm = vm
        self.address = address
        self.label = label
        closing = try SlowClose(vm)
        events = try QueueEvents(queues: VhostVsock.queueCount, of: "a vhost-vsock device")
        let handover = vm.handover
        let isTrial = handover?.isTrial == true, isSuccessor = handover?.isSuccessor == true
        // One that was given to the process before is of that one's memory, for good.
        let inherits = (isTrial || isSuccessor) && handover?.hasOwnCommandLine != true
        let kernel =
            if let given, !inherits { try KernelVsock(given: given, vm: vm) } else { try KernelVsock() }
        self.kernel = kernel
        guard kernel.features & VhostVsock.version1 != 0 else {
            throw VMMError("vhost-vsock: the kernel lacks VIRTIO_F_VERSION_1 (features \(Hex(kernel.features)))")
        }
        guard seqpacket != true || kernel.features & VhostVsock.seqpacket != 0 else {
            throw VMMError("vhost-vsock backend doesn't support seqpacket", hint: "It is in Linux from 5.14 on.")
        }
        features =
            kernel.features & (VhostVsock.ringFeatures | (seqpacket == false ? 0 : VhostVsock.seqpacket))
        if isTrial { return }
        try kernel.own()
        // While another process has the guest it has its address, too.
        if !isSuccessor { try kernel.take(address: address) }
    }

    /// The device is taken away.
    func end() {
        pause()
        retry?.cancel()
        isAway = true
        for file in [kernel, spare] { if let file { closing.close(file.release()) } }
        (kernel, spare) = (nil, nil)
        // Nobody waits for threads that are still at it.
        closing.whenDone { [self] in _ = self }
    }

    // MARK: VirtioOffload

    let model = "vhost-vsock"
    let deviceID: UInt32 = 19
    var queueSizes: [UInt16] { [UInt16](repeating: VhostVsock.queueSize, count: VhostVsock.queueCount) }
    var config: [UInt8] { littleEndianBytes(UInt64(address)) }

    func plugged(into host: any VirtioOffloadHost) { self.host = host }

    func start() { serve() }

    func stop() {
        rest()
        for index in bases.indices { bases[index] = 0 }
    }

    func kick(queue: Int) {
        guard isServing, events.kicks.indices.contains(queue) else { return }
        cbaton_eventfd_add(events.kicks[queue])
    }

    /// The kernel looks at the same eventfd that the driver's notifications are counted on.
    func kickEvent(queue: Int) -> Int32? { events.kicks.indices.contains(queue) ? events.kicks[queue] : nil }

    func writeConfig(offset: Int, width: Int, value: UInt64) {
        Log.guestError("\(host?.stateName ?? model): write of the read-only configuration at \(Hex(offset))")
    }

    var isBusy: Bool { closing.isBusy }
    var workInHand: String { "closing \(KernelVsock.path) of \(label)" }

    func pause() {
        isActive = false
        rest()
        events.pause()
        vm.loop.unwatch(events.error)
    }

    func resume() {
        isActive = true
        do throws(VMMError) { try watch() } catch { return fail(error) }
        if kernel?.hasAddress == true { serve() } else if !isAway { attach() }
    }

    private func watch() throws(VMMError) {
        try events.resume(
            host,
            onEvent: { [weak self] queue in
                guard let self, isServing else { return }
                host?.usedBuffers(queue: queue)
            })
        let error = events.error
        try vm.loop.watch(error, .readable) { [weak self] _ in
            guard let self, cbaton_eventfd_take(error) > 0, isServing else { return }
            fail(VMMError("the kernel reports a broken queue"))
        }
    }

    /// The device needs a reset by its driver.
    private func fail(_ error: VMMError) {
        rest()
        host?.fail(error.message)
    }

    // MARK: Serving the queues

    /// Has the kernel serve the queues, if the driver has set them up and the guest runs.
    private func serve() {
        guard isActive, !isServing, let kernel, kernel.hasAddress, let driver = host?.driver else { return }
        do throws(VMMError) {
            try kernel.start(driver, bases: bases, events: events, in: vm.addressSpace)
        } catch {
            return fail(error)
        }
        isServing = true
        // What was made available or used before is looked at by both sides.
        for queue in driver.queues { events.signal(queue: queue.index) }
    }

    /// Has the kernel let go of the queues, and of guest memory.
    private func rest() {
        guard isServing, let kernel else { return }
        isServing = false
        do throws(VMMError) { bases = try kernel.stop() } catch { host?.fail(error.message) }
    }

    // MARK: Updates

    /// Why an update is not possible now: there is no device to come back to if it fails.
    func blocker() -> String? {
        guard spare == nil else { return nil }
        do throws(VMMError) { spare = try KernelVsock() } catch {
            return "\(label): an update closes \(KernelVsock.path), which cannot be opened again: \(error.message)"
        }
        return nil
    }

    /// Ends the guest's connections, and frees its address, for the next VMM.
    ///
    /// While the guest runs, as it takes a while, and is done when nothing is busy: the kernel resets the connections'
    /// ends on the host only if nobody has the address then. Before the exec, which would wait for the kernel's thread.
    func letGo() {
        guard !isAway else { return }
        isAway = true
        retry?.cancel()
        rest()
        guard let kernel else { return }
        self.kernel = nil
        closing.close(kernel.release())
        lostConnections()
    }

    /// Nothing came of it: the guest goes on in this process.
    func takeBack() {
        guard isAway else { return }
        isAway = false
        attach()
    }

    /// Opens a device anew, and serves the guest by it. What cannot be had yet is tried again: the guest waits for
    /// answers meanwhile, and whoever has its address may be a new VMM that is about to end.
    private func attach() {
        guard !isAway, kernel?.hasAddress != true else { return }
        guard !closing.isBusy else { return closing.whenDone { [weak self] in self?.attach() } }
        do throws(VMMError) {
            try takeAddress()
        } catch {
            if !isRetryReported { Report.warning(error.prefixed(label).message + "; it is tried again") }
            isRetryReported = true
            retry?.cancel()
            retry = vm.loop.schedule(at: EventLoop.now + VhostVsock.retryInterval) { [weak self] in self?.attach() }
            return
        }
        isRetryReported = false
        serve()
    }

    /// Has a device of this process, with the guest's address. Serves nothing yet.
    func takeAddress() throws(VMMError) {
        if kernel == nil { (kernel, spare) = (spare, nil) }
        let kernel = if let kernel { kernel } else { try KernelVsock() }
        self.kernel = kernel
        try kernel.own()
        try kernel.take(address: address)
    }

    /// The guest goes on in the process before, which needs its address.
    func giveAddressBack() {
        guard let kernel, kernel.hasAddress else { return }
        self.kernel = nil
        closing.close(kernel.release())
    }

    private func lostConnections() { (host as? any VsockOffloadHost)?.lostConnections() }

    // MARK: Checkpoint

    func save(to writer: inout StateWriter) {
        writer.put("bases", bases.map { UInt64($0) })
        // Else the driver has been told, or will be.
        writer.put("has-connections", kernel?.hasAddress == true)
    }

    func load(from reader: StateReader) throws(VMMError) -> () -> Void {
        let saved = try reader.array("bases", count: VhostVsock.queueCount...VhostVsock.queueCount)
        guard saved.allSatisfy({ $0 <= 0xffff }) else {
            throw VMMError("field 'bases' of section '\(reader.section)' has an index that is out of range")
        }
        let hadConnections = try reader.bool("has-connections")
        return { [self] in
            bases = saved.map { UInt16(truncatingIfNeeded: $0) }
            if hadConnections { lostConnections() }
        }
    }
}
