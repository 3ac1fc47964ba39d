import BatonRuntime
import CBaton
import Glibc

/// Descriptors that came with a message; what nobody took is closed.
final class ReceivedFDs {
    private var fds: [Int32] = []
    deinit { for fd in fds { close(fd) } }
    var count: Int { fds.count }
    func add(_ more: ArraySlice<Int32>) { fds += more }
    /// Gives the last one to the caller.
    func take() -> Int32? { fds.popLast() }
}

/// The front end's side of one connection: sends a message, waits for its
/// reply, and believes nothing that comes.
///
/// Every call blocks up to the deadline set by `begin`. After an error the two
/// sides no longer agree where a message starts: the connection must end.
final class VhostUserChannel {
    /// Borrowed from the chardev.
    let socket: Int32
    private var deadline: Int64 = 0
    /// Whether REPLY_ACK was negotiated.
    var acknowledges = false

    init(socket: Int32) { self.socket = socket }

    /// Starts the clock for a sequence of messages.
    func begin() { deadline = EventLoop.now + VhostUser.timeLimit }

    var isLate: Bool { EventLoop.now >= deadline }

    // MARK: Exchanges

    /// Sends a request that changes something; with REPLY_ACK waits until the
    /// back end has carried it out.
    func set(_ request: VhostUser.Request, _ payload: [UInt8], fds: [Int32] = []) throws(VMMError) {
        try send(request, payload, fds: fds, needReply: acknowledges)
        guard acknowledges else { return }
        let (bytes, _) = try receive(request, fdCount: 0...0)
        var cursor = ByteCursor(bytes[...])
        guard let status = cursor.unsigned(UInt64.self), cursor.isAtEnd else {
            throw problem(request, "has an acknowledgement of \(bytes.count) bytes")
        }
        guard status == 0 else { throw problem(request, "was refused (\(status))") }
    }

    /// Sends a request that has a reply of its own.
    /// - Parameter fdCount: how many descriptors may come with the reply.
    func get(
        _ request: VhostUser.Request, _ payload: [UInt8] = [], fdCount: ClosedRange<Int> = 0...0
    ) throws(VMMError) -> (payload: [UInt8], fds: ReceivedFDs) {
        try send(request, payload, fds: [], needReply: false)
        return try receive(request, fdCount: fdCount)
    }

    /// Sends a request whose reply is one 64-bit number.
    func getNumber(_ request: VhostUser.Request) throws(VMMError) -> UInt64 {
        let (bytes, _) = try get(request)
        var cursor = ByteCursor(bytes[...])
        guard let value = cursor.unsigned(UInt64.self), cursor.isAtEnd else {
            throw problem(request, "has a reply of \(bytes.count) bytes, not 8")
        }
        return value
    }

    func problem(_ request: VhostUser.Request, _ what: String) -> VMMError {
        VMMError("vhost-user message \(request.rawValue) (\(request)) \(what)")
    }

    // MARK: Sending

    private func send(
        _ request: VhostUser.Request, _ payload: [UInt8], fds: [Int32], needReply: Bool
    ) throws(VMMError) {
        let flags = VhostUser.Flag.version | (needReply ? VhostUser.Flag.needReply : 0)
        let header = VhostUserHeader(request: request.rawValue, flags: flags, size: UInt32(payload.count))
        let message = header.bytes + payload
        var done = 0
        while done < message.count {
            let sent = message.withUnsafeBytes { bytes in
                retryingInterrupts {
                    cbaton_send_fds(
                        socket, bytes.baseAddress.map { $0 + done }, bytes.count - done, fds,
                        done == 0 ? fds.count : 0, Int32(MSG_DONTWAIT))
                }
            }
            if sent > 0 {
                done += sent
            } else if sent < 0, errno == EAGAIN || errno == EWOULDBLOCK {
                try wait(POLLOUT, request)
            } else {
                throw .system("vhost-user message \(request.rawValue) (\(request)) could not be sent")
            }
        }
    }

    /// Waits until the socket is ready.
    private func wait(_ event: Int32, _ request: VhostUser.Request) throws(VMMError) {
        while true {
            let left = deadline - EventLoop.now
            guard left > 0 else {
                throw problem(request, "was not answered within \(VhostUser.timeLimit / 1_000_000) ms")
            }
            var state = pollfd(fd: socket, events: Int16(event), revents: 0)
            if poll(&state, 1, Int32(truncatingIfNeeded: left / 1_000_000 + 1)) > 0 { return }
        }
    }

    // MARK: Receiving

    private func receive(
        _ request: VhostUser.Request, fdCount: ClosedRange<Int>
    ) throws(VMMError) -> ([UInt8], ReceivedFDs) {
        let fds = ReceivedFDs()
        let head = try read(VhostUser.headerSize, request, fds)
        guard let header = VhostUserHeader(head[...]) else { throw problem(request, "has a reply without a header") }
        guard header.request == request.rawValue else {
            throw problem(request, "was answered as message \(header.request)")
        }
        guard header.flags & VhostUser.Flag.versionMask == VhostUser.Flag.version,
            header.flags & VhostUser.Flag.reply != 0
        else { throw problem(request, "was answered with the flags \(Hex(UInt64(header.flags)))") }
        guard header.size <= UInt32(VhostUser.maxPayload) else {
            throw problem(request, "was answered with \(header.size) bytes")
        }
        let payload = try read(Int(header.size), request, fds)
        guard fdCount.contains(fds.count) else {
            throw problem(request, "was answered with \(fds.count) file descriptors")
        }
        return (payload, fds)
    }

    /// Reads exactly `count` bytes, and what descriptors come with them.
    private func read(_ count: Int, _ request: VhostUser.Request, _ fds: ReceivedFDs) throws(VMMError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            var some = [Int32](repeating: -1, count: Int(CBATON_MESSAGE_FDS))
            var someCount: Int32 = 0
            let got = bytes.withUnsafeMutableBytes { buffer in
                retryingInterrupts {
                    cbaton_receive_fds(
                        socket, buffer.baseAddress.map { $0 + done }, count - done, &some, &someCount,
                        Int32(MSG_DONTWAIT))
                }
            }
            if got < 0, errno == EAGAIN || errno == EWOULDBLOCK {
                try wait(POLLIN, request)
                continue
            }
            if got < 0 { throw .system("the connection failed") }
            if someCount < 0 { throw problem(request, "was answered with too many file descriptors") }
            fds.add(some.prefix(Int(someCount)))
            if got == 0 { throw VMMError("the back end has closed the connection") }
            done += got
        }
        return bytes
    }
}
