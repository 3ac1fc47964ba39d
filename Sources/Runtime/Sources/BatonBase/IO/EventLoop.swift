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
/// the guest, or beside threads that run it. `poll` is called on the main thread; everything
/// else by whoever holds the VM lock.
///
/// Nobody holds the loop: the guest's slice, the handlers of ready fds and the
/// work that was put off (`postpone`) have a share of each turn. Whoever has
/// more to do than a share asks `mayGoOn`, and goes on in the next turn.
public final class EventLoop {
    /// A timer that has been armed; keep it to cancel it.
    public final class Timer {
        fileprivate(set) var handler: (() -> Void)?
        public let deadline: Int64
        /// Of timers armed one after the other the later one has the higher.
        fileprivate let number: UInt64
        fileprivate init(deadline: Int64, number: UInt64, handler: @escaping () -> Void) {
            self.deadline = deadline
            self.number = number
            self.handler = handler
        }
        /// Does nothing when the timer has fired.
        public func cancel() { handler = nil }
    }

    private struct Watch {
        var generation: UInt32
        var events: IOEvents
        var handler: (IOEvents) -> Void
        /// The epoll set has it, if perhaps with other events.
        var isKnown: Bool
    }

    private let epoll: Int32
    private var watches: [Int32: Watch] = [:]
    private var generation: UInt32 = 0
    /// Watched descriptors of which the kernel could not be told yet, and when it is tried again.
    private var owed: Set<Int32> = []
    private var retry: Timer?
    /// Latest deadline first, so that the next is taken off the end. There are
    /// a handful at most.
    private var timers: [Timer] = []
    private var timersArmed: UInt64 = 0
    private var deferred: [() -> Void] = []
    /// Work that goes on in a later turn, in that order.
    private var postponed: [() -> Void] = []
    private let buffer = UnsafeMutablePointer<epoll_event>.allocate(capacity: 64)
    /// Counts calls of `poll`: a handler may call it in turn.
    private var round = 0
    /// The first event that the last round had no time for, as epoll gives it.
    private var firstLeft: UInt64?

    /// What others take while the loop waits; nil where there is nobody else. Set once, by its holder.
    public private(set) var lock: VMLock?
    /// Ends a wait when something was added to what is waited for. Of a loop with a lock.
    private var wakeup: Int32 = -1
    /// The main thread waits, without the lock.
    private var isWaiting = false

    /// Nanoseconds of a share. A turn has three, and stays below 10 ms.
    private static let share: Int64 = 3_000_000
    /// Work between two looks at the clock, see `mayGoOn`.
    private static let workBetweenLooks = 1 << 18
    /// Nanoseconds between two attempts to tell the kernel of a watch.
    private static let retryInterval: Int64 = 10_000_000
    /// When the share began; 0 before the first turn.
    private var shareStart: Int64 = 0
    private var workLeft = workBetweenLooks

    public init() throws(VMMError) {
        epoll = epoll_create1(Int32(EPOLL_CLOEXEC))
        guard epoll >= 0 else { throw .system("Could not create an epoll instance") }
    }

    deinit {
        close(epoll)
        if wakeup >= 0 { close(wakeup) }
        buffer.deallocate()
    }

    /// Lets go of a lock while the loop waits. Called once by the main thread, which holds the lock.
    public func share(_ lock: VMLock) throws(VMMError) {
        let wakeup = cbaton_eventfd()
        guard wakeup >= 0 else { throw .system("Could not create an eventfd") }
        self.wakeup = wakeup
        try watch(wakeup, .readable) { _ in _ = cbaton_eventfd_take(wakeup) }
        self.lock = lock
    }

    /// Ends the main thread's wait, if it waits.
    public func wake() {
        guard isWaiting else { return }
        isWaiting = false
        cbaton_eventfd_add(wakeup)
    }

    /// CLOCK_MONOTONIC in nanoseconds.
    public static var now: Int64 { cbaton_monotonic_ns() }

