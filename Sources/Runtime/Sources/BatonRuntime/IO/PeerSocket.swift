import CBaton
import Glibc

/// Why an exchange with a peer has ended. After any of these the two sides may
/// no longer agree where a message starts: the connection must end.
public enum PeerFailure: Error {
    /// The deadline has passed.
    case late
    /// The peer has closed the connection.
    case closed
    /// More descriptors came than a message can carry here; none is open.
    case tooManyDescriptors
    /// An error number.
    case system(Int32)
}

/// Descriptors that came with a message; what nobody took is closed.
public final class ReceivedFDs {
    private var fds: [Int32] = []

    public init() {}
    deinit { for fd in fds { close(fd) } }

    public var count: Int { fds.count }
    /// Gives the last one to the caller, who owns it now.
    public func take() -> Int32? { fds.popLast() }
    fileprivate func add(_ more: ArraySlice<Int32>) { fds += more }
}

/// A connected UNIX stream socket to a process that serves a device: sends and
/// receives whole messages, with descriptors, and never for longer than was
/// allowed. Main thread only.
public final class PeerSocket {
    /// Borrowed from whoever made it.
    public let fd: Int32
    private var deadline: Int64 = 0
    /// Another descriptor that must not wait while this socket does: the peer
    /// may need what is asked there to answer here. Called when it is readable.
    public var attendant: (fd: Int32, serve: () -> Void)?

    /// - Parameter fd: stays the caller's, and must stay open.
    public init(_ fd: Int32) { self.fd = fd }

    /// Starts the clock for a sequence of messages.
    /// - Parameter limit: nanoseconds.
    public func begin(limit: Int64) { deadline = EventLoop.now + limit }

    public var isLate: Bool { EventLoop.now >= deadline }

    /// Sends all of a message, and descriptors with its first byte; these stay
    /// the caller's.
    public func send(_ message: [UInt8], fds: [Int32] = []) throws(PeerFailure) {
        var done = 0
        while done < message.count {
            let sent = message.withUnsafeBytes { bytes in
                retryingInterrupts {
                    cbaton_send_fds(
                        fd, bytes.baseAddress.map { $0 + done }, bytes.count - done, fds, done == 0 ? fds.count : 0,
                        Int32(MSG_DONTWAIT))
                }
            }
            if sent > 0 {
                done += sent
            } else if sent < 0, errno == EAGAIN || errno == EWOULDBLOCK {
                try wait(POLLOUT)
            } else {
                throw .system(errno)
            }
        }
    }

    /// Receives exactly `count` bytes, and adds what descriptors come with them.
    public func receive(_ count: Int, _ fds: ReceivedFDs) throws(PeerFailure) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            var some = [Int32](repeating: -1, count: Int(CBATON_MESSAGE_FDS))
            var someCount: Int32 = 0
            let got = bytes.withUnsafeMutableBytes { buffer in
                retryingInterrupts {
                    cbaton_receive_fds(
                        fd, buffer.baseAddress.map { $0 + done }, count - done, &some, &someCount,
                        Int32(MSG_DONTWAIT))
                }
            }
            if got < 0, errno == EAGAIN || errno == EWOULDBLOCK {
                try wait(POLLIN)
                continue
            }
            if got < 0 { throw .system(errno) }
            if someCount < 0 { throw .tooManyDescriptors }
            fds.add(some.prefix(Int(someCount)))
            if got == 0 { throw .closed }
            done += got
        }
        return bytes
    }

    /// Waits until the socket is ready.
    private func wait(_ event: Int32) throws(PeerFailure) {
        while true {
            let left = deadline - EventLoop.now
            guard left > 0 else { throw .late }
            var states = [
                pollfd(fd: fd, events: Int16(event), revents: 0),
                // A negative descriptor is not looked at.
                pollfd(fd: attendant?.fd ?? -1, events: Int16(POLLIN), revents: 0),
            ]
            guard poll(&states, 2, Int32(truncatingIfNeeded: left / 1_000_000 + 1)) > 0 else { continue }
            if states[1].revents != 0 { attendant?.serve() }
            if states[0].revents != 0 { return }
        }
    }
}
