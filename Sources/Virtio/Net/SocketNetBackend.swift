import BatonRuntime
import Glibc

/// `-netdev socket` and `-netdev stream`: Ethernet frames over a stream
/// socket, each after its length in four big-endian bytes, as in QEMU.
///
/// The guest's link is up whether or not a peer is there, so that a restart of
/// either side does not take the guest's network configuration down.
public final class SocketNetBackend: NetBackend {
    /// Where the peer comes from.
    public enum Peer {
        case listen(SocketAddress)
        case connect(SocketAddress)
        /// A connected stream socket; owned by the back end from here on.
        case descriptor(Int32)
    }

    /// As QEMU's NET_BUFSIZE.
    static let maxFrame = 4096 + 65536
    /// Bytes that wait for a slow peer; beyond that, frames are dropped.
    private static let maxBacklog = 1 << 20

    private let loop: EventLoop
    private let peer: Peer
    private var listener: Int32 = -1
    private var connection: Int32 = -1
    private var isConnecting = false
    /// The machine has run: from now on the peer's frames may be taken.
    private var isStarted = false

    /// Bytes from the peer that are not yet the guest's, from `inputStart` on.
    private let input: UnsafeMutableRawBufferPointer
    private var inputStart = 0
    private var inputEnd = 0
    private var isHeld = false
    private let frame: UnsafeMutableRawBufferPointer
    /// Bytes that the peer did not take yet.
    private var backlog: [UInt8] = []

    /// - Throws: an error when the address cannot be listened on or connected to.
    public init(id: String, backend: String, peer: Peer, loop: EventLoop) throws(VMMError) {
        self.loop = loop
        self.peer = peer
        input = .allocate(byteCount: 2 * (4 + SocketNetBackend.maxFrame), alignment: 16)
        frame = .allocate(byteCount: 4 + SocketNetBackend.maxFrame, alignment: 16)
        super.init(id: id, backend: backend)
        switch peer {
        case .listen(let address):
            listener = try address.listen()
            try listen()
        case .connect(let address):
            let (fd, connected) = try address.startConnecting()
            try adopt(fd, connecting: !connected)
        case .descriptor(let fd):
            try SocketNetBackend.checkStream(fd, id)
            try FD.setNonBlocking(fd, true)
            try FD.setCloseOnExec(fd, true)
            try adopt(fd, connecting: false)
        }
    }

    deinit {
        shutDown()
        input.deallocate()
        frame.deallocate()
    }

    private static func checkStream(_ fd: Int32, _ id: String) throws(VMMError) {
        var type: Int32 = 0
        var length = socklen_t(MemoryLayout<Int32>.size)
        guard getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0, type == Int32(SOCK_STREAM.rawValue) else {
            throw VMMError("netdev '\(id)': fd \(fd) is not a stream socket")
        }
    }

    // MARK: Connection

    private func listen() throws(VMMError) {
        try loop.watch(listener, .readable) { [unowned self] _ in accept() }
    }

    private func accept() {
        let fd = retryingInterrupts { Glibc.accept(listener, nil, nil) }
        guard fd >= 0 else { return }
        do throws(VMMError) {
            try FD.setCloseOnExec(fd, true)
            try FD.setNonBlocking(fd, true)
            // One peer at a time; the next waits in the listener's queue.
            loop.unwatch(listener)
            try adopt(fd, connecting: false)
        } catch {
            Report.warning("netdev \(id): \(error.message)")
            close(fd)
        }
    }

    private func adopt(_ fd: Int32, connecting: Bool) throws(VMMError) {
        connection = fd
        isConnecting = connecting
        inputStart = 0
        inputEnd = 0
        backlog = []
        try loop.watch(fd, wantedEvents) { [unowned self] events in handle(events) }
    }

    private var wantedEvents: IOEvents {
        if isConnecting { return .writable }
        var events: IOEvents = []
        if isStarted, !isHeld { events.insert(.readable) }
        if !backlog.isEmpty { events.insert(.writable) }
        return events
    }

    private func updateEvents() { if connection >= 0 { loop.setEvents(connection, wantedEvents) } }

