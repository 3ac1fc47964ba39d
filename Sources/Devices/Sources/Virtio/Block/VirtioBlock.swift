import BatonRuntime
import Glibc

/// virtio-blk (virtio 1.3, 5.2) on a block back end.
///
/// Requests go straight from and to guest RAM, and are carried out beside the guest, in any order. A chain is taken from
/// the ring when its request starts, and goes into the used ring when that has ended; in between it has a slot.
/// A request that is to be tried again, as it failed and `werror=stop` says so, or was given back by a disk that is held,
/// is kept as the chain that it is in guest RAM, which is also what a saved state has of it.
public final class VirtioBlock: VirtioDevice {
    /// What `-device` says.
    public struct Properties {
        /// What GET_ID gives; at most 20 bytes of it.
        public var serial = ""
        public var queueCount = 1
        /// Chains that fit into a queue: a power of two from 2 to 1024.
        public var queueSize: UInt16 = 256
        /// `write-cache=`; nil for what the drive says.
        public var writeCache: Bool?
        /// Whether the guest may change that.
        public var configuresWriteCache = true
        /// `werror=` and `rerror=`; nil for what the drive says.
        public var onWriteError: BlockErrorPolicy?
        public var onReadError: BlockErrorPolicy?
        public init() {}
    }

    let backend: BlockBackend
    let serial: [UInt8]
    let onWriteError: BlockErrorPolicy
    let onReadError: BlockErrorPolicy
    private let startsWriteback: Bool
    /// Scratch for requests and discard segments.
    let scratch: UnsafeMutableRawBufferPointer
    var slots: BlockSlots
    /// By queue, chains that were taken and not given back.
    var inHand: [Int]
    /// By queue, whether it has an answer that the driver was not interrupted for, and whether it waits for a slot.
    var isAnswered: [Bool]
    var isFull: [Bool]
    /// What is carried out when the guest goes on.
    var unfinished: [UnfinishedChain] = []
    /// Nothing new is taken, see `hold`.
    private(set) var isHeld = false
    /// When an error of a kind was last told of, by kind; CLOCK_MONOTONIC in nanoseconds.
    var errorTimes: [Int: Int64] = [:]

    enum Feature {
        static let segmentMax: UInt64 = 1 << 2
        static let readOnly: UInt64 = 1 << 5
        static let blockSize: UInt64 = 1 << 6
        static let flush: UInt64 = 1 << 9
        static let writeCache: UInt64 = 1 << 11
        static let multipleQueues: UInt64 = 1 << 12
        static let discard: UInt64 = 1 << 13
        static let writeZeroes: UInt64 = 1 << 14
    }

    /// Where fields of the configuration are.
    private enum Field {
        static let capacity = 0
        static let segmentMax = 12
        static let blockSize = 20
        static let writeback = 32
        static let queueCount = 34
    }

    /// As QEMU's `max-discard-sectors` and `max-write-zeroes-sectors`.
    static let maxSectors: UInt32 = 0x3f_ffff
    private static let maxDiscardSegments = 1
    /// How long a pause waits for what is in hand, in nanoseconds. What takes longer goes on, and is carried out again
    /// when the guest runs.
    private static let pauseLimit: Int64 = 5_000_000_000

