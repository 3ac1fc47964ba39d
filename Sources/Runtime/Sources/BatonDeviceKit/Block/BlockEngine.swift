import BatonBase
import BatonMachine
import CBaton
import Glibc

/// Carries out requests to disks beside the guest: what a module of kind `block` provides. Subclasses are the engines.
///
/// A VM has one engine of a type, for all disks that ask for it. Methods are called with the VM lock held, by the main
/// thread or that of a CPU, one at a time. None waits for a disk.
open class BlockEngine {
    /// As `BlockEngineType.name`.
    public let name: String
    public init(name: String) { self.name = name }

    // MARK: For subclasses

    /// Makes what the engine needs of the kernel. Everything that can fail about it fails here. Called again after
    /// `stop`.
    open func start() throws(VMMError) {}
    /// An eventfd that counts up when `reap` has something new to give. Its count is taken before `reap` is called for
    /// it. Borrowed, from `start` to `stop`.
    open var event: Int32 { -1 }
    /// Takes a request to read or write (`pieceCount` vectors of it, by one system call) or flush. It goes on its way
    /// with the next `submit`, or earlier. Its result is stored in `result`.
    open func add(_ request: UnsafeMutablePointer<BlockRequest>) {}
    /// Sends what was added on its way.
    /// - Returns: false when the kernel has no room for all of it now: `submit` is called again.
    open func submit() -> Bool { true }
    /// Takes the requests that have ended, linked by `next`.
    open func reap() -> UnsafeMutablePointer<BlockRequest>? { nil }
    /// Lets go of threads and of what the kernel keeps for a process. Nothing is in hand.
    open func stop() {}

    // MARK: Of `BlockEngines`

    final var isStarted = false
    final var isReaping = false
    /// Whether there is anything for `submit`.
    final var hasAdded = false
    /// Requests that `reap` has not given back.
    final var inHand = 0
}

/// Makes block engines of one sort. Registered with `ModuleRegistrar.add`; the module's name is `block-NAME`.
public protocol BlockEngineType: AnyObject {
    /// As in `aio=`.
    var name: String { get }
    /// A line for those who ask what there is.
    var summary: String { get }
    func make() -> BlockEngine
}

/// The block engines of a VM.
public final class BlockEngines: MachineParts {
    private var engines: [BlockEngine] = []
    /// Threads that make blocking calls: always there, for what other engines do not do, and in place of one that the
    /// kernel refuses.
    let workers = BlockWorkers()
    fileprivate weak var vm: VirtualMachine?
    /// Disks with requests that have ended since their askers were told.
    private var touched: [BlockBackend] = []
    private var isTelling = false

    public init() { engines.append(workers) }

    /// The engine of threads, which every Baton has.
    public var threads: BlockEngine { workers }

    /// The engine of a type, made when it is first asked for.
    /// - Throws: why the kernel refuses it.
    public func engine(of type: any BlockEngineType) throws(VMMError) -> BlockEngine {
        if let known = engines.first(where: { $0.name == type.name }) { return known }
        let engine = type.make()
        // A trial has no requests to carry out.
        if vm?.handover?.isTrial != true { try start(engine) }
        engines.append(engine)
        return engine
    }

    private func start(_ engine: BlockEngine) throws(VMMError) {
        guard !engine.isStarted, let vm else { return }
        try engine.start()
        do throws(VMMError) {
            try vm.loop.watch(engine.event, .readable) { [unowned self, unowned engine] _ in
                _ = cbaton_eventfd_take(engine.event)
                collect(engine)
            }
        } catch {
            engine.stop()
            throw error
        }
        engine.isStarted = true
    }

    /// Nothing of an engine may stay when the process becomes two. In the one that goes on with the guest they start
    /// again when the loop comes round, or are needed.
    fileprivate func stopAll() {
        for engine in engines where engine.isStarted {
            while engine.inHand > 0 { waitForAny(limit: nil) }
            vm?.loop.unwatch(engine.event)
            engine.stop()
            engine.isStarted = false
            // What cannot be started now is tried again by the next request, which tells of it.
            vm?.loop.later { [weak self, unowned engine] in try? self?.start(engine) }
        }
    }

    // MARK: Requests

    /// Gives an engine a request, or the workers in its place if it cannot be started again.
    func add(_ request: UnsafeMutablePointer<BlockRequest>, to preferred: BlockEngine) {
        var engine = preferred
        if !engine.isStarted {
            do throws(VMMError) {
                try start(engine)
            } catch {
                Report.warning("aio=\(engine.name): \(error.message); threads go on in its place")
                engine = workers
                startWorkers()
            }
        }
        engine.inHand &+= 1
        engine.hasAdded = true
        engine.add(request)
    }

    /// Without an event the workers do what they are given at once.
    private func startWorkers() {
        guard !workers.isStarted else { return }
        do throws(VMMError) { try start(workers) } catch { Report.warning("aio=threads: \(error.message)") }
    }

    /// Sends on its way what was added, and takes what has ended at once.
    func submit(_ engine: BlockEngine) {
        send(engine)
        if engine !== workers { send(workers) }
        collect(engine)
    }

    private func send(_ engine: BlockEngine) {
        guard engine.hasAdded else { return }
        engine.hasAdded = false
        guard !engine.submit() else { return }
        engine.hasAdded = true
        vm?.loop.postpone { [weak self, unowned engine] in self?.send(engine) }
    }

    /// Takes what has ended, and tells those who have asked.
    func collect(_ engine: BlockEngine) {
        if engine.isStarted, !engine.isReaping {
            engine.isReaping = true
            var next = engine.reap()
            while let request = next {
                next = request.pointee.next
                engine.inHand &-= 1
                if let backend = request.pointee.backend { backend.pieceEnded(request) }
            }
            engine.isReaping = false
        }
        tellTouched()
        send(engine)
        if engine !== workers { send(workers) }
    }

    /// Has a disk's asker told when all that has ended is known.
    func touch(_ backend: BlockBackend) {
        guard !backend.isTouched else { return }
        backend.isTouched = true
        touched.append(backend)
    }

    private func tellTouched() {
        guard !touched.isEmpty, !isTelling else { return }
        isTelling = true
        var index = 0
        // Who is told may start more, of which something may end at once.
        while index < touched.count {
            touched[index].isTouched = false
            touched[index].onBatchEnd()
            index += 1
        }
        touched.removeAll(keepingCapacity: true)
        isTelling = false
    }

    /// Waits until a request has ended.
    /// - Parameter limit: nanoseconds at most; nil: for ever.
    func waitForAny(limit: Int64?) {
        for engine in engines { send(engine) }
        var states = engines.filter { $0.inHand > 0 && $0.isStarted }.map {
            pollfd(fd: $0.event, events: Int16(POLLIN), revents: 0)
        }
        // What cannot be sent now is tried again.
        let longest: Int32 = engines.contains { $0.hasAdded } ? 1 : 1 << 30
        let timeout = limit.map { Int32(min(max(0, $0) / 1_000_000 + 1, Int64(longest))) } ?? longest
        _ = poll(&states, nfds_t(states.count), timeout)
        for state in states where state.revents != 0 { _ = cbaton_eventfd_take(state.fd) }
        for engine in engines { collect(engine) }
    }
}

extension VirtualMachine {
    /// What carries out requests to disks.
    public var blockEngines: BlockEngines {
        let engines = parts(BlockEngines.self)
        if engines.vm == nil {
            engines.vm = self
            whenThreadsEnd { [unowned engines] in engines.stopAll() }
        }
        return engines
    }
}
