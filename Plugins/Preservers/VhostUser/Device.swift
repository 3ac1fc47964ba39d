import BatonRuntime
import CBaton
import Glibc

/// A virtio device that a vhost-user back end serves.
///
/// The back end has the rings and guest RAM; this side has the connection, an
/// eventfd each way for every queue, and the driver's wishes. What the back
/// end sends is checked, and what it owes has a time limit: whatever it does,
/// the worst is a device that needs a reset.
///
/// `isServing` implies that there is a connection.
class VhostUserDevice: VirtioOffload {
    let vm: VirtualMachine
    let kind: DeviceKind
    let chardev: Chardev
    let shared: SharedRegions
    let features: UInt64
    /// The back end's configuration space, as last read.
    var backendConfig: [UInt8]
    weak var host: (any VirtioOffloadHost)?

    // The connection.
    /// Nil when there is no back end.
    var channel: VhostUserChannel?
    var backend: BackendProperties
    /// Whether the back end of this connection has guest RAM.
    var hasMemoryTable = false
    /// Whether the back end serves the queues, and which it served last.
    var isServing = false
    var served: [VirtioQueueSetup] = []
    /// Requests may be lost with the back end: it has had some since the
    /// driver started the device, and nobody knows which.
    var hasUntrackedRequests = false
    /// For back ends that do not track requests, by queue.
    var trackers: [RingTracker?]
    /// The back end went while it served `served`: what it had in hand is known for good when the next one answers.
    var isUnsettled = false
    /// It was cut off, as it was late or wrong, and may yet carry out what it had in hand, until the next one answers: a
    /// back end serves one client at a time.
    var mayBeAtWork = false
    /// Our end of the back end's own channel; -1 when there is none. Owned.
    var requestSocket: Int32 = -1
    /// The start of a message on it.
    var pendingRequest: [UInt8] = []
    /// How long back ends, one after the other, may keep the guest waiting.
    let patience = PeerPatience()
    /// The configuration is being read, or was a moment ago.
    var refreshTimer: EventLoop.Timer?
    /// The configuration has changed since it was asked for.
    var configIsStale = false
    /// The back end, if there is one, is that of the process before.
    private(set) var isSuccessor = false
    /// A connection has come up that nothing has been said on.
    var isNewConnection = false

    // The queues.
    let events: QueueEvents
    /// The available ring's index to go on at, of queues that are not served.
    var bases: [UInt16]
    /// The requests in hand, over back ends; nil when it is not tracked.
    var inflight: InflightMemory?
    /// How many queues the back end may use, the first ones.
    private(set) var enabledQueues: Int
    /// Between `resume` and `pause`.
    var isActive = false

    /// Connects: waits until there is a back end, and learns what it offers.
    /// In a process that takes over a guest, goes on with the connection of
    /// the process before, without a word to the back end.
    init(kind: DeviceKind, chardev: Chardev, vm: VirtualMachine) throws(VMMError) {
        self.kind = kind
        self.vm = vm
        self.chardev = chardev
        shared = try SharedRegions(vm.addressSpace)
        bases = [UInt16](repeating: 0, count: kind.queueCount)
        enabledQueues = kind.queuesAtFirst
        trackers = [RingTracker?](repeating: nil, count: kind.queueCount)
        if let heritage = try VhostUserHeritage.find(chardev: chardev, kind: kind, vm: vm) {
            features = heritage.features
            backend = heritage.backend
            backendConfig = heritage.backend.config
            events = QueueEvents(kicks: heritage.kicks, calls: heritage.calls, error: heritage.errorEvent)
            try chardev.attach(self)
            adopt(heritage)
            vm.cpr?.onChange(
                of: VhostUserHeritage.part(chardev), fds: VhostUserHeritage.fd(chardev, "")
            ) { [unowned self] changes throws(VMMError) in try takeOver(changes) }
            return
        }
        guard chardev.frontend == nil else { throw VMMError("Device '\(chardev.id)' is in use") }
        try chardev.waitForConnection { vm.isEnding }
        guard let socket = chardev.connectionDescriptor, DescriptorKind.isLocal(socket) else {
            throw VMMError("chardev '\(chardev.id)' is no UNIX socket, which vhost-user needs")
        }
        let channel = VhostUserChannel(socket: socket, patience: patience)
        backend = try channel.negotiate(
            queues: kind.countedQueues, configSize: kind.backendConfigSize, isFirst: true)
        guard kind.required & ~backend.features == 0 else {
            throw VMMError(
                "the vhost-user back end lacks the features \(Hex(kind.required & ~backend.features)), which an option "
                    + "asks for")
        }
        backendConfig = backend.config
        features = kind.offered(backend)
        self.channel = channel
        events = try QueueEvents(queues: kind.queueCount, of: "a vhost-user device")
        try chardev.attach(self)
        isNewConnection = false
        try openRequestChannel(channel)
    }