    public init(vm: VirtualMachine, backend: BlockBackend, properties: Properties = Properties()) {
        self.backend = backend
        serial = Array(properties.serial.utf8.prefix(20))
        onWriteError = properties.onWriteError ?? backend.settings.onWriteError
        onReadError = properties.onReadError ?? backend.settings.onReadError
        startsWriteback = properties.writeCache ?? backend.settings.cache.isWriteback
        let count = properties.queueCount
        slots = BlockSlots(count: count * Int(properties.queueSize))
        inHand = Array(repeating: 0, count: count)
        isAnswered = Array(repeating: false, count: count)
        isFull = Array(repeating: false, count: count)
        scratch = .allocate(byteCount: 64, alignment: 16)
        scratch.initializeMemory(as: UInt8.self, repeating: 0)
        var features = Feature.segmentMax | Feature.blockSize | Feature.flush
        if properties.configuresWriteCache { features |= Feature.writeCache }
        if count > 1 { features |= Feature.multipleQueues }
        var config = [UInt8](repeating: 0, count: 60)
        config.put(backend.size / 512, at: Field.capacity)
        config.put(UInt32(properties.queueSize) - 2, at: Field.segmentMax)
        config.put(UInt32(512), at: Field.blockSize)
        config[Field.writeback] = startsWriteback ? 1 : 0
        config.put(UInt16(count), at: Field.queueCount)
        if backend.readOnly {
            features |= Feature.readOnly
        } else {
            features |= Feature.writeZeroes
            if backend.settings.discards {
                features |= Feature.discard
                config.put(VirtioBlock.maxSectors, at: 36)
                config.put(UInt32(VirtioBlock.maxDiscardSegments), at: 40)
                config.put(UInt32(1), at: 44)
            }
            config.put(VirtioBlock.maxSectors, at: 48)
            config.put(UInt32(VirtioBlock.maxDiscardSegments), at: 52)
            config[56] = 1
        }
        super.init(
            model: "virtio-blk", deviceID: 2, vm: vm, features: features,
            queueSizes: Array(repeating: properties.queueSize, count: count), config: config)
        backend.use(vm.blockEngines)
        backend.isWriteback = startsWriteback
        backend.onCompletion = { [unowned(unsafe) self] in completed($0) }
        backend.onBatchEnd = { [unowned(unsafe) self] in batchEnded() }
        backend.onResize = { [unowned(unsafe) self] in resized() }
    }

    deinit {
        backend.finish()
        backend.onCompletion = { _ in }
        backend.onBatchEnd = {}
        backend.onResize = {}
        slots.free()
        scratch.deallocate()
    }

    // MARK: Configuration

    private func resized() {
        config.put(backend.size / 512, at: Field.capacity)
        configChanged()
    }

    public override func writeConfig(offset: Int, width: Int, value: UInt64) {
        guard has(Feature.writeCache), offset == Field.writeback, width == 1 else {
            return super.writeConfig(offset: offset, width: width, value: value)
        }
        setWriteback(value & 0xff != 0)
    }

    private func setWriteback(_ isWriteback: Bool) {
        backend.isWriteback = isWriteback
        config[Field.writeback] = isWriteback ? 1 : 0
    }

    public override func driverReady() {
        // A driver that cannot flush gets data that is durable (virtio 1.3, 5.2.6.2).
        if !has(Feature.flush) && !has(Feature.writeCache) { setWriteback(false) }
    }

    public override func resetDevice() { setWriteback(startsWriteback) }

    public override func handle(_ queue: VirtQueue) { serve(queue) }

    // MARK: Draining and pause

    public override func hold() {
        isHeld = true
        backend.hold()
    }

    public override var isBusy: Bool { backend.inHand > 0 }

    public override var workInHand: String {
        "\(backend.inHand) request\(backend.inHand == 1 ? "" : "s") of drive '\(backend.id)'"
    }

    public override func release() {
        guard isHeld else { return }
        isHeld = false
        backend.release()
        guard isRunning else { return }
        goOn()
        for queue in queues where queue.hasAvailable { handle(queue) }
    }

    public override func pauseDevice() {
        hold()
        backend.finish(limit: VirtioBlock.pauseLimit)
    }

    public override func resumeDevice() {
        isHeld = false
        backend.release()
        backend.ioStatus = .ok
        goOn()
    }

    public override func finish(_ queue: VirtQueue) {
        backend.finish()
        unfinished.removeAll { $0.queue == queue.index }
        inHand[queue.index] = 0
        isFull[queue.index] = false
    }

    // MARK: State

    public override func saveDevice(to writer: inout StateWriter) {
        writer.put("write-cache", backend.isWriteback, optional: true)
        writer.put("capacity", backend.size / 512, optional: true)
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

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        let loaded = try chains(in: reader)
        let isWriteback = reader.has("write-cache") ? try reader.bool("write-cache") : nil
        let capacity = reader.has("capacity") ? try reader.unsigned("capacity", in: 0...UInt64(Int64.max) / 512) : nil
        return { [self] in
            unfinished = loaded
            for index in inHand.indices { inHand[index] = loaded.filter { $0.queue == index }.count }
            if let isWriteback { setWriteback(isWriteback) }
            // It may have been given another size by the process before, or by somebody else.
            backend.refreshSize(known: (capacity ?? 0) * 512)
            config.put(backend.size / 512, at: Field.capacity)
            if let capacity, capacity != backend.size / 512 { configChanged() }
        }
    }
}
