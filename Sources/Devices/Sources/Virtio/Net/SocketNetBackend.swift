import BatonRuntime
import CBaton
import Glibc

/// `-netdev socket` and `-netdev stream`: Ethernet frames over a stream
/// socket, each after its length in four big-endian bytes, as in QEMU.
///
/// The guest's link is up whether or not a peer is there, so that a restart of
/// either side does not take the guest's network configuration down.
public final class SocketNetBackend: KeptNetBackend {
    /// Where the peer comes from.
    public enum Peer {
        case listen(SocketAddress)
        /// With nanoseconds from a lost connection to the next attempt; 0: never.
        case connect(SocketAddress, reconnectDelay: Int64)
        /// A connected stream socket; owned by the back end from here on.
        case descriptor(Int32)
    }

    private let loop: EventLoop
    private let peer: Peer
    private var listener: Int32 = -1
    private var connection: Int32 = -1
    private var isConnecting = false
    private var reconnectTimer: EventLoop.Timer?
    /// The socket's file that this process is to remove.
    private var file: SocketFile?
    /// What the connection is watched for; empty: not at all.
    private var watched: IOEvents = []
    /// The machine has run: from now on the peer's frames may be taken.
    private var isStarted = false

    private let stream = FrameStream()

    /// - Parameter heritage: what the process before left, instead of opening.
    /// - Throws: an error when the address cannot be listened on or connected to.
    public init(
        id: String, backend: String, peer: Peer, vm: VirtualMachine, heritage: NetHeritage? = nil
    ) throws(VMMError) {
        loop = vm.loop
        self.peer = peer
        super.init(id: id, backend: backend, vm: vm)
        if let heritage { try inherit(heritage) } else { try open() }
    }

    deinit { shutDown() }

    // MARK: Connection

    private func open() throws(VMMError) {
        switch peer {
        case .listen(let address):
            listener = try address.listen()
            file = SocketFile(address)
            try watchListener()
        case .connect(let address, let delay):
            do throws(VMMError) {
                try connect(to: address)
            } catch {
                guard delay > 0 else { throw error }
                connectLater(delay)
            }
        case .descriptor(let fd):
            guard DescriptorKind.isSocket(fd, listening: false) else {
                throw VMMError("netdev '\(id)': fd \(fd) is not an open stream socket")
            }
            try FD.setNonBlocking(fd, true)
            try FD.setCloseOnExec(fd, true)
            try adopt(fd, connecting: false)
        }
    }

    private func watchListener() throws(VMMError) {
        // One peer at a time; the next waits in the listener's queue.
        guard isCommitted, listener >= 0, connection < 0 else { return }
        try loop.watch(listener, .readable) { [unowned self] _ in accept() }
    }

    private func accept() {
        guard let fd = loop.accept(listener, for: "netdev '\(id)'") else { return }
        loop.unwatch(listener)
        do throws(VMMError) { try adopt(fd, connecting: false) } catch { disconnect(error.message) }
    }

    private func connect(to address: SocketAddress) throws(VMMError) {
        let (fd, connected) = try address.startConnecting()
        try adopt(fd, connecting: !connected)
    }

    private func connectLater(_ delay: Int64) {
        reconnectTimer?.cancel()
        reconnectTimer = loop.schedule(at: EventLoop.now &+ delay) { [weak self] in self?.tryToConnect() }
    }

    private func tryToConnect() {
        guard connection < 0, case .connect(let address, let delay) = peer, delay > 0 else { return }
        owesAnnouncement = announcesGuest
        do throws(VMMError) { try connect(to: address) } catch { connectLater(delay) }
    }

    /// For a peer that may be another process when it is connected to again, and learns by the guest's first frame
    /// where that is, as passt does: a guest that only answers would wait for it for ever.
    public var announcesGuest = false
    private var owesAnnouncement = false

    /// Sends what QEMU's `announce_self` sends: a RARP request for the card's own address (RFC 903).
    private func announce() {
        guard owesAnnouncement, connection >= 0, !isConnecting, cardAddress.count == 6 else { return }
        owesAnnouncement = false
        let (broadcast, unknown) = ([UInt8](repeating: 0xff, count: 6), [UInt8](repeating: 0, count: 4))
        // Ethernet and IPv4, whose addresses have 6 and 4 bytes; 3 is a request.
        let request: [UInt8] = [0, 1, 8, 0, 6, 4, 0, 3] + cardAddress + unknown + cardAddress + unknown
        var frame = broadcast + cardAddress + [0x80, 0x35] + request
        frame += [UInt8](repeating: 0, count: 60 - frame.count)
        frame.withUnsafeBytes { bytes in withUnsafePointer(to: bytes) { send(UnsafeBufferPointer(start: $0, count: 1)) }
        }
    }

    private func adopt(_ fd: Int32, connecting: Bool) throws(VMMError) {
        connection = fd
        isConnecting = connecting
        stream.clear()
        try updateWatch()
        announce()
    }

    private var wantedEvents: IOEvents {
        guard isCommitted else { return [] }
        if isConnecting { return .writable }
        var events: IOEvents = []
        if isStarted, !stream.isBlocked { events.insert(.readable) }
        if stream.hasUnsent { events.insert(.writable) }
        return events
    }

    private func updateWatch() throws(VMMError) {
        guard connection >= 0 else { return }
        let events = wantedEvents
        guard events != watched else { return }
        if events.isEmpty {
            // A peer that has gone would be told of again and again, while
            // what it sent last cannot be taken yet.
            loop.unwatch(connection)
        } else if watched.isEmpty {
            try loop.watch(connection, events) { [unowned self] in handle($0) }
        } else {
            loop.setEvents(connection, events)
        }
        watched = events
    }

