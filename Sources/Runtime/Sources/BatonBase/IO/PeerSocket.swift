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

/// How long the machine, which does nothing else meanwhile, waits for a process
/// that serves a device of its: one that is slow now and then has the whole
/// limit of its protocol, one that is slow all the time has ever less, and so
/// keeps the guest waiting for a tenth of the time at most.
public final class PeerPatience {
    /// Waits that do not count, in nanoseconds.
    private static let free: Int64 = 2_000_000
    /// What was waited, less a tenth of the time since.
    private var debt: Int64 = 0
    private var countedAt: Int64 = 0

    public init() {}

    private func forgive(_ now: Int64) {
        debt = max(0, debt - (now - countedAt) / 10)
        countedAt = now
    }

    func note(waited: Int64, at now: Int64) {
        guard waited > PeerPatience.free else { return }
        forgive(now)
        debt += waited
    }

    func limit(_ full: Int64, at now: Int64) -> Int64 {
        if debt == 0 { return full }
        forgive(now)
        return min(full, max(PeerPatience.free, full - debt))
    }
}

/// A connected UNIX stream socket to a process that serves a device: sends and
/// receives whole messages, with descriptors, and never for longer than was
/// allowed. Main thread only.
public final class PeerSocket {
    /// Borrowed from whoever made it.
    public let fd: Int32
    private let patience: PeerPatience
    private var deadline: Int64 = 0
    /// Nanoseconds that the sequence of messages may take.
    public private(set) var limit: Int64 = 0
    private var begun: Int64 = 0
    /// When the last message was through.
    private var done: Int64 = 0
    private var isRationed = false
    /// Another descriptor that must not wait while this socket does: the peer
    /// may need what is asked there to answer here. Called when it is readable.
    public var attendant: (fd: Int32, serve: () -> Void)?

    /// - Parameters:
    ///   - fd: stays the caller's, and must stay open.
    ///   - patience: shared by all sockets to one peer, one after the other too.
    public init(_ fd: Int32, patience: PeerPatience = PeerPatience()) {
        self.fd = fd
        self.patience = patience
    }

    /// Starts the clock for a sequence of messages.
    /// - Parameters:
    ///   - limit: nanoseconds, at most.
    ///   - rationed: what the guest or the peer causes, and may cause again and
    ///     again: the limit shrinks as the peer is slow, see `PeerPatience`.
    public func begin(limit: Int64, rationed: Bool = false) {
        let now = EventLoop.now
        if isRationed { patience.note(waited: done - begun, at: now) }
        isRationed = rationed
        self.limit = rationed ? patience.limit(limit, at: now) : limit
        begun = now
        done = now
        deadline = now + self.limit
    }

    /// Whether the time is up; for waits between messages, which count too.
    public var isLate: Bool {
        let now = EventLoop.now
        if isRationed { done = now }
        return now >= deadline
    }

    /// Nanoseconds since `begin`.
    public var elapsed: Int64 { EventLoop.now - begun }

    /// Sends all of a message, and descriptors with its first byte; these stay
    /// the caller's.
    public func send(_ message: [UInt8], fds: [Int32] = []) throws(PeerFailure) {
        defer { if isRationed { self.done = EventLoop.now } }
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
            } else if sent < 0, isTransientFailure() {
                try wait(POLLOUT)
            } else {
                throw .system(errno)
            }
        }
    }

    /// Receives exactly `count` bytes, and adds what descriptors come with them.
    public func receive(_ count: Int, _ fds: ReceivedFDs) throws(PeerFailure) -> [UInt8] {
        try receive(count, fds, waits: true)
    }

    /// As `receive`, but gives what has come by now, which may be nothing.
    public func receiveAvailable(_ count: Int, _ fds: ReceivedFDs) throws(PeerFailure) -> [UInt8] {
        try receive(count, fds, waits: false)
    }

    private func receive(_ count: Int, _ fds: ReceivedFDs, waits: Bool) throws(PeerFailure) -> [UInt8] {
        defer { if isRationed { self.done = EventLoop.now } }
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
            if got < 0, isTransientFailure() {
                if !waits { return Array(bytes[..<done]) }
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
