import BatonRuntime
import Glibc

/// virtio-blk (virtio 1.3, 5.2) on a block back end.
///
/// Requests are carried out in order. Large ones are done in pieces, as one may
/// be of gigabytes: a request that has used up the device's share of a turn
/// stays in the ring, and goes on after `VirtQueue.progress` bytes in a later
/// one. After a restart it begins anew, as the driver has not been told of it.
public final class VirtioBlock: VirtioDevice {
    private let backend: BlockBackend
    private let serial: [UInt8]
    /// Scratch for requests and discard segments.
    private let scratch: UnsafeMutableRawBufferPointer

    private enum Feature {
        static let segmentMax: UInt64 = 1 << 2
        static let readOnly: UInt64 = 1 << 5
        static let blockSize: UInt64 = 1 << 6
        static let flush: UInt64 = 1 << 9
        static let discard: UInt64 = 1 << 13
        static let writeZeroes: UInt64 = 1 << 14
    }

    private enum Request {
        static let read: UInt32 = 0
        static let write: UInt32 = 1
        static let flush: UInt32 = 4
        static let getID: UInt32 = 8
        static let discard: UInt32 = 11
        static let writeZeroes: UInt32 = 13
    }

    private enum Status {
        static let ok: UInt8 = 0
        static let ioError: UInt8 = 1
        static let unsupported: UInt8 = 2
    }

    static let queueSize: UInt16 = 256
    /// As QEMU's `max-discard-sectors` and `max-write-zeroes-sectors`.
    private static let maxSectors: UInt32 = 0x3f_ffff
    private static let maxDiscardSegments = 1
    /// Bytes of a request at most, as QEMU's BDRV_REQUEST_MAX_BYTES.
    private static let maxRequest = 0x7fff_fe00
    /// Bytes that are read or written, zeroed or discarded at once.
    private static let transferPiece = 1 << 19
    private static let zeroPiece = 1 << 22
    private static let discardPiece = 1 << 25
    /// Scratch for the segments of a piece.
    private let parts = UnsafeMutablePointer<iovec>.allocate(capacity: VirtQueue.maxSegments)
    /// CLOCK_MONOTONIC in nanoseconds when the last request was taken.
    private var begun: Int64 = 0

    /// - Parameter serial: what GET_ID gives; at most 20 bytes.
    public init(vm: VirtualMachine, backend: BlockBackend, serial: String) {
        self.backend = backend
        self.serial = Array(serial.utf8.prefix(20))
        scratch = .allocate(byteCount: 64, alignment: 16)
        scratch.initializeMemory(as: UInt8.self, repeating: 0)
        var features = Feature.segmentMax | Feature.blockSize | Feature.flush
        if backend.readOnly {
            features |= Feature.readOnly
        } else {
            features |= Feature.writeZeroes
            if backend.discardEnabled { features |= Feature.discard }
        }
        var config = [UInt8](repeating: 0, count: 60)
        config.put(backend.size / 512, at: 0)
        config.put(UInt32(VirtioBlock.queueSize) - 2, at: 12)
        config.put(UInt32(512), at: 20)
        config.put(UInt16(1), at: 34)
        if !backend.readOnly {
            if backend.discardEnabled {
                config.put(VirtioBlock.maxSectors, at: 36)
                config.put(UInt32(VirtioBlock.maxDiscardSegments), at: 40)
                config.put(UInt32(1), at: 44)
            }
            config.put(VirtioBlock.maxSectors, at: 48)
            config.put(UInt32(VirtioBlock.maxDiscardSegments), at: 52)
            config[56] = 1
        }
        super.init(
            model: "virtio-blk", deviceID: 2, vm: vm, features: features, queueSizes: [VirtioBlock.queueSize],
            config: config)
    }

    deinit {
        scratch.deallocate()
        parts.deallocate()
    }

    public override func handle(_ queue: VirtQueue) { serveChains(queue) { serve($0, queue) } }

    /// What became of a request, or of a piece of it.
    private enum Result {
        /// The status, and how many bytes were written to the chain before it.
        case done(UInt8, Int)
        case unfinished

