import BatonRuntime
import CBaton
import Glibc

/// Closes files in threads of their own, as the kernel takes its time: until no processor looks at what they stand for
/// (an RCU grace period, some 10 ms). What others can see of a file is gone at once.
///
/// Threads end before the process becomes two (`VirtualMachine.whenThreadsEnd`).
final class SlowClose {
    /// What one thread does.
    private final class Job {
        let fd: Int32, event: Int32
        init(fd: Int32, event: Int32) { (self.fd, self.event) = (fd, event) }

        func carryOut() {
            Glibc.close(fd)
            cbaton_eventfd_add(event)
        }
    }

    private let vm: VirtualMachine
    /// Counts the files that have been closed.
    private let event: Int32
    private var threads: [pthread_t] = []
    private var pending: UInt64 = 0
    private var waiting: [() -> Void] = []

    init(_ vm: VirtualMachine) throws(VMMError) {
        self.vm = vm
        event = cbaton_eventfd()
        guard event >= 0 else { throw .system("Could not create an eventfd") }
        try vm.loop.watch(event, .readable) { [weak self] _ in self?.collect() }
        vm.whenThreadsEnd { [weak self] in self?.join() }
    }

    deinit {
        join()
        if event >= 0 {
            vm.loop.unwatch(event)
            Glibc.close(event)
        }
    }

    /// Whether a file is being closed.
    var isBusy: Bool { pending > 0 }

    /// - Parameter fd: is closed soon. Owned.
    func close(_ fd: Int32) {
        let job = Unmanaged.passRetained(Job(fd: fd, event: event))
        var thread = pthread_t()
        pending += 1
        let code = cbaton_start_thread(
            &thread, { Unmanaged<Job>.fromOpaque($0!).takeRetainedValue().carryOut() }, job.toOpaque())
        if code == 0 { return threads.append(thread) }
        // A process that may have no threads waits.
        job.takeRetainedValue().carryOut()
    }

    /// Calls `body` when no file is being closed, at once if that is so.
    func whenDone(_ body: @escaping () -> Void) {
        if isBusy { waiting.append(body) } else { body() }
    }

    private func collect() {
        pending -= min(pending, cbaton_eventfd_take(event))
        guard !isBusy else { return }
        join()
        let bodies = waiting
        waiting = []
        for body in bodies { body() }
    }

    private func join() {
        for thread in threads { pthread_join(thread, nil) }
        threads = []
    }
}