    /// Watches a borrowed fd. The handler runs on the main thread, any number
    /// of times, until `unwatch`, which must come before the fd is closed.
    /// Watching an fd again replaces its events and handler.
    ///
    /// When the kernel has no room for the watch (epoll_ctl(2): ENOMEM; ENOSPC at `fs.epoll.max_user_watches`, which all
    /// of a user's processes share), it is made as soon as there is some: nobody is deaf for good.
    /// - Throws: when the fd cannot be watched at all (no such descriptor, a regular file).
    public func watch(_ fd: Int32, _ events: IOEvents, _ handler: @escaping (IOEvents) -> Void) throws(VMMError) {
        generation &+= 1
        let isKnown = watches[fd]?.isKnown ?? false
        guard set(fd, Watch(generation: generation, events: events, handler: handler, isKnown: isKnown)) else {
            throw .system("Could not watch fd \(fd)")
        }
    }

    /// Changes what a watched fd is watched for; does nothing for others.
    public func setEvents(_ fd: Int32, _ events: IOEvents) {
        guard var watch = watches[fd], watch.events != events else { return }
        watch.events = events
        _ = set(fd, watch)
    }

    /// Keeps a watch, and tells the kernel of it, now or when it has room.
    /// - Returns: false when the fd cannot be watched so at all, and errno says why; nothing has changed.
    private func set(_ fd: Int32, _ watch: Watch) -> Bool {
        var watch = watch
        var event = epoll_event()
        event.events = watch.events.rawValue
        event.data.u64 = UInt64(watch.generation) << 32 | UInt64(UInt32(bitPattern: fd))
        if epoll_ctl(epoll, watch.isKnown ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) == 0 {
            watch.isKnown = true
            if !owed.isEmpty { owed.remove(fd) }
        } else {
            guard errno == ENOMEM || errno == ENOSPC else { return false }
            owe(fd)
        }
        watches[fd] = watch
        return true
    }

    private func owe(_ fd: Int32) {
        if owed.isEmpty {
            let error = VMMError.system("Could not watch fd \(fd)")
            Report.warning("\(error.message); this is tried again until there is room (fs.epoll.max_user_watches)")
        }
        owed.insert(fd)
        awaitRoom()
    }

    /// Tries again in a while, if there is something to try.
    private func awaitRoom() {
        guard !owed.isEmpty, retry?.handler == nil else { return }
        retry = schedule(at: EventLoop.now + EventLoop.retryInterval) { [unowned self] in
            for fd in owed {
                if let watch = watches[fd], set(fd, watch) { continue }
                owed.remove(fd)
            }
            awaitRoom()
        }
    }

    public func isWatched(_ fd: Int32) -> Bool { watches[fd] != nil }

    /// Leaves a watched fd alone for a while: what cannot be taken from it now must not keep the loop busy.
    /// - Parameter time: nanoseconds.
    public func rest(_ fd: Int32, for time: Int64) {
        guard let watch = watches[fd], watch.events != [] else { return }
        setEvents(fd, [])
        schedule(at: EventLoop.now &+ time) { [unowned self] in
            guard let now = watches[fd], now.generation == watch.generation, now.events == [] else { return }
            setEvents(fd, watch.events)
        }
    }

    public func unwatch(_ fd: Int32) {
        guard let watch = watches.removeValue(forKey: fd) else { return }
        owed.remove(fd)
        if watch.isKnown { epoll_ctl(epoll, EPOLL_CTL_DEL, fd, nil) }
    }

    /// Forgets all timers, and all watched descriptors but these: nothing that was
    /// waited for is this process' business any more.
    package func keepOnly(_ fds: Set<Int32>) {
        for fd in watches.keys where !fds.contains(fd) { unwatch(fd) }
        for timer in timers { timer.cancel() }
        awaitRoom()
    }

    /// Calls `handler` once at `deadline` (CLOCK_MONOTONIC, nanoseconds) or as
    /// soon after as the loop comes round.
    @discardableResult
    public func schedule(at deadline: Int64, _ handler: @escaping () -> Void) -> Timer {
        // The guest arms and cancels the timers of its devices as it likes.
        timers.removeAll { $0.handler == nil }
        timersArmed += 1
        let timer = Timer(deadline: deadline, number: timersArmed, handler: handler)
        // Of equal deadlines the one armed first fires first.
        let place = timers.firstIndex { $0.deadline <= deadline } ?? timers.endIndex
        timers.insert(timer, at: place)
        wake()
        return timer
    }

    /// Timers that are kept.
    public var timerCount: Int {
        timers.removeAll { $0.handler == nil }
        return timers.count
    }