        static func done(_ status: UInt8) -> Result { .done(status, 0) }

        /// With so many bytes in the chain, if all of the request was done.
        func written(_ count: Int) -> Result {
            if case .done(Status.ok, _) = self { .done(Status.ok, count) } else { self }
        }
    }

    /// Carries out one request, or goes on with it.
    private func serve(_ chain: VirtioChain, _ queue: VirtQueue) -> Served {
        let header = UnsafeMutableRawBufferPointer(rebasing: scratch[0..<16])
        guard chain.writableBytes > 0, queue.copyOut(chain, offset: 0, to: header) == 16 else {
            fail("request without a header or a status byte")
            return .stopped
        }
        let type = header.load(as: UInt32.self)
        let sector = header.load(fromByteOffset: 8, as: UInt64.self)
        let room = chain.writableBytes &- 1
        if queue.progress == 0 { begun = EventLoop.now }
        let result: Result
        switch type {
        case Request.read: result = read(chain, queue, sector: sector, length: room)
        case Request.write: result = write(chain, queue, sector: sector)
        case Request.flush: result = flush()
        case Request.getID: result = getID(chain, queue, room: room)
        case Request.discard, Request.writeZeroes: result = ranges(chain, queue, zeroes: type == Request.writeZeroes)
        default:
            Log.unimplemented("\(stateName): request of type \(type)")
            result = .done(Status.unsupported)
        }
        guard case .done(let status, let data) = result else { return .unfinished }
        count(type, bytes: type == Request.read ? data : chain.readableBytes &- 16, failed: status != Status.ok)
        withUnsafeBytes(of: status) { _ = queue.copyIn(chain, offset: room, from: $0) }
        return .used(data &+ 1)
    }

    private func count(_ type: UInt32, bytes: Int, failed: Bool) {
        let time = EventLoop.now &- begun
        let operation: BlockStatistics.Operation
        switch type {
        case Request.read: operation = .read
        case Request.write: operation = .write
        case Request.flush: operation = .flush
        case Request.discard, Request.writeZeroes: operation = .unmap
        default: return
        }
        let hasBytes = operation == .read || operation == .write
        backend.statistics.count(operation, bytes: hasBytes ? bytes : 0, nanoseconds: time, failed: failed)
    }

    /// The byte offset of a transfer that lies within the disk, else nil.
    private func place(_ sector: UInt64, _ length: Int) -> UInt64? {
        let (offset, overflow) = sector.multipliedReportingOverflow(by: 512)
        guard length % 512 == 0, length <= VirtioBlock.maxRequest, !overflow,
            backend.contains(offset: offset, length: UInt64(length))
        else {
            Log.guestError("\(stateName): \(length) bytes at sector \(sector) are not within the disk, or too many")
            return nil
        }
        return offset
    }

    private func read(_ chain: VirtioChain, _ queue: VirtQueue, sector: UInt64, length: Int) -> Result {
        guard let offset = place(sector, length) else { return .done(Status.ioError) }
        let vectors = queue.writable(chain)
        guard length <= VirtioBlock.transferPiece else {
            return inPieces(queue, of: VirtioBlock.transferPiece, length: length) { position, count in
                let parts = queue.slice(vectors, offset: position, count: count, into: parts)
                let done = backend.read(parts, offset: offset + UInt64(position))
                queue.didWrite(chain, offset: position, length: count)
                return done
            }.written(length)
        }
        // All but the last byte, which is the status.
        let last = vectors.count - 1
        let whole = vectors[last].iov_len
        vectors[last].iov_len = whole - 1
        let done = backend.read(UnsafeBufferPointer(vectors), offset: offset)
        vectors[last].iov_len = whole
        // A read that fails half way may have stored something all the same.
        queue.didWrite(chain, length: length)
        return done ? .done(Status.ok, length) : .done(Status.ioError)
    }

