import BatonBase
import CBaton
import Glibc

extension VirtualMachine {
    /// Runs the guest and the host's events, as `run(until:)` does, for as long as `work` takes in a thread of its own.
    /// For what takes long and cannot be done bit by bit, such as a call of the kernel's.
    ///
    /// `work` has ended when this returns, also if the VMM is to end meanwhile. Where there can be no thread, and on
    /// another thread than the main one, the caller does the work.
    /// - Parameter work: touches nothing of the VMM's but what is its own. All signals are blocked in its thread.
    public func run(beside work: @escaping () -> Void) {
        guard isOnMainThread, let thread = WorkerThread(loop, work) else { return work() }
        run { thread.hasEnded }
        thread.join()
    }
}

/// Main thread only, but for `carryOut`.
private final class WorkerThread {
    private let loop: EventLoop
    private let work: () -> Void
    private let event: Int32
    private var thread = pthread_t()
    private(set) var hasEnded = false

    /// - Returns: nil where there can be no thread, and nothing has been done.
    init?(_ loop: EventLoop, _ work: @escaping () -> Void) {
        self.loop = loop
        self.work = work
        event = cbaton_eventfd()
        guard event >= 0 else { return nil }
        let isWatched = (try? loop.watch(event, .readable) { [unowned self] _ in hasEnded = true }) != nil
        // It ends before `join` has returned.
        let context = Unmanaged.passUnretained(self).toOpaque()
        if isWatched,
            cbaton_start_thread(
                &thread, { Unmanaged<WorkerThread>.fromOpaque($0!).takeUnretainedValue().carryOut() }, context) == 0
        {
            return
        }
        close()
        return nil
    }

    private func carryOut() {
        work()
        cbaton_eventfd_add(event)
    }

    func join() {
        pthread_join(thread, nil)
        close()
    }

    private func close() {
        loop.unwatch(event)
        Glibc.close(event)
    }
}
