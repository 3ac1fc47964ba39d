import BatonBase
import CBaton

/// Children that end by themselves: the old VMM of each update, which frees its memory at its end, a trial's
/// supervisor, and the guard of a helper that has ended. They outlive the next exec, so their PIDs
/// are handed over. Each is waited for by its PID, and no other child is: the end of
/// a module's or a script's child is for whoever started that.
///
/// Main thread only.
final class EndingChildren {
    /// The most that a CPR state may name.
    static let limit = 1024
    /// As many may wait while the guest does.
    static let few = 8
    private static let firstDelay: Int64 = 20_000_000
    private static let lastDelay: Int64 = 1_000_000_000
    private(set) var pids: [pid_t]
    private var isScheduled = false

    init(_ pids: [pid_t]) { self.pids = pids }

    func add(_ pid: pid_t) {
        if pids.count == EndingChildren.limit { pids.removeFirst() }
        pids.append(pid)
    }

    /// Waits for those that have ended already.
    func collect() { pids.removeAll { cbaton_await_child($0, 0) != 0 } }

    /// In the old VMM after the exec: they are children of the process, and so the
    /// new VMM's.
    func forget() { pids = [] }

    /// Waits for those that have ended, now and then, until all have. They take
    /// part in no event loop: an update may come at any time, and finds no
    /// descriptor more.
    func reap(on loop: EventLoop) {
        guard !isScheduled, !pids.isEmpty else { return }
        reap(on: loop, after: EndingChildren.firstDelay)
    }

    private func reap(on loop: EventLoop, after delay: Int64) {
        isScheduled = true
        loop.schedule(at: EventLoop.now + delay) { [weak self, unowned loop] in
            guard let self else { return }
            isScheduled = false
            collect()
            if !pids.isEmpty { reap(on: loop, after: min(2 * delay, EndingChildren.lastDelay)) }
        }
    }
}