    /// Of a device of sockets: the connections of before are no more, as the back end that had them is gone.
    func lostConnections() {}

    /// Goes on where the process before is.
    func adopt(_ heritage: VhostUserHeritage) {
        isSuccessor = true
        backend = heritage.backend
        backendConfig = heritage.backend.config
        hasMemoryTable = heritage.hasMemoryTable
        isServing = heritage.isServing
        served = heritage.served
        isUnsettled = !heritage.isServing && !heritage.served.isEmpty
        hasUntrackedRequests = heritage.hasUntrackedRequests
        trackers = heritage.trackers
        requestSocket = heritage.requestSocket
        pendingRequest = heritage.pendingRequest
        inflight = heritage.inflight
        channel = nil
        guard chardev.isInherited, let socket = chardev.connectionDescriptor else { return }
        let channel = VhostUserChannel(socket: socket, patience: patience)
        channel.acknowledges = backend.has(VhostUser.ProtocolFeature.replyAck)
        self.channel = channel
        isNewConnection = false
    }

    // MARK: VirtioOffload

    var model: String { kind.model }
    var deviceID: UInt32 { kind.deviceID }
    var queueSizes: [UInt16] { [UInt16](repeating: kind.queueSize, count: kind.queueCount) }
    var config: [UInt8] {
        var config = kind.config(backendConfig)
        if let place = kind.linkStatus, channel == nil, place < config.count { config[place] = 0 }
        return config
    }

    func plugged(into host: any VirtioOffloadHost) { self.host = host }

    func start() {
        if !isServing { serve(rationed: true) }
        endSlice()
    }

    /// The back end may have kept the guest waiting: others have their turn now.
    private func endSlice() { vm.accelerator?.yield() }

    func stop() {
        if isServing { rest(rationed: true) }
        if let channel, backend.has(VhostUser.ProtocolFeature.resetDevice), hasMemoryTable {
            channel.begin(rationed: true)
            do throws(VMMError) {
                try channel.set(.resetDevice, [])
                hasMemoryTable = false
            } catch {
                disconnect(error.message)
            }
        }
        for index in bases.indices { bases[index] = 0 }
        hasUntrackedRequests = false
        for index in trackers.indices { trackers[index] = nil }
        served = []
        isUnsettled = false
        enabledQueues = kind.queuesAtFirst
        forgetInflight()
        endSlice()
    }

    /// Has the back end use the first `count` queues and no other.
    func enableQueues(_ count: Int) {
        let before = enabledQueues
        enabledQueues = count
        // A process that takes over finds the queues as they are.
        guard isServing, isActive, let channel, backend.hasQueueSwitches else { return }
        channel.begin(rationed: true)
        defer { endSlice() }
        do throws(VMMError) {
            for queue in served where (queue.index < count) != (queue.index < before) {
                try channel.enableVring(queue.index, queue.index < count)
            }
        } catch {
            return disconnect(error.message)
        }
        for queue in served where queue.index >= before && queue.index < count {
            cbaton_eventfd_add(events.kicks[queue.index])
        }
    }

    func kick(queue: Int) {
        // Also while nobody serves: who was cut off may use what the guest makes available.
        follow(queue)
        guard isServing, events.kicks.indices.contains(queue) else { return }
        cbaton_eventfd_add(events.kicks[queue])
    }

    /// The back end looks at the same eventfd that the driver's notifications are counted on.
    func kickEvent(queue: Int) -> Int32? {
        isTracking || !events.kicks.indices.contains(queue) ? nil : events.kicks[queue]
    }

    func writeConfig(offset: Int, width: Int, value: UInt64) {
        guard kind.writableConfig.contains(offset), offset + width <= kind.writableConfig.upperBound, let channel else {
            return Log.guestError("\(host?.stateName ?? model): write of the read-only configuration at \(Hex(offset))")
        }
        channel.begin(rationed: true)
        defer { endSlice() }
        let bytes = Array(littleEndianBytes(value).prefix(width))
        do throws(VMMError) {
            try channel.setConfig(offset: offset, bytes)
            for (index, byte) in bytes.enumerated() where offset + index < backendConfig.count {
                backendConfig[offset + index] = byte
            }
            host?.configChanged(config)
        } catch {
            disconnect(error.message)
        }
    }