    private func rewatch() {
        do throws(VMMError) { try updateWatch() } catch { disconnect(error.message) }
    }

    private func handle(_ events: IOEvents) {
        if isConnecting {
            var code: Int32 = 0
            var length = socklen_t(MemoryLayout<Int32>.size)
            getsockopt(connection, SOL_SOCKET, SO_ERROR, &code, &length)
            guard code == 0 else {
                return disconnect(VMMError.system("connection failed", errno: code).message)
            }
            isConnecting = false
            announce()
        }
        if events.contains(.writable) { finish(stream.flush(connection)) }
        if connection >= 0, isStarted, !stream.isBlocked { finish(stream.read(connection) { deliver($0) }) }
        rewatch()
    }

    /// Ends a connection that has come to its end.
    private func finish(_ end: FrameStream.End?) {
        if let end { disconnect(end.reason) }
    }

    private func closeConnection() {
        guard connection >= 0 else { return }
        loop.unwatch(connection)
        close(connection)
        connection = -1
        watched = []
        isConnecting = false
        stream.clear()
    }

    private func disconnect(_ reason: String) {
        guard connection >= 0 else { return }
        Log.trace("net_backend_disconnect", "\(id): \(reason)")
        closeConnection()
        switch peer {
        case .listen:
            do throws(VMMError) { try watchListener() } catch { Report.warning("netdev \(id): \(error.message)") }
        case .connect(_, let delay) where delay > 0: connectLater(delay)
        default: Report.warning("netdev \(id): disconnected: \(reason)")
        }
    }

    public override func leaveGuest() {
        if listener >= 0 { close(listener) }
        file?.removeIfUnused()
    }

    public override func shutDown() {
        reconnectTimer?.cancel()
        closeConnection()
        guard listener >= 0 else { return }
        loop.unwatch(listener)
        close(listener)
        listener = -1
        file?.remove()
    }

    // MARK: Frames

    public override func receiveReady() {
        isStarted = true
        guard connection >= 0 else { return }
        finish(stream.deliverAgain { deliver($0) })
        rewatch()
    }

    public override func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>) {
        guard connection >= 0, !isConnecting else { return }
        finish(stream.send(parts, to: connection))
        if stream.hasUnsent { rewatch() }
    }

    // MARK: Update

    override func handOver(to cpr: CprController) throws(VMMError) {
        if listener >= 0 { cpr.save(listener, of: self, as: "listener") }
        if connection >= 0 { cpr.save(connection, of: self, as: "connection") }
        cpr.handOver(self) {
            $0.put("connecting", isConnecting)
            $0.put("received", bytes: stream.received)
            $0.put("unsent", bytes: stream.unsent)
        }
    }

    /// Goes on with the sockets of the process before, from the commit on.
    private func inherit(_ heritage: NetHeritage) throws(VMMError) {
        listener = heritage.claim("listener") ?? -1
        connection = heritage.claim("connection") ?? -1
        if listener >= 0 {
            guard case .listen(let address) = peer, DescriptorKind.isSocket(listener, listening: true),
                DescriptorKind.isBound(listener, to: address)
            else { throw heritage.mismatch("has inherited a socket that does not listen where it is to") }
        } else if case .listen = peer {
            throw heritage.mismatch("was not listening in the process before")
        }
        guard connection < 0 || DescriptorKind.isSocket(connection, listening: false) else {
            throw heritage.mismatch("has inherited something that is not a connection")
        }
        isConnecting = try heritage.state.bool("connecting")
        try stream.restore(
            received: try heritage.state.bytes("received", count: 0...FrameStream.maxReceived),
            unsent: try heritage.state.bytes("unsent", count: 0...FrameStream.maxUnsent))
        try heritage.state.finish()
    }

    override func takeOver(_ changes: PartChanges) throws(VMMError) {
        switch NetHeritage.descriptor("listener", of: id, in: changes) {
        case .unchanged: break
        case .gone: throw VMMError("it does not listen any more")
        case .new(let fd):
            if listener >= 0 { close(listener) }
            listener = fd
        }
        switch NetHeritage.descriptor("connection", of: id, in: changes) {
        case .unchanged: break
        case .gone: forgetConnection()
        case .new(let fd):
            forgetConnection()
            connection = fd
        }
        guard let state = changes.state else { return }
        isConnecting = try state.bool("connecting")
        try stream.restore(
            received: try state.bytes("received", count: 0...FrameStream.maxReceived),
            unsent: try state.bytes("unsent", count: 0...FrameStream.maxUnsent))
    }

    /// The process before has lost it, or has another.
    private func forgetConnection() {
        guard connection >= 0 else { return }
        close(connection)
        connection = -1
        stream.clear()
    }

    override func execFailed() {
        guard listener >= 0, case .listen(let address) = peer else { return }
        do throws(VMMError) {
            guard let fd = try address.listenAgain(file) else { return }
            loop.unwatch(listener)
            close(listener)
            listener = fd
            file = SocketFile(address)
            try watchListener()
        } catch {
            Report.warning("netdev \(id): \(error.message)")
        }
    }

    override func committed() {
        // An inherited one was the earlier process' to remove until now.
        if case .listen(let address) = peer, file == nil { file = SocketFile(address) }
        do throws(VMMError) { try watchListener() } catch { Report.warning("netdev \(id): \(error.message)") }
        rewatch()
        tryToConnect()
    }
}
