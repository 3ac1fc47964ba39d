import BatonBase
import BatonMachine
import CBaton
import Glibc

/// The eventfds between a driver and whoever serves its queues elsewhere: one each way for every queue, and one for both
/// to say that something is wrong. Owns them, and makes interrupts of those that come back.
///
/// Everything with the VM lock held.
public final class QueueEvents {
    /// By queue: the driver has made buffers available.
    public let kicks: [Int32]
    /// By queue: buffers have been used.
    public let calls: [Int32]
    /// A queue's rings are broken.
    public let error: Int32
    /// What makes interrupts of `calls`, by queue; made when the device first runs.
    private var interrupts: [InterruptEvent] = []

    /// - Parameter what: as in `the events of WHAT`, for the error.
    public init(queues: Int, of what: String) throws(VMMError) {
        var made: [Int32] = []
        for _ in 0...2 * queues {
            let fd = cbaton_eventfd()
            guard fd >= 0 else {
                let error = VMMError.system("cannot make the events of \(what)")
                for fd in made { close(fd) }
                throw error
            }
            made.append(fd)
        }
        (kicks, calls, error) = (Array(made[..<queues]), Array(made[queues..<2 * queues]), made[2 * queues])
    }

    /// Takes over the events of the process before.
    public init(kicks: [Int32], calls: [Int32], error: Int32) {
        (self.kicks, self.calls, self.error) = (kicks, calls, error)
    }

    deinit {
        for interrupt in interrupts { interrupt.remove() }
        for fd in kicks + calls + [error] { close(fd) }
    }

    /// Has events of used buffers be interrupts: the machine runs.
    /// - Parameters:
    ///   - mayBeDirect: whether `onEvent` may be left out for an interrupt at present.
    ///   - onEvent: buffers of a queue have been used, and `host` is to be told.
    public func resume(
        _ host: (any VirtioOffloadHost)?, mayBeDirect: @escaping () -> Bool = { true },
        onEvent: @escaping (_ queue: Int) -> Void
    ) throws(VMMError) {
        if interrupts.isEmpty, let host {
            interrupts = calls.indices.map { queue in
                host.interruptEvent(queue: queue, event: calls[queue], mayBeDirect: mayBeDirect) { onEvent(queue) }
            }
        }
        for interrupt in interrupts { try interrupt.resume() }
    }

    public func pause() { for interrupt in interrupts { interrupt.pause() } }

    /// What `mayBeDirect` says may be something else now.
    public func update() { for interrupt in interrupts { interrupt.update() } }

    /// Has both sides look at a queue, of whose events some may have been lost.
    public func signal(queue: Int) {
        cbaton_eventfd_add(kicks[queue])
        cbaton_eventfd_add(calls[queue])
    }
}