    private func write(_ chain: VirtioChain, _ queue: VirtQueue, sector: UInt64) -> Result {
        let length = chain.readableBytes &- 16
        guard !backend.readOnly, let offset = place(sector, length) else { return .done(Status.ioError) }
        var vectors = queue.readable(chain)
        guard length <= VirtioBlock.transferPiece else {
            return inPieces(queue, of: VirtioBlock.transferPiece, length: length) { position, count in
                let parts = queue.slice(vectors, offset: 16 + position, count: count, into: parts)
                return backend.write(parts, offset: offset + UInt64(position))
            }
        }
        var skip = 16
        while let first = vectors.first, first.iov_len <= skip {
            skip -= first.iov_len
            vectors = UnsafeMutableBufferPointer(rebasing: vectors[1...])
        }
        if skip > 0, vectors.count > 0 {
            vectors[0].iov_base = vectors[0].iov_base.map { $0 + skip }
            vectors[0].iov_len -= skip
        }
        return .done(backend.write(UnsafeBufferPointer(vectors), offset: offset) ? Status.ok : Status.ioError)
    }

    /// Does a request piece by piece, as far as the device's share goes. The
    /// driver may have changed the request since the piece before, so each is
    /// done within `length` as it is now.
    private func inPieces(
        _ queue: VirtQueue, of size: Int, length: Int, _ piece: (_ position: Int, _ count: Int) -> Bool
    ) -> Result {
        var position = min(queue.progress, length)
        while position < length {
            let count = min(size, length - position)
            guard piece(position, count) else { return .done(Status.ioError) }
            position += count
            queue.progress = position
            if position < length, !vm.loop.mayGoOn(after: size) { return .unfinished }
        }
        return .done(Status.ok)
    }

    private func flush() -> Result {
        let done = backend.flush()
        // Who knows how long that took: the next request looks at the clock.
        _ = vm.loop.mayGoOn(after: 1 << 18)
        return .done(done ? Status.ok : Status.ioError)
    }

    private func getID(_ chain: VirtioChain, _ queue: VirtQueue, room: Int) -> Result {
        let count = min(room, 20)
        let id = UnsafeMutableRawBufferPointer(rebasing: scratch[16..<36])
        id.initializeMemory(as: UInt8.self, repeating: 0)
        id.copyBytes(from: serial)
        return .done(Status.ok, queue.copyIn(chain, offset: 0, from: UnsafeRawBufferPointer(rebasing: id[..<count])))
    }

    /// DISCARD and WRITE ZEROES: one range (virtio 1.3, 5.2.6).
    private func ranges(_ chain: VirtioChain, _ queue: VirtQueue, zeroes: Bool) -> Result {
        let segment = UnsafeMutableRawBufferPointer(rebasing: scratch[16..<32])
        guard !backend.readOnly, zeroes || backend.discardEnabled else { return .done(Status.unsupported) }
        guard chain.readableBytes == 32, queue.copyOut(chain, offset: 16, to: segment) == 16 else {
            Log.guestError("\(stateName): \(chain.readableBytes - 16) bytes of ranges to discard or zero")
            return .done(Status.unsupported)
        }
        let sector = segment.load(as: UInt64.self)
        let count = segment.load(fromByteOffset: 8, as: UInt32.self)
        let flags = segment.load(fromByteOffset: 12, as: UInt32.self)
        guard flags & ~(zeroes ? 1 : 0) == 0, count <= VirtioBlock.maxSectors else {
            Log.guestError("\(stateName): \(count) sectors to discard or zero, flags \(Hex(UInt64(flags)))")
            return .done(Status.unsupported)
        }
        guard let offset = place(sector, Int(count) * 512) else { return .done(Status.ioError) }
        guard count > 0 else { return .done(Status.ok) }
        let length = Int(count) * 512
        return inPieces(queue, of: zeroes ? VirtioBlock.zeroPiece : VirtioBlock.discardPiece, length: length) {
            let (offset, length) = (offset + UInt64($0), UInt64($1))
            return zeroes
                ? backend.writeZeroes(offset: offset, length: length, mayUnmap: flags & 1 != 0)
                : backend.discard(offset: offset, length: length)
        }
    }
}