    func pause() {
        finishRefresh()
        isActive = false
        unwatch()
        // A save may leave the back end at its work: the preserver sees to it
        // where the mode does not keep connections.
        if isServing, vm.runState != .saveVM { rest() }
    }

    func resume() {
        isActive = true
        if isNewConnection { connected() }
        guard channel != nil else { return backendIsGone() }
        do throws(VMMError) { try watch() } catch { return disconnect(error.message) }
        if host?.driver != nil, !isServing { serve() }
    }

    // MARK: Serving the queues

    /// Lets the back end serve the queues that the driver has set up.
    /// - Parameter rationed: the guest or the back end is the reason.
    func serve(rationed: Bool = false) {
        guard let driver = host?.driver, let channel else { return backendIsGone() }
        if let outside = driver.queues.first(where: { !shared.contains($0) }) {
            host?.fail("queue \(outside.index) is not in memory that the back end can reach")
            return
        }
        if isUnsettled {
            let wereKnown = !hasUntrackedRequests
            settle()
            isUnsettled = false
            if wereKnown, hasUntrackedRequests {
                host?.fail("it is not known which requests the vhost-user back end that is gone had in hand")
                return
            }
        }
        served = driver.queues
        // Before the back end has any: it may be late in the middle, and begin nevertheless.
        if isTracking, !backend.has(VhostUser.ProtocolFeature.inflight) { track() }
        channel.begin(rationed: rationed)
        do throws(VMMError) {
            try serve(driver, channel)
        } catch {
            isUnsettled = true
            return disconnect(error.message)
        }
        isServing = true
        track()
        events.update()
        // What was made available or used before is looked at by both sides.
        for queue in driver.queues { events.signal(queue: queue.index) }
    }

    private func serve(_ driver: VirtioDriverSetup, _ channel: VhostUserChannel) throws(VMMError) {
        let hasProtocol = backend.features & VhostUser.hasProtocolFeatures
        try channel.set(.setFeatures, littleEndianBytes(driver.features & ~kind.ownFeatures | hasProtocol))
        if !hasMemoryTable {
            try channel.setMemoryTable(shared)
            hasMemoryTable = true
        }
        if backend.has(VhostUser.ProtocolFeature.inflight) {
            if inflight == nil {
                inflight = try channel.getInflight(queues: kind.queueCount, size: kind.queueSize)
            }
            if let inflight, inflight.fd >= 0 { try channel.setInflight(inflight) }
        }
        for queue in driver.queues {
            _ = cbaton_eventfd_take(events.calls[queue.index])
            try channel.setVring(
                queue, base: bases[queue.index], kick: events.kicks[queue.index], call: events.calls[queue.index],
                error: events.error)
        }
        if backend.hasQueueSwitches {
            for queue in driver.queues where queue.index < enabledQueues { try channel.enableVring(queue.index, true) }
        }
    }

    /// Has the back end finish what it has in hand and let go of the queues.
    /// - Parameter rationed: the guest is the reason.
    func rest(rationed: Bool = false) {
        guard isServing, let channel else { return }
        if kind.runsEmpty {
            channel.begin(rationed: rationed)
            waitUntilEmpty(channel)
        }
        channel.begin(rationed: rationed)
        do throws(VMMError) {
            for queue in served {
                if backend.hasQueueSwitches { try channel.enableVring(queue.index, false) }
                bases[queue.index] = try channel.getVringBase(queue.index)
            }
            // Some stop taking requests and still have those in hand.
            for queue in served { try waitUntilUsed(queue, channel) }
            isServing = false
            hasUntrackedRequests = false
        } catch {
            disconnect(error.message)
        }
    }

    /// Gives the back end time to answer what it has, and sees: QEMU's storage
    /// daemon panics when it is told to stop and has requests in hand, as it
    /// closes the queue's eventfd first. The guest makes no new ones.
    private func waitUntilEmpty(_ channel: VhostUserChannel) {
        let deadline = EventLoop.now + channel.limit / 2
        for queue in served {
            guard let rings = Rings(queue, vm.addressSpace) else { continue }
            while rings.usedIndex != rings.availableIndex, !channel.isLate, EventLoop.now < deadline, !socketHasNews {
                usleep(200)
            }
        }
    }

    private func waitUntilUsed(_ queue: VirtioQueueSetup, _ channel: VhostUserChannel) throws(VMMError) {
        guard let rings = Rings(queue, vm.addressSpace) else { return }
        while rings.usedIndex != bases[queue.index] {
            guard !channel.isLate else {
                throw VMMError("it does not finish the requests of queue \(queue.index) that it has in hand")
            }
            usleep(200)
        }
        follow(queue.index)
    }
}
