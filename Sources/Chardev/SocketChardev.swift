import BatonRuntime
import CBaton
import Glibc

/// `socket`: a stream socket, as server (one client at a time; the next waits
/// until the first has gone) or as client (reconnecting if asked to).
public final class SocketChardev: StreamChardev {
    public struct Configuration {
        public var address: SocketAddress
        public var isServer = false
        /// Server: start-up waits for the first client.
        public var waitsForClient = true
        /// Client: nanoseconds from a lost connection to the next attempt; 0: never.
        public var reconnectDelay: Int64 = 0
        /// Server: whether to give up waiting for a client; asked after every event.
        public var isCancelled: () -> Bool = { false }
        /// Server: clients speak telnet.
        public var isTelnet = false
        /// TCP: send small writes at once.
        public var noDelay = false
        public init(address: SocketAddress) { self.address = address }
    }

    public let configuration: Configuration
    /// The listening socket of a server, else -1. Owned.
    public private(set) var listenerFD: Int32 = -1
    /// The connection, else -1. Owned.
    public var connectionFD: Int32 { inputFD }
    /// The address as bound, with the port that the system chose.
    private var boundAddress: SocketAddress
    private var peer: SocketAddress?
    private var connecting: Int32 = -1
    private var reconnectTimer: EventLoop.Timer?
    private var telnet = TelnetFilter()
    /// `reopen-on-cpr=on`, and an exec is under way.
    private var isClosedForExec = false
    /// The socket file that this chardev made, for its removal.
    private var socketFile: SocketFile?

    /// Makes the chardev without a socket: `open` or `adopt` follows.
    public init(id: String, loop: EventLoop, configuration: Configuration, held: Bool = false) {
        self.configuration = configuration
        boundAddress = configuration.address
        super.init(id: id, backend: "socket", loop: loop, held: held)
    }

    public override var filename: String {
        let text = boundAddress.description + (configuration.isServer ? ",server=on" : "")
        guard isOpen else { return "disconnected:\(text)" }
        guard case .tcp(let host, let port)? = peer else { return text }
        return "\(text) <-> \(host):\(port)"
    }

    // MARK: Opening

    /// Listens (and waits for a client if so configured), or connects.
    /// - Throws: the system's error, except for a client that will reconnect.
    public func open() throws(VMMError) {
        if configuration.isServer {
            try adopt(listener: try configuration.address.listen())
            if configuration.waitsForClient { try waitForConnection(isCancelled: configuration.isCancelled) }
        } else if configuration.reconnectDelay > 0 {
            tryToConnect()
        } else {
            try connectNow()
        }
    }

    /// Takes over sockets that are open: of an earlier process, or of `fd=`.
    /// - Parameters:
    ///   - unsent: bytes for the peer that are still to be sent.
    ///   - inherited: they are those of an earlier process.
    public func adopt(
        listener: Int32 = -1, connection: Int32 = -1, unsent: [UInt8] = [], inherited: Bool = false
    ) throws(VMMError) {
        if listener >= 0 {
            listenerFD = listener
            try FD.setNonBlocking(listener, true)
            if case .unix = configuration.address {
                // An inherited one is the earlier process' to remove until the commit.
                if !inherited { socketFile = SocketFile(configuration.address) }
            } else if let address = SocketAddress.tcp(ofSocket: listener, peer: false) {
                boundAddress = address
            }
            if connection < 0 { try listenForClients() }
        }
        if connection >= 0 { try use(connection, unsent: unsent, inherited: inherited) }
    }

