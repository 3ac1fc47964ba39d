import BatonRuntime
import CBaton
import Glibc

/// The back end's own channel, on which it sends and this side answers.
extension VhostUserDevice {
    /// Gives the back end its end of the channel, if it wants one.
    func openRequestChannel(_ channel: VhostUserChannel) throws(VMMError) {
        guard backend.has(VhostUser.ProtocolFeature.backendRequests) else { return }
        var ends: [Int32] = [-1, -1]
        guard cbaton_socketpair(&ends) == 0 else { throw .system("cannot make a channel for the back end") }
        defer { close(ends[1]) }
        do throws(VMMError) {
            try FD.setNonBlocking(ends[0], true)
            try channel.set(.setBackendReqFD, [], fds: [ends[1]])
        } catch {
            close(ends[0])
            throw error
        }
        requestSocket = ends[0]
        pendingRequest = []
    }

    func watchRequests() throws(VMMError) {
        guard requestSocket >= 0 else { return }
        try vm.loop.watch(requestSocket, .readable) { [weak self] _ in self?.requestReady() }
    }

    /// Reads what there is, at most to the end of one message.
    private func requestReady() {
        guard let wanted = VhostUserDevice.missingBytes(after: pendingRequest) else { return }
        var bytes = [UInt8](repeating: 0, count: wanted)
        var fds = [Int32](repeating: -1, count: Int(CBATON_MESSAGE_FDS))
        var fdCount: Int32 = 0
        let count = retryingInterrupts {
            cbaton_receive_fds(requestSocket, &bytes, wanted, &fds, &fdCount, Int32(MSG_DONTWAIT))
        }
        // No request that is served here has descriptors.
        if fdCount > 0 { for fd in fds.prefix(Int(fdCount)) { close(fd) } }
        if count < 0, isTransientFailure() { return }
        guard count > 0 else {
            // Without its channel a back end still serves the queues.
            vm.loop.unwatch(requestSocket)
            close(requestSocket)
            requestSocket = -1
            return
        }
        guard fdCount == 0 else { return disconnect("its request has file descriptors") }
        pendingRequest += bytes.prefix(count)
        guard let missing = VhostUserDevice.missingBytes(after: pendingRequest) else {
            return disconnect("its request is too long")
        }
        guard missing == 0, let header = VhostUserHeader(pendingRequest[...]) else { return }
        pendingRequest = []
        handle(header)
    }

    /// Bytes to the end of the header or of the message; nil when it is longer
    /// than any.
    static func missingBytes(after start: [UInt8]) -> Int? {
        guard let header = VhostUserHeader(start[...]) else { return VhostUser.headerSize - start.count }
        guard header.size <= UInt32(VhostUser.maxPayload) else { return nil }
        return VhostUser.headerSize + Int(header.size) - start.count
    }

    private func handle(_ header: VhostUserHeader) {
        guard header.flags & VhostUser.Flag.versionMask == VhostUser.Flag.version,
            header.flags & VhostUser.Flag.reply == 0
        else { return disconnect("its request has the flags \(Hex(UInt64(header.flags)))") }
        let isKnown = header.request == VhostUser.BackendRequest.configChange && kind.backendConfigSize > 0
        if header.flags & VhostUser.Flag.needReply != 0 {
            // It may wait for this, and not answer anything before.
            let reply = VhostUserHeader(
                request: header.request, flags: VhostUser.Flag.version | VhostUser.Flag.reply, size: 8)
            let bytes = reply.bytes + littleEndianBytes(isKnown ? 0 : 1 as UInt64)
            let sent = cbaton_send_fds(requestSocket, bytes, bytes.count, nil, 0, Int32(MSG_DONTWAIT))
            guard sent == bytes.count else { return disconnect("it does not take answers to its requests") }
        }
        if isKnown { refreshConfig() }
    }

    // MARK: The configuration

    /// Nanoseconds between two readings at least.
    private static let refreshInterval: Int64 = 10_000_000

    /// Reads the configuration space anew while the guest goes on: a back end
    /// may say that it has changed as often as it likes, and take its time to
    /// answer. There is one reading at a time, and a pause after it.
    private func refreshConfig() {
        guard let channel else { return }
        guard isActive, refreshTimer == nil else {
            configIsStale = true
            return
        }
        configIsStale = false
        channel.begin()
        channel.onConfig = { [weak self] in self?.refreshed($0) }
        do throws(VMMError) {
            try channel.startGetConfig(size: kind.backendConfigSize)
        } catch {
            return disconnect(error.message)
        }
        let limit = VhostUser.timeLimit
        refreshTimer = vm.loop.schedule(at: EventLoop.now + limit) { [weak self] in
            self?.refreshTimer = nil
            self?.disconnect(
                "vhost-user message \(VhostUser.Request.getConfig.rawValue) (getConfig) "
                    + "was not answered within \(limit / 1_000_000) ms")
        }
    }

    private func refreshed(_ config: [UInt8]) {
        backendConfig = config
        refreshTimer?.cancel()
        refreshTimer = vm.loop.schedule(at: EventLoop.now + Self.refreshInterval) { [weak self] in
            guard let self else { return }
            refreshTimer = nil
            if configIsStale { refreshConfig() }
        }
        host?.configChanged(self.config)
    }

    /// Brings the configuration up to date before a pause, as what comes after
    /// that may be another process.
    func finishRefresh() {
        defer {
            refreshTimer?.cancel()
            refreshTimer = nil
            configIsStale = false
        }
        guard let channel, channel.awaitsConfig || configIsStale else { return }
        channel.begin()
        do throws(VMMError) {
            try channel.settle()
            guard configIsStale else { return }
            backendConfig = try channel.getConfig(size: kind.backendConfigSize)
            host?.configChanged(config)
        } catch {
            disconnect(error.message)
        }
    }
}
