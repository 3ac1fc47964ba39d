import BatonRuntime
import Glibc

/// virtio-blk (virtio 1.3, 5.2) on a block back end.
public final class VirtioBlock: VirtioStorage {
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
    var errors: BlockErrors
    private let startsWriteback: Bool
    /// Scratch for requests and discard segments.
    let scratch: UnsafeMutableRawBufferPointer
    private var isDetached = false

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

    public init(vm: VirtualMachine, backend: BlockBackend, properties: Properties = Properties()) {
        self.backend = backend
        serial = Array(properties.serial.utf8.prefix(20))
        errors = BlockErrors(of: backend, onWrite: properties.onWriteError, onRead: properties.onReadError)
        startsWriteback = properties.writeCache ?? backend.settings.cache.isWriteback
        let count = properties.queueCount
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
            queueSizes: Array(repeating: properties.queueSize, count: count), config: config,
            requests: count * Int(properties.queueSize))
        backend.isWriteback = startsWriteback
        use(backend) { [unowned(unsafe) self] in completed($0) }
        backend.onResize = { [unowned(unsafe) self] in resized() }
    }

    /// Gives the back end back: another device may use it. The device is reset, and is used no more.
    func detach() {
        guard !isDetached else { return }
        isDetached = true
        VirtioStorage.letGo(backend)
        backend.user = nil
    }

    deinit {
        detach()
        scratch.deallocate()
    }

    override var backends: [BlockBackend] { [backend] }
    override func submit() { backend.submit() }
    override func start(_ chain: VirtioChain, _ queue: VirtQueue) -> Bool { startRequest(chain, queue) }

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

    // MARK: State

    public override func saveDevice(to writer: inout StateWriter) {
        writer.put("write-cache", backend.isWriteback, optional: true)
        writer.put("capacity", backend.size / 512, optional: true)
        saveUnfinished(to: &writer)
    }

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        let applyUnfinished = try loadUnfinished(from: reader)
        let isWriteback = reader.has("write-cache") ? try reader.bool("write-cache") : nil
        let capacity = reader.has("capacity") ? try reader.unsigned("capacity", in: 0...UInt64(Int64.max) / 512) : nil
        return { [self] in
            applyUnfinished()
            if let isWriteback { setWriteback(isWriteback) }
            // It may have been given another size by the process before, or by somebody else.
            backend.refreshSize(known: (capacity ?? 0) * 512)
            config.put(backend.size / 512, at: Field.capacity)
            if let capacity, capacity != backend.size / 512 { configChanged() }
        }
    }
}
