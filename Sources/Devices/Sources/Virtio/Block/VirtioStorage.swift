import BatonRuntime
import Glibc

/// What virtio devices with disks behind them have in common.
///
/// Requests go straight from and to guest RAM, and are carried out beside the guest, in any order. A chain is taken from
/// the ring when its request starts, and goes into the used ring when that has ended; in between it has a slot.
/// A request that is to be tried again, as it failed and `werror=stop` says so, or was given back by a disk that is held,
/// is kept as the chain that it is in guest RAM, which is also what a saved state has of it.
public class VirtioStorage: VirtioDevice {
    var slots: BlockSlots
    /// By queue, chains that were taken and not given back.
    private var inHand: [Int]
    /// By queue, whether it has an answer that the driver was not interrupted for, and whether it waits for a slot.
    private var isAnswered: [Bool]
    private var isFull: [Bool]
    /// What is carried out when the guest goes on.
    private var unfinished: [UnfinishedChain] = []
    /// Nothing new is taken, see `hold`.
    private(set) var isHeld = false

    /// How long a pause waits for what is in hand, in nanoseconds. What takes longer goes on, and is carried out again
    /// when the guest runs.
    private static let pauseLimit: Int64 = 5_000_000_000
    /// What a request costs of the device's share of a turn, see `EventLoop.mayGoOn`, beside its descriptors.
    private static let requestWork = 1 << 13
    /// Bytes of a request at most, as QEMU's BDRV_REQUEST_MAX_BYTES.
    static let maxRequest = 0x7fff_fe00

    /// - Parameter requests: how many can be in hand: all chains of the queues that have requests.
    init(
        model: String, deviceID: UInt32, vm: VirtualMachine, features: UInt64, queueSizes: [UInt16], config: [UInt8],
        requests: Int
    ) {
        let count = queueSizes.count
        slots = BlockSlots(count: requests)
        inHand = Array(repeating: 0, count: count)
        isAnswered = Array(repeating: false, count: count)
        isFull = Array(repeating: false, count: count)
        super.init(
            model: model, deviceID: deviceID, vm: vm, features: features, queueSizes: queueSizes, config: config)
    }

    deinit { slots.free() }

    // MARK: For subclasses

    /// The disks.
    var backends: [BlockBackend] { [] }

    /// Starts the request of a chain that was consumed, or answers it. The chain's segments are the queue's until a
    /// request has been started, which may end at once.
    /// - Returns: false when it is no request: the device has failed.
    func start(_ chain: VirtioChain, _ queue: VirtQueue) -> Bool { false }

    /// Sends on their way what was started.
    func submit() { for backend in backends { backend.submit() } }

    /// Has the ends of a disk's requests come here.
    func use(_ backend: BlockBackend, completed: @escaping (UnsafeMutablePointer<BlockRequest>) -> Void) {
        backend.use(vm.blockEngines)
        backend.onCompletion = completed
        backend.onBatchEnd = { [unowned(unsafe) self] in batchEnded() }
    }

    /// Ends what a disk has in hand, for a device that goes. Another device may use it then.
    static func letGo(_ backend: BlockBackend) {
        backend.finish()
        backend.onCompletion = { _ in }
        backend.onBatchEnd = {}
        backend.onResize = {}
        backend.release()
    }

    // MARK: From the driver

    /// Takes the chains of a queue, as far as the device's share of a turn goes.
    final func serve(_ queue: VirtQueue) {
        guard !isHeld else { return }
        let loop = vm.loop
        let index = queue.index
        var mayGoOn = true
        repeat {
            while mayGoOn, !isHeld, let chain = queue.next() {
                guard inHand[index] < Int(queue.size) else {
                    // A driver that makes more available than there can be. What ends makes room.
                    isFull[index] = true
                    return endTurn()
                }
                queue.consume()
                inHand[index] &+= 1
                guard start(chain, queue) else {
                    queue.unconsume(1)
                    inHand[index] &-= 1
                    return endTurn()
                }
                mayGoOn = loop.mayGoOn(
                    after: VirtioStorage.requestWork &+ (chain.readableCount &+ chain.writableCount) &* 128)
            }
        } while mayGoOn && !isHeld && queue.enableNotifications()
        endTurn()
        if !mayGoOn, !isHeld { putOff(queue) }
    }

    private func endTurn() {
        submit()
        signalAnswers()
    }

    /// Carries out what was taken before and is to be carried out now.
    private func goOn() {
        guard !unfinished.isEmpty, isOperating else { return }
        let chains = unfinished
        unfinished = []
        for (index, kept) in chains.enumerated() {
            let queue = queues[kept.queue]
            guard let chain = queue.chain(at: kept.head), start(chain, queue) else {
                // The driver has spoiled it meanwhile, and the device has failed.
                unfinished += chains[index...]
                break
            }
        }
        submit()
        signalAnswers()
    }

    // MARK: To the driver