    /// Calls `handler` once, from the next `poll`, outside any other handler.
    public func later(_ handler: @escaping () -> Void) {
        deferred.append(handler)
        wake()
    }

    // MARK: Shares

    /// Counts work against the share of whoever does it, and looks at the
    /// clock now and then.
    /// - Parameter work: about one for a byte that is moved or a tenth of a
    ///   nanosecond.
    /// - Returns: false when the share is used up: go on by `postpone`.
    public func mayGoOn(after work: Int) -> Bool {
        workLeft &-= work
        return workLeft > 0 || hasTimeLeft
    }

    /// Whether the share is not used up; looks at the clock.
    public var hasTimeLeft: Bool {
        let now = EventLoop.now
        if shareStart == 0 { shareStart = now }
        // Once it is used up, everybody else who asks learns that too.
        guard now - shareStart < EventLoop.share else { return false }
        workLeft = EventLoop.workBetweenLooks
        return true
    }

    private func beginShare() {
        shareStart = EventLoop.now
        workLeft = EventLoop.workBetweenLooks
    }

    /// Goes on with work that is too much for one turn: calls `handler` once,
    /// in a later turn, after what was postponed before. Between two calls
    /// everybody else and the guest have their turns.
    public func postpone(_ handler: @escaping () -> Void) {
        postponed.append(handler)
        wake()
    }

    /// Whether there is work that was put off.
    public var hasPostponed: Bool { !postponed.isEmpty }

    private func runPostponed() {
        beginShare()
        var left = postponed.count
        repeat {
            postponed.removeFirst()()
            left -= 1
        } while left > 0 && !postponed.isEmpty && hasTimeLeft
    }

    // MARK: Waiting

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
        var timeout = deferred.isEmpty && postponed.isEmpty ? timeout : 0
        if timeout != 0, let deadline = nextDeadline {
            let left = max(0, deadline - EventLoop.now)
            timeout = timeout < 0 ? left : min(timeout, left)
        }
        var wait = timespec(tv_sec: Int(timeout / 1_000_000_000), tv_nsec: Int(timeout % 1_000_000_000))
        if let lock {
            isWaiting = timeout != 0
            lock.release()
            lock.yieldToWaiters()
        }
        let count =
            timeout < 0 ? epoll_pwait2(epoll, buffer, 64, nil, nil) : epoll_pwait2(epoll, buffer, 64, &wait, nil)
        if let lock {
            lock.acquire()
            isWaiting = false
        }
        if count > 0 { runHandlers(Int(count), round) }
        if !timers.isEmpty { runTimers() }
        if !deferred.isEmpty {
            let calls = deferred
            deferred = []
            for call in calls { call() }
        }
        if !postponed.isEmpty { runPostponed() }
        // The guest's slice is next.
        beginShare()
    }

    /// Runs the handlers of the events in `buffer`, until their share is used
    /// up. epoll tells of those that are left in the same order again, so the
    /// next round begins with the first of them.
    private func runHandlers(_ count: Int, _ round: Int) {
        beginShare()
        var index = 0
        if let firstLeft {
            index = (0..<count).first { buffer[$0].data.u64 == firstLeft } ?? 0
            self.firstLeft = nil
        }
        for done in 1...count {
            let event = buffer[index]
            index = index + 1 == count ? 0 : index + 1
            let fd = Int32(truncatingIfNeeded: event.data.u64)
            // A handler earlier in this round may have closed this fd, and
            // opened another with its number.
            guard let watch = watches[fd], watch.generation == UInt32(event.data.u64 >> 32) else { continue }
            watch.handler(IOEvents(rawValue: event.events))
            // It has waited itself: what else was ready then may be no more,
            // and will be told again if it is.
            if round != self.round { break }
            if done < count, !hasTimeLeft {
                firstLeft = buffer[index].data.u64
                break
            }
        }
    }

    /// Fires what is due. One that is armed meanwhile waits for the next turn,
    /// due or not.
    private func runTimers() {
        let now = EventLoop.now
        let newest = timersArmed
        while let deadline = nextDeadline, deadline <= now, let timer = timers.last, timer.number <= newest {
            timers.removeLast()
            let handler = timer.handler
            timer.handler = nil
            handler?()
        }
    }
}