    private func use(_ fd: Int32, unsent: [UInt8] = [], inherited: Bool = false) throws(VMMError) {
        try FD.setNonBlocking(fd, true)
        try FD.setCloseOnExec(fd, true)
        peer = SocketAddress.tcp(ofSocket: fd, peer: true)
        if peer != nil, configuration.noDelay {
            var on: Int32 = 1
            setsockopt(fd, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
        }
        if listenerFD >= 0 { loop.unwatch(listenerFD) }
        telnet = TelnetFilter()
        let first = configuration.isTelnet && !inherited ? TelnetFilter.greeting + unsent : unsent
        try connect(input: fd, output: fd, unsent: first, inherited: inherited)
    }

    // MARK: Update

    public override var survivesUpdate: Bool { true }

    public override func handOver(to cpr: any MachineHandover) throws(VMMError) {
        guard !reopensOnCpr else { return }
        let sockets = frontend?.isMonitor == true ? cpr.monitorSockets : .handedOver
        guard sockets != .kept else { return }
        if listenerFD >= 0 { cpr.save(listenerFD, of: self, as: "listener") }
        if connectionFD >= 0, sockets == .handedOver { cpr.save(connectionFD, of: self, as: "connection") }
        cpr.handOver(self) { $0.put("unsent", bytes: unsentBytes) }
    }

    public override func forgetConnection(in cpr: any MachineHandover) {
        // Nobody else will say what is unsaid.
        releaseOutput()
        cpr.forget("connection", of: self)
    }

    public override func prepareForExec() {
        guard reopensOnCpr else { return }
        // Its name or port must be free for the next process.
        isClosedForExec = true
        shutDown()
    }

    public override func execFailed() {
        guard isClosedForExec else { return listenAgain() }
        isClosedForExec = false
        do throws(VMMError) {
            if configuration.isServer {
                try adopt(listener: try configuration.address.listen())
            } else {
                try open()
            }
        } catch {
            Report.warning("chardev '\(id)': \(error.message)")
        }
    }

    /// A server whose clients cannot find it any more is to be found again.
    private func listenAgain() {
        guard listenerFD >= 0 else { return }
        do throws(VMMError) {
            guard let fd = try configuration.address.listenAgain(socketFile) else { return }
            loop.unwatch(listenerFD)
            close(listenerFD)
            listenerFD = fd
            socketFile = SocketFile(configuration.address)
            if !isOpen { try listenForClients() }
        } catch {
            Report.warning("chardev '\(id)': \(error.message)")
        }
    }

    /// Goes on with the sockets of the process before.
    func inherit(_ heritage: ChardevHeritage) throws(VMMError) {
        let listener = heritage.claim("listener")
        let connection = heritage.claim("connection")
        if let listener {
            guard configuration.isServer, DescriptorKind.isSocket(listener, listening: true),
                DescriptorKind.isBound(listener, to: configuration.address)
            else { throw heritage.mismatch("a socket that listens on \(configuration.address.description)") }
        }
        if let connection {
            guard DescriptorKind.isSocket(connection, listening: false) else {
                throw heritage.mismatch("a connection")
            }
        }
        try adopt(
            listener: listener ?? -1, connection: connection ?? -1, unsent: try heritage.bytes("unsent"),
            inherited: true)
        if connection == nil, !configuration.isServer { abandonAttempt() }
    }

    public override func takeOver(_ changes: PartChanges) throws(VMMError) {
        var unsent: [UInt8]?
        if let state = changes.state {
            _ = try state.string("backend")
            unsent = try state.bytes("unsent")
        }
        func name(_ what: String) -> String { ChardevUpdate.name(id, what) }
        // A rollback of an update may have made a new one.
        switch changes.descriptor(name("listener")) {
        case .unchanged: break
        case .gone: closeListener()
        case .new(let fd):
            closeListener()
            try adopt(listener: fd, inherited: true)
        }
        switch changes.descriptor(name("connection")) {
        case .unchanged: if let unsent, isOpen { takeOver(unsent: unsent) }
        case .gone: forgetConnection()
        case .new(let fd):
            forgetConnection()
            reconnectTimer?.cancel()
            try adopt(connection: fd, unsent: unsent ?? [], inherited: true)
        }
    }

    private func closeListener() {
        guard listenerFD >= 0 else { return }
        close(listenerFD)
        listenerFD = -1
    }

    /// The process before has lost it, or has another.
    private func forgetConnection() {
        guard isOpen else { return }
        disconnect()
        peer = nil
        if !configuration.isServer { abandonAttempt() }
    }

    public override func release() {
        guard isHeld else { return }
        super.release()
        guard listenerFD >= 0, !isOpen else { return }
        do throws(VMMError) { try listenForClients() } catch { Report.warning("chardev '\(id)': \(error.message)") }
    }

    public override func committed() {
        super.committed()
        if listenerFD >= 0, socketFile == nil { socketFile = SocketFile(configuration.address) }
    }

    // MARK: Server

    private func listenForClients() throws(VMMError) {
        guard !isHeld else { return }
        try loop.watch(listenerFD, .readable) { [weak self] _ in self?.acceptClient() }
    }

    private func acceptClient() {
        guard !isOpen, let fd = loop.accept(listenerFD, for: "chardev '\(id)'") else { return }
        do throws(VMMError) {
            try use(fd)
        } catch {
            Report.warning("chardev '\(id)': \(error.message)")
            close(fd)
        }
    }

    // MARK: Client

    private func connectNow() throws(VMMError) {
        let (fd, connected) = try configuration.address.startConnecting()
        if !connected {
            var state = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
            _ = retryingInterrupts { Glibc.poll(&state, 1, -1) }
            if let error = connectionError(fd) {
                close(fd)
                throw error
            }
        }
        try use(fd)
    }

    private func connectionError(_ fd: Int32) -> VMMError? {
        var code: Int32 = 0
        var length = socklen_t(MemoryLayout<Int32>.size)
        guard getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length) == 0, code == 0 else {
            return .system("Failed to connect to '\(configuration.address.name)'", errno: code)
        }
        return nil
    }

