import BatonBase
import CBaton
import Glibc

/// A new VMM starts when nothing else wants to run (SCHED_IDLE): where all processors are
/// busy it would take turns with the guest otherwise, some milliseconds each. Where it
/// does not come to run like that, it is taken back: it would be late, and for nothing.
///
/// Main thread only.
final class Background {
    /// Nanoseconds between two looks.
    static let step: Int64 = 250_000_000
    private let process: pid_t
    private let loop: EventLoop
    private let leave: () -> Void
    private var timer: EventLoop.Timer?
    private var used: Int64

    /// - Parameter leave: takes the process back; called at most once.
    init(_ process: pid_t, _ loop: EventLoop, leave: @escaping () -> Void) {
        (self.process, self.loop, self.leave) = (process, loop, leave)
        used = cbaton_cpu_time_ns(process)
        look()
    }

    func cancel() { timer?.cancel() }

    private func look() {
        timer = loop.schedule(at: EventLoop.now + Background.step) { [unowned self] in
            let now = cbaton_cpu_time_ns(process)
            guard now - used >= Background.step / 2 else { return leave() }
            used = now
            look()
        }
    }
}
