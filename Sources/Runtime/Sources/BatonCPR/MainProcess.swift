import BatonBase
import CBaton
import Glibc

/// Who knows the VM by one process, by whose end it takes the VM to have ended: a service manager. What it is told arrives
/// in the order in which it was said, and before any end of a process that comes later.
///
/// On the main thread.
public protocol MainProcessObserver: AnyObject {
    /// Gets ready for an update. The guest runs.
    /// - Returns: a socket by which `isStandIn` learns whether a process that outlives the update has been named, as `tell`
    ///   cannot name one. Owned by the caller; -1 when there is none, and `tell` can.
    func prepare() -> Int32
    /// - Parameter answer: what `prepare` returned, which is readable or was waited for long enough. Borrowed.
    func isStandIn(_ answer: Int32) -> Bool
    /// Names the process, at once, while the guest stands still. Called in a process that shares its memory with a task that
    /// waits: takes no lock that others may have, and leaves none behind.
    /// - Returns: whether it was sent.
    func tell(_ pid: pid_t) -> Bool
    /// Names the process, and waits for nothing.
    /// - Returns: whether it is on its way.
    func announce(_ pid: pid_t) -> Bool
    /// Names the process. Waits up to 0.2 s for room.
    /// - Returns: a descriptor that is at its end when all that was said has been read, owned by the caller; -1 when it was
    ///   not sent, or that cannot be known.
    func announceWithReceipt(_ pid: pid_t) -> Int32
}

/// The process by whose end the VM's is known. During an update that must be none that may fail:
///
/// - Before the exec it becomes the child that goes on with the guest. Its PID is there when the guest has stopped already.
///   So an observer that cannot be told without waiting is told of a third process before, which stands in; and of the child
///   when the guest runs again.
/// - After the commit it becomes the new VMM. The old one ends when that is known. Before the next update says anything, the
///   new VMM waits until the old one has spoken.
/// - After a rollback it stays the old VMM, or becomes the placeholder.
///
/// With a placeholder it is that one all the time, and there is nothing to say. Main thread only.
enum MainProcess {
    nonisolated(unsafe) static var observer: (any MainProcessObserver)?
    /// What the observer knows; nil while another process stands in.
    nonisolated(unsafe) private static var known: pid_t? = getpid()
    /// Nanoseconds that the observer may take to read what it was sent.
    static let limit: Int64 = 2_000_000_000

    static var isObserved: Bool { observer != nil && Placeholder.current == nil }

    // MARK: In the new VMM

    /// The channel to the VMM before this one, which ends when that has said that the main process is this one; -1 after that.
    /// Owned.
    nonisolated(unsafe) static var oldVMM: Int32 = -1

    static func watchOldVMM(on loop: EventLoop) {
        guard oldVMM >= 0 else { return }
        do throws(VMMError) {
            try loop.watch(oldVMM, .readable) { _ in forgetOldVMM(loop) }
        } catch {
            forgetOldVMM(loop)
        }
    }

    private static func forgetOldVMM(_ loop: EventLoop) {
        loop.unwatch(oldVMM)
        close(oldVMM)
        oldVMM = -1
    }

    // MARK: In an update

    /// Before the update does anything else: the guest runs.
    /// - Parameter run: runs the guest and the loop until what it is given is true.
    static func prepare(_ loop: EventLoop, run: (() -> Bool) -> Void) {
        guard isObserved, let observer else { return }
        var isLate = false
        let timer = loop.schedule(at: EventLoop.now + limit) { isLate = true }
        defer { timer.cancel() }
        if oldVMM >= 0 {
            watchOldVMM(on: loop)
            run { oldVMM < 0 || isLate }
            if oldVMM >= 0 { forgetOldVMM(loop) }
        }
        let answer = observer.prepare()
        guard answer >= 0 else { return }
        var hasCome = false
        do throws(VMMError) {
            try loop.watch(answer, .readable) { _ in hasCome = true }
            run { hasCome || isLate }
            loop.unwatch(answer)
        } catch {}
        if observer.isStandIn(answer) { known = nil }
        close(answer)
    }

    /// Right before the exec, and when it has failed. What is said here the child knows too, as the memory is its own.
    static func willBe(_ pid: pid_t) {
        guard known != nil, known != pid, observer?.tell(pid) == true else { return }
        known = pid
    }

    /// Says which process it is, unless that is known.
    static func settle(on pid: pid_t = getpid()) {
        if isObserved, known != pid, observer?.announce(pid) == true { known = pid }
    }

    /// The new VMM's process stays, or ends as this one does: whoever has started it sees by that how the VM ends.
    static func settle(for good: pid_t) {
        settle(on: good)
        observer = nil
    }

    /// The guest is this process' again.
    /// - Parameter pid: of the one that is about to end. When it is the one that is known, its end waits.
    static func settleBeforeEnd(of pid: pid_t) {
        guard isObserved, known == pid else { return settle() }
        guard let receipt = observer?.announceWithReceipt(getpid()), receipt >= 0 else { return }
        known = getpid()
        _ = FD.awaitInput(receipt, until: EventLoop.now + limit)
        close(receipt)
    }

    /// In the old VMM, which is about to end, and has nothing else to do.
    /// - Returns: as `announceWithReceipt`.
    static func handOver(to pid: pid_t) -> Int32 {
        guard isObserved, let observer else { return -1 }
        let deadline = EventLoop.now + limit
        while true {
            let receipt = observer.announceWithReceipt(pid)
            // It has no room for messages, or is started anew.
            guard receipt < 0, EventLoop.now < deadline else { return receipt }
            usleep(10_000)
        }
    }
}