    private func tryToConnect() {
        guard !isOpen, connecting < 0 else { return }
        do throws(VMMError) {
            let (fd, connected) = try configuration.address.startConnecting()
            if connected { return try use(fd) }
            connecting = fd
            try loop.watch(fd, .writable) { [weak self] _ in self?.finishConnecting() }
        } catch {
            abandonAttempt()
        }
    }

    private func finishConnecting() {
        let fd = connecting
        guard fd >= 0, connectionError(fd) == nil else { return abandonAttempt() }
        loop.unwatch(fd)
        connecting = -1
        do throws(VMMError) { try use(fd) } catch { close(fd) }
    }

    private func abandonAttempt() {
        if connecting >= 0 {
            loop.unwatch(connecting)
            close(connecting)
            connecting = -1
        }
        guard configuration.reconnectDelay > 0 else { return }
        reconnectTimer = loop.schedule(at: EventLoop.now &+ configuration.reconnectDelay) { [weak self] in
            self?.tryToConnect()
        }
    }

    // MARK: Front ends that use the descriptor

    public override var connectionDescriptor: Int32? { isOpen ? connectionFD : nil }
    public override var canReconnect: Bool { configuration.isServer || configuration.reconnectDelay > 0 }
    public override func endConnection() { if isOpen { peerClosed() } }

    public override func waitForConnection(isCancelled: () -> Bool) throws(VMMError) {
        guard !isOpen else { return }
        guard canReconnect else {
            throw VMMError("chardev '\(id)' is not connected to \(configuration.address.description)")
        }
        Report.info("waiting for connection on: \(filename)")
        while !isOpen {
            // The loop, and not just the socket: signals come through it.
            loop.poll(timeout: -1)
            if isCancelled() { throw VMMError("interrupted while waiting for a connection") }
        }
    }

    // MARK: Descriptors

    public override var descriptors: [Int32] { super.descriptors + (listenerFD >= 0 ? [listenerFD] : []) }

    /// Descriptors that a client of a monitor has sent, not taken yet. Owned.
    private var received: [Int32] = []

    public override func receive(_ fd: Int32, into buffer: UnsafeMutableRawBufferPointer) -> Int {
        // What is sent to a device is discarded by the kernel.
        guard frontend?.isMonitor == true, peer == nil else { return receiveText(fd, into: buffer) }
        let limit = Int(CBATON_MESSAGE_FDS)
        var descriptors = [Int32](repeating: -1, count: limit)
        var count: Int32 = 0
        let length = cbaton_receive_fds(fd, buffer.baseAddress, buffer.count, &descriptors, &count, 0)
        received += descriptors.prefix(max(0, Int(count)))
        while received.count > limit { close(received.removeFirst()) }
        return length
    }

    private func receiveText(_ fd: Int32, into buffer: UnsafeMutableRawBufferPointer) -> Int {
        let count = super.receive(fd, into: buffer)
        guard configuration.isTelnet, count > 0 else { return count }
        let kept = telnet.filter(UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]))
        if kept == 0 { errno = EAGAIN }
        return kept > 0 ? kept : -1
    }

    public override func takeDescriptor() -> Int32? { received.isEmpty ? nil : received.removeFirst() }

    public override func closeDescriptors(input: Int32, output: Int32) {
        for fd in received { close(fd) }
        received = []
        if isAtEnd { shutdown(input, Int32(SHUT_RDWR)) }
        super.closeDescriptors(input: input, output: output)
    }

    // MARK: Disconnection

    /// The connection ends for whoever else has it, too: as long as the other VMM of an update has, the peer would wait for an
    /// answer that does not come.
    private var isAtEnd = false

    public override func peerClosed() {
        isAtEnd = true
        disconnect()
        isAtEnd = false
        peer = nil
        if listenerFD >= 0 {
            try? listenForClients()
        } else if !configuration.isServer {
            abandonAttempt()
        }
    }
    public override func outputFailed() { peerClosed() }

    public override func transmit(_ fd: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
        Glibc.send(fd, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
    }

    public override func leaveGuest() {
        closeListener()
        socketFile?.removeIfUnused()
    }

    public override func shutDown() {
        reconnectTimer?.cancel()
        disconnect()
        if connecting >= 0 {
            loop.unwatch(connecting)
            close(connecting)
            connecting = -1
        }
        guard listenerFD >= 0 else { return }
        loop.unwatch(listenerFD)
        close(listenerFD)
        listenerFD = -1
        socketFile?.remove()
    }
}
