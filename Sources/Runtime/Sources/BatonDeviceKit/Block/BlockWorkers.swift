import BatonBase
import CBaton
import Glibc

/// Threads that make blocking calls, as many as there is work for, up to a limit. They come with the work, and stay until
/// `stop`.
final class BlockWorkers: BlockEngine {
    private static let most = 16

    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let hasWork = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    // With the mutex held.
    private var waiting = BlockRequestList()
    private var waitingCount = 0
    private var ended = BlockRequestList()
    private var idle = 0
    private var isEnding = false
    // With the VM lock held.
    private var threads: [pthread_t] = []
    private var added = BlockRequestList()
    private var eventFD: Int32 = -1

    init() {
        super.init(name: "threads")
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(hasWork, nil)
    }

    deinit {
        stop()
        pthread_cond_destroy(hasWork)
        pthread_mutex_destroy(mutex)
        hasWork.deallocate()
        mutex.deallocate()
    }

    override func start() throws(VMMError) {
        let fd = cbaton_eventfd()
        guard fd >= 0 else { throw .system("Could not create an eventfd") }
        eventFD = fd
    }

    override var event: Int32 { eventFD }

    override func add(_ request: UnsafeMutablePointer<BlockRequest>) { added.append(request) }

    override func submit() -> Bool {
        pthread_mutex_lock(mutex)
        while let request = added.removeFirst() {
            waiting.append(request)
            waitingCount += 1
            pthread_cond_signal(hasWork)
        }
        let isShort = waitingCount > idle
        pthread_mutex_unlock(mutex)
        if isShort, threads.count < BlockWorkers.most { addThread() }
        // A process that may have no threads waits for its disk.
        if threads.isEmpty { work(untilEnd: false) }
        return true
    }

    private func addThread() {
        var thread = pthread_t()
        let context = Unmanaged.passUnretained(self).toOpaque()
        let code = cbaton_start_thread(
            &thread, { Unmanaged<BlockWorkers>.fromOpaque($0!).takeUnretainedValue().workInThread() }, context)
        if code == 0 { threads.append(thread) }
    }

    private func workInThread() {
        SandboxRole.diskWorker.enter()
        work(untilEnd: true)
    }

    /// In a worker: does what there is to do.
    private func work(untilEnd: Bool) {
        pthread_mutex_lock(mutex)
        while true {
            while waiting.isEmpty, untilEnd, !isEnding {
                idle += 1
                pthread_cond_wait(hasWork, mutex)
                idle -= 1
            }
            guard let request = waiting.removeFirst() else { break }
            waitingCount -= 1
            pthread_mutex_unlock(mutex)
            request.pointee.result = BlockFile.carryOut(request)
            pthread_mutex_lock(mutex)
            if ended.isEmpty { cbaton_eventfd_add(eventFD) }
            ended.append(request)
        }
        pthread_mutex_unlock(mutex)
    }

    override func reap() -> UnsafeMutablePointer<BlockRequest>? {
        pthread_mutex_lock(mutex)
        let list = ended.removeAll()
        pthread_mutex_unlock(mutex)
        return list
    }

    override func stop() {
        pthread_mutex_lock(mutex)
        isEnding = true
        pthread_cond_broadcast(hasWork)
        pthread_mutex_unlock(mutex)
        for thread in threads { pthread_join(thread, nil) }
        threads = []
        isEnding = false
        if eventFD >= 0 { close(eventFD) }
        eventFD = -1
    }
}