    /// What has become of a request.
    enum Outcome {
        case done
        case failed
        /// It is carried out again when the guest goes on, and its slot is free.
        case again
    }

    /// A request has ended. The driver is interrupted when all that has ended is known.
    final func outcome(of request: UnsafeMutablePointer<BlockRequest>, _ errors: inout BlockErrors) -> Outcome {
        let slot = BlockSlots.of(request)
        let code = request.pointee.error
        // A read that fails half way may have stored something all the same.
        for index in 0..<slot.pointee.rangeCount {
            guard let range = slot.pointee.ranges?[index] else { break }
            vm.addressSpace.didWrite(range.address, length: range.length)
        }
        var outcome = Outcome.done
        if code == ECANCELED {
            outcome = .again
        } else if code != 0 {
            switch errors.action(isRead: request.pointee.kind == .read, code, vm) {
            case .stop: outcome = .again
            case .ignore: break
            case .report, .enospc: outcome = .failed
            }
        }
        // Nothing is told to a guest that stands still, but by a pause that waits for it.
        if outcome != .again, isRunning { return outcome }
        unfinished.append(UnfinishedChain(queue: slot.pointee.queue, head: slot.pointee.head))
        slots.giveBack(slot)
        return .again
    }

    /// The request of a slot has been answered.
    final func finished(_ slot: UnsafeMutablePointer<BlockSlot>, of backend: BlockBackend, failed: Bool) {
        let operation: BlockStatistics.Operation
        switch slot.pointee.request.kind {
        case .read: operation = .read
        case .write: operation = .write
        case .flush: operation = .flush
        // A write of zeroes may have been found to be one.
        case .discard, .writeZeroes: operation = slot.pointee.length > 0 ? .write : .unmap
        }
        backend.statistics.count(
            operation, bytes: slot.pointee.length, nanoseconds: EventLoop.now &- slot.pointee.begun, failed: failed)
        slots.giveBack(slot)
    }

    final func push(_ queue: VirtQueue, _ head: UInt16, readable: Int, written: Int) {
        queue.push(head: head, readable: readable, written: written)
        inHand[queue.index] &-= 1
        isAnswered[queue.index] = true
    }

    private func signalAnswers() {
        for index in isAnswered.indices where isAnswered[index] {
            isAnswered[index] = false
            queues[index].signal()
        }
    }

    /// All that has ended is known.
    func batchEnded() {
        signalAnswers()
        for index in isFull.indices where isFull[index] {
            isFull[index] = false
            if isRunning { handle(queues[index]) }
        }
    }

    // MARK: Draining and pause

    public override func hold() {
        isHeld = true
        for backend in backends { backend.hold() }
    }

    public override var isBusy: Bool { backends.contains { $0.inHand > 0 } }

    public override var workInHand: String {
        guard let backend = backends.first(where: { $0.inHand > 0 }) ?? backends.first else { return super.workInHand }
        return "\(backend.inHand) request\(backend.inHand == 1 ? "" : "s") of drive '\(backend.id)'"
    }

    public override func release() {
        guard isHeld else { return }
        isHeld = false
        for backend in backends { backend.release() }
        guard isRunning else { return }
        goOn()
        for queue in queues where queue.hasAvailable { handle(queue) }
    }

    public override func pauseDevice() {
        hold()
        for backend in backends { backend.finish(limit: VirtioStorage.pauseLimit) }
    }

    public override func resumeDevice() {
        isHeld = false
        for backend in backends {
            backend.release()
            backend.ioStatus = .ok
        }
        goOn()
    }

    public override func finish(_ queue: VirtQueue) {
        for backend in backends { backend.finish() }
        unfinished.removeAll { $0.queue == queue.index }
        inHand[queue.index] = 0
        isFull[queue.index] = false
    }

    // MARK: State

    func saveUnfinished(to writer: inout StateWriter) {
        let chains = unfinished + slots.used
        if !chains.isEmpty { writer.put("unfinished", chains.map(\.word)) }
    }

    private func chains(in reader: StateReader) throws(VMMError) -> [UnfinishedChain] {
        guard reader.has("unfinished") else { return [] }
        return try reader.array("unfinished").map { UnfinishedChain(word: $0) }
    }

    public override func unfinished(in reader: StateReader) throws(VMMError) -> [Int] {
        var counts = queues.map { _ in 0 }
        for chain in try chains(in: reader) {
            guard counts.indices.contains(chain.queue), chain.head < queues[chain.queue].maxSize else {
                throw VMMError(
                    "field 'unfinished' of section '\(reader.section)' has descriptor \(chain.head) of queue "
                        + "\(chain.queue), which does not exist")
            }
            counts[chain.queue] += 1
        }
        return counts
    }

    func loadUnfinished(from reader: StateReader) throws(VMMError) -> () -> Void {
        let loaded = try chains(in: reader)
        return { [self] in
            unfinished = loaded
            for index in inHand.indices { inHand[index] = loaded.filter { $0.queue == index }.count }
        }
    }
}
