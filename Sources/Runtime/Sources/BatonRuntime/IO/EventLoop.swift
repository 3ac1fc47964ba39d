import CBaton
import Glibc

/// What an fd is watched for and what happened on it.
public struct IOEvents: OptionSet {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let readable = IOEvents(rawValue: UInt32(EPOLLIN.rawValue))
    public static let writable = IOEvents(rawValue: UInt32(EPOLLOUT.rawValue))
    /// Always watched: the peer is gone or the fd is in error.
    public static let hangup = IOEvents(rawValue: UInt32(EPOLLHUP.rawValue))
    public static let error = IOEvents(rawValue: UInt32(EPOLLERR.rawValue))
    /// The peer has shut down its writing half.
    public static let readHangup = IOEvents(rawValue: UInt32(EPOLLRDHUP.rawValue))
}

/// The main thread's loop: fds, timers and deferred calls, between slices of
/// the guest. Single-threaded: every method is called on the main thread.
public final class EventLoop {
    /// A timer that has been armed; keep it to cancel it.
    public final class Timer {
        fileprivate(set) var handler: (() -> Void)?
        public let deadline: Int64
        fileprivate init(deadline: Int64, handler: @escaping () -> Void) {
            self.deadline = deadline
            self.handler = handler
        }
        /// Does nothing when the timer has fired.
        public func cancel() { handler = nil }
    }

    private struct Watch {
        var generation: UInt32
        var events: IOEvents
        var handler: (IOEvents) -> Void
    }

    private var epoll: Int32
    private var watches: [Int32: Watch] = [:]
    private var generation: UInt32 = 0
    /// Latest deadline first, so that the next is taken off the end. There are
    /// a handful at most.
    private var timers: [Timer] = []
    private var deferred: [() -> Void] = []
    private let buffer = UnsafeMutablePointer<epoll_event>.allocate(capacity: 64)
    /// Counts calls of `poll`: a handler may call it in turn.
    private var round = 0

    public init() throws(VMMError) {
        epoll = epoll_create1(Int32(EPOLL_CLOEXEC))
        guard epoll >= 0 else { throw .system("Could not create an epoll instance") }
    }

    /// In a copy of the process that made this loop: has a set of its own in
    /// place of the one that both share, from which the other process may have
    /// taken what it unwatched.
    func beginAnew() throws(VMMError) {
        let fresh = epoll_create1(Int32(EPOLL_CLOEXEC))
        guard fresh >= 0 else { throw .system("Could not create an epoll instance") }
        close(epoll)
        epoll = fresh
        // What was ready before this may be no more.
        round &+= 1
        for (fd, watch) in watches {
            var event = EventLoop.event(fd, watch)
            if epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0 {
                Report.warning(VMMError.system("Could not watch fd \(fd)").message)
            }
        }
    }

    private static func event(_ fd: Int32, _ watch: Watch) -> epoll_event {
        var event = epoll_event()
        event.events = watch.events.rawValue
        event.data.u64 = UInt64(watch.generation) << 32 | UInt64(UInt32(bitPattern: fd))
        return event
    }

    deinit {
        close(epoll)
        buffer.deallocate()
    }

    /// CLOCK_MONOTONIC in nanoseconds.
    public static var now: Int64 { cbaton_monotonic_ns() }

    /// Watches a borrowed fd. The handler runs on the main thread, any number
    /// of times, until `unwatch`, which must come before the fd is closed.
    /// Watching an fd again replaces its events and handler.
    public func watch(_ fd: Int32, _ events: IOEvents, _ handler: @escaping (IOEvents) -> Void) throws(VMMError) {
        generation &+= 1
        var event = epoll_event()
        event.events = events.rawValue
        event.data.u64 = UInt64(generation) << 32 | UInt64(UInt32(bitPattern: fd))
        let operation = watches[fd] == nil ? EPOLL_CTL_ADD : EPOLL_CTL_MOD
        guard epoll_ctl(epoll, operation, fd, &event) == 0 else { throw .system("Could not watch fd \(fd)") }
        watches[fd] = Watch(generation: generation, events: events, handler: handler)
    }

    /// Changes what a watched fd is watched for; does nothing for others.
    public func setEvents(_ fd: Int32, _ events: IOEvents) {
        guard let watch = watches[fd], watch.events != events else { return }
        var event = epoll_event()
        event.events = events.rawValue
        event.data.u64 = UInt64(watch.generation) << 32 | UInt64(UInt32(bitPattern: fd))
        if epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) == 0 { watches[fd]?.events = events }
    }

    public func isWatched(_ fd: Int32) -> Bool { watches[fd] != nil }

    public func unwatch(_ fd: Int32) {
        guard watches.removeValue(forKey: fd) != nil else { return }
        epoll_ctl(epoll, EPOLL_CTL_DEL, fd, nil)
    }

    /// Calls `handler` once at `deadline` (CLOCK_MONOTONIC, nanoseconds) or as
    /// soon after as the loop comes round.
    @discardableResult
    public func schedule(at deadline: Int64, _ handler: @escaping () -> Void) -> Timer {
        let timer = Timer(deadline: deadline, handler: handler)
        // Of equal deadlines the one armed first fires first.
        let place = timers.firstIndex { $0.deadline <= deadline } ?? timers.endIndex
        timers.insert(timer, at: place)
        return timer
    }

    /// Calls `handler` once, from the next `poll`, outside any other handler.
    public func later(_ handler: @escaping () -> Void) { deferred.append(handler) }

    /// The earliest deadline, or nil.
    private var nextDeadline: Int64? {
        while let last = timers.last, last.handler == nil { timers.removeLast() }
        return timers.last?.deadline
    }

    /// Waits up to `timeout` nanoseconds (0: not at all; negative: for ever) for
    /// something to happen, and runs the handlers that are due. A handler may
    /// call it to wait for something in turn.
    public func poll(timeout: Int64) {
        round &+= 1
        let round = round
        var timeout = deferred.isEmpty ? timeout : 0
        if timeout != 0, let deadline = nextDeadline {
            let left = max(0, deadline - EventLoop.now)
            timeout = timeout < 0 ? left : min(timeout, left)
        }
        var wait = timespec(tv_sec: Int(timeout / 1_000_000_000), tv_nsec: Int(timeout % 1_000_000_000))
        let count =
            timeout < 0 ? epoll_pwait2(epoll, buffer, 64, nil, nil) : epoll_pwait2(epoll, buffer, 64, &wait, nil)
        if count > 0 {
            for index in 0..<Int(count) {
                let event = buffer[index]
                let fd = Int32(truncatingIfNeeded: event.data.u64)
                // A handler earlier in this round may have closed this fd, and
                // opened another with its number.
                guard let watch = watches[fd], watch.generation == UInt32(event.data.u64 >> 32) else { continue }
                watch.handler(IOEvents(rawValue: event.events))
                // It has waited itself: what else was ready then may be no more,
                // and will be told again if it is.
                if round != self.round { break }
            }
        }
        if !timers.isEmpty {
            let now = EventLoop.now
            while let deadline = nextDeadline, deadline <= now, let timer = timers.popLast() {
                let handler = timer.handler
                timer.handler = nil
                handler?()
            }
        }
        if !deferred.isEmpty {
            let calls = deferred
            deferred = []
            for call in calls { call() }
        }
    }
}
