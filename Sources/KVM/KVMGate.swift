import BatonRuntime
import CKVM
import Glibc

/// Where CPUs' threads wait while the guest does not run.
///
/// What is in it is read and written with its own mutex held. A thread that has it never asks for the VM lock.
final class KVMGate {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let changed = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    /// Threads that wait here, of those that there are.
    private var waiting = 0
    private var threads = 0
    /// Counts up at each start of the guest.
    private var start = 0
    private var isEnding = false

    init() {
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(changed, nil)
    }

    deinit {
        pthread_cond_destroy(changed)
        pthread_mutex_destroy(mutex)
        changed.deallocate()
        mutex.deallocate()
    }

    private func wait() { pthread_cond_wait(changed, mutex) }

    // MARK: Of the main thread

    /// Before threads are made.
    func open() {
        pthread_mutex_lock(mutex)
        isEnding = false
        (waiting, threads) = (0, 0)
        pthread_mutex_unlock(mutex)
    }

    /// Waits until so many threads wait here.
    func await(_ count: Int) {
        pthread_mutex_lock(mutex)
        while waiting < count { wait() }
        threads = count
        pthread_mutex_unlock(mutex)
    }

    /// Waits until all threads wait here.
    func awaitAll() {
        pthread_mutex_lock(mutex)
        while waiting < threads { wait() }
        pthread_mutex_unlock(mutex)
    }

    /// Lets all threads go on.
    func release() {
        pthread_mutex_lock(mutex)
        start += 1
        waiting = 0
        pthread_cond_broadcast(changed)
        pthread_mutex_unlock(mutex)
    }

    /// Lets all threads end.
    func end() {
        pthread_mutex_lock(mutex)
        isEnding = true
        pthread_cond_broadcast(changed)
        pthread_mutex_unlock(mutex)
    }

    // MARK: Of CPUs' threads

    /// Waits for the next start of the guest.
    /// - Returns: false when the thread is to end.
    func pass() -> Bool {
        pthread_mutex_lock(mutex)
        let seen = start
        waiting += 1
        pthread_cond_broadcast(changed)
        while start == seen, !isEnding { wait() }
        let mayRun = !isEnding
        pthread_mutex_unlock(mutex)
        return mayRun
    }
}