    private func handle(_ events: IOEvents) {
        if isConnecting {
            var code: Int32 = 0
            var length = socklen_t(MemoryLayout<Int32>.size)
            getsockopt(connection, SOL_SOCKET, SO_ERROR, &code, &length)
            guard code == 0 else {
                return disconnect(VMMError.system("connection failed", errno: code).message)
            }
            isConnecting = false
        }
        if events.contains(.writable) { flush() }
        if connection >= 0, isStarted, !isHeld {
            read()
        } else if connection >= 0, !events.isDisjoint(with: [.hangup, .error]) {
            // Whatever the peer sent last cannot be taken: it would be lost,
            // and the loop would spin.
            disconnect("the peer is gone")
        }
        updateEvents()
    }

    private func disconnect(_ reason: String) {
        guard connection >= 0 else { return }
        Log.trace("net_socket_disconnect", "\(id): \(reason)")
        loop.unwatch(connection)
        close(connection)
        connection = -1
        isConnecting = false
        isHeld = false
        inputStart = 0
        inputEnd = 0
        backlog = []
        if listener >= 0 {
            do { try listen() } catch { Report.warning("netdev \(id): \(error.message)") }
        } else {
            Report.warning("netdev \(id): disconnected: \(reason)")
        }
    }

    public override func shutDown() {
        if connection >= 0 {
            loop.unwatch(connection)
            close(connection)
            connection = -1
        }
        if listener >= 0 {
            loop.unwatch(listener)
            close(listener)
            listener = -1
            if case .listen(.unix(let path)) = peer { unlink(path) }
        }
    }

    // MARK: From the peer

    private func read() {
        if inputStart > 0 {
            // Room for one more whole frame behind what is left.
            let rest = UnsafeRawBufferPointer(rebasing: input[inputStart..<inputEnd])
            input.copyMemory(from: rest)
            inputEnd -= inputStart
            inputStart = 0
        }
        let room = UnsafeMutableRawBufferPointer(rebasing: input[inputEnd...])
        let count = retryingInterrupts { Glibc.read(connection, room.baseAddress, room.count) }
        if count < 0 {
            if errno != EAGAIN { disconnect(VMMError.system("read failed").message) }
            return
        }
        guard count > 0 else { return disconnect("the peer closed the connection") }
        inputEnd += count
        deliver()
    }

    /// Gives the guest every whole frame, until it has no room.
    private func deliver() {
        while inputEnd - inputStart >= 4 {
            var length = 0
            for index in 0..<4 { length = length << 8 | Int(input[inputStart + index]) }
            guard length <= SocketNetBackend.maxFrame else {
                return disconnect("the peer sent a frame of \(length) bytes (at most \(SocketNetBackend.maxFrame))")
            }
            guard inputEnd - inputStart - 4 >= length else { return }
            let start = inputStart + 4
            if length > 0, let receiver, !receiver(UnsafeRawBufferPointer(rebasing: input[start..<start + length])) {
                isHeld = true
                return
            }
            inputStart = start + length
        }
    }

    public override func receiveReady() {
        isStarted = true
        guard connection >= 0 else { return }
        isHeld = false
        deliver()
        updateEvents()
    }

    // MARK: To the peer

    public override func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>) {
        guard connection >= 0, !isConnecting else { return }
        var length = 0
        for part in parts {
            guard part.count <= SocketNetBackend.maxFrame - length else { return }
            if let from = part.baseAddress, let to = frame.baseAddress {
                (to + (4 + length)).copyMemory(from: from, byteCount: part.count)
            }
            length += part.count
        }
        for index in 0..<4 { frame[index] = UInt8(truncatingIfNeeded: length >> (24 - 8 * index)) }
        let whole = UnsafeRawBufferPointer(rebasing: frame[..<(4 + length)])
        guard backlog.isEmpty else {
            if backlog.count + whole.count <= SocketNetBackend.maxBacklog { backlog += whole }
            return
        }
        guard let sent = write(whole) else { return }
        if sent < whole.count {
            backlog += whole[sent...]
            updateEvents()
        }
    }

    private func flush() {
        guard !backlog.isEmpty, let sent = backlog.withUnsafeBytes({ write($0) }) else { return }
        backlog.removeFirst(sent)
    }

    /// - Returns: the bytes that the peer took; nil when it is gone.
    private func write(_ bytes: UnsafeRawBufferPointer) -> Int? {
        let count = retryingInterrupts {
            Glibc.send(connection, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
        }
        if count >= 0 { return count }
        if errno == EAGAIN { return 0 }
        disconnect(VMMError.system("write failed").message)
        return nil
    }
}
