import BatonRuntime
import CBaton
import Glibc

/// The connection's life: its events, its end, and the next one.
extension VhostUserDevice: ChardevFrontend {
    var usesDescriptor: Bool { true }
    func chardevCanReceive() -> Int { 0 }
    func chardevReceive(_ bytes: UnsafeRawBufferPointer) {}

    func chardevEvent(_ event: ChardevEvent) {
        switch event {
        case .opened:
            isNewConnection = true
            // While the guest does not run its state may be somebody else's.
            guard isActive else { return }
            connected()
            if channel != nil {
                do throws(VMMError) { try watch() } catch { return disconnect(error.message) }
                if host?.driver != nil { serve(rationed: true) }
            }
        case .closed:
            // The VMM ends the connection itself.
            unwatch()
            dropConnection()
        default: break
        }
    }

    /// There is a back end again: makes its acquaintance.
    func connected() {
        isNewConnection = false
        guard let socket = chardev.connectionDescriptor else { return }
        let fresh = VhostUserChannel(socket: socket, patience: patience)
        do throws(VMMError) {
            let found = try fresh.negotiate(
                queues: kind.countedQueues, configSize: kind.backendConfigSize, isFirst: false)
            guard features & ~kind.offered(found) == 0 else {
                throw VMMError(
                    "it lacks the features \(Hex(features & ~kind.offered(found))), which the guest was offered")
            }
            guard inflight == nil || found.has(VhostUser.ProtocolFeature.inflight) else {
                throw VMMError("it cannot track requests in hand, of which there may be some")
            }
            backend = found
            hasMemoryTable = false
            try openRequestChannel(fresh)
            channel = fresh
            mayBeAtWork = false
            if found.config != backendConfig || kind.linkStatus != nil {
                backendConfig = found.config
                host?.configChanged(config)
            }
        } catch {
            Report.warning("\(name): the back end cannot be used: \(error.message)")
            chardev.endConnection()
        }
    }

    /// Ends the connection for cause. Requests that are tracked wait for the
    /// next back end, if there can be one; else the device needs a reset.
    func disconnect(_ reason: String) {
        guard channel != nil else { return }
        Report.warning("\(name): the back end is gone: \(reason)")
        if isServing || isUnsettled { mayBeAtWork = !hasClosed }
        unwatch()
        dropConnection()
        chardev.endConnection()
        backendIsGone()
    }

    private func dropConnection() {
        guard channel != nil else { return }
        channel = nil
        hasMemoryTable = false
        if requestSocket >= 0 { close(requestSocket) }
        requestSocket = -1
        pendingRequest = []
        refreshTimer?.cancel()
        refreshTimer = nil
        configIsStale = false
        if kind.linkStatus != nil { host?.configChanged(config) }
        guard isServing else { return }
        isServing = false
        isUnsettled = true
        settle()
        lostConnections()
    }

    /// There is no back end for a device that the driver uses.
    func backendIsGone() {
        guard host?.driver != nil, kind.linkStatus == nil else { return }
        if chardev.canReconnect, !hasUntrackedRequests { return }
        host?.fail("the vhost-user back end is gone")
    }

    var name: String { "\(kind.model) on chardev '\(chardev.id)'" }

    // MARK: Events

    func watch() throws(VMMError) {
        guard let channel else { return }
        let loop = vm.loop
        try loop.watch(channel.socket, .readable) { [weak self] _ in self?.socketReady() }
        try events.resume(host) { [weak self] in
            self?.isTracking == false
        } onEvent: { [weak self] queue in
            guard let self, isServing else { return }
            follow(queue)
            host?.usedBuffers(queue: queue)
        }
        let error = events.error
        try loop.watch(error, .readable) { [weak self] _ in
            guard let self, cbaton_eventfd_take(error) > 0, isServing else { return }
            host?.fail("the vhost-user back end reports a broken queue")
        }
        try watchRequests()
    }

    func unwatch() {
        let loop = vm.loop
        if let channel { loop.unwatch(channel.socket) }
        events.pause()
        loop.unwatch(events.error)
        if requestSocket >= 0 { loop.unwatch(requestSocket) }
    }

    /// Whether the connection has ended, or the back end has sent something.
    var socketHasNews: Bool {
        guard let channel else { return true }
        var state = pollfd(fd: channel.socket, events: Int16(POLLIN), revents: 0)
        return poll(&state, 1, 0) != 0
    }

    /// Whether the back end has closed the connection, and with it ended its work.
    private var hasClosed: Bool {
        guard let channel else { return true }
        var byte: UInt8 = 0
        return retryingInterrupts { recv(channel.socket, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT)) } == 0
    }

    /// Nothing is due on the connection between exchanges but its end, and the
    /// configuration.
    private func socketReady() {
        guard let channel else { return }
        if channel.awaitsConfig {
            do throws(VMMError) { try channel.continueGetConfig() } catch { disconnect(error.message) }
            return
        }
        var byte: UInt8 = 0
        let flags = Int32(MSG_PEEK | MSG_DONTWAIT)
        let count = retryingInterrupts { recv(channel.socket, &byte, 1, flags) }
        if count > 0 { return disconnect("it has sent something unasked") }
        if count < 0, isTransientFailure() { return }
        disconnect("it has closed the connection")
    }
}
