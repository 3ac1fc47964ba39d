import BatonRuntime
import Glibc

/// virtio-blk (virtio 1.3, 5.2) on a block back end. Requests finish within
/// the notification that brings them.
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

    deinit { scratch.deallocate() }

    public override func handle(_ queue: VirtQueue) {
        repeat {
            while let chain = queue.next() {
                guard let written = serve(chain, queue) else { return }
                queue.consume()
                queue.push(chain, written: written)
            }
        } while queue.enableNotifications()
        queue.signal()
    }

    /// Carries out one request.
    /// - Returns: the number of bytes written to the chain, status included;
    ///   nil when the chain is no request and the device has failed.
    private func serve(_ chain: VirtioChain, _ queue: VirtQueue) -> Int? {
        let header = UnsafeMutableRawBufferPointer(rebasing: scratch[0..<16])
        guard chain.writableBytes > 0, queue.copyOut(chain, offset: 0, to: header) == 16 else {
            fail("request without a header or a status byte")
            return nil
        }
        let type = header.load(as: UInt32.self)
        let sector = header.load(fromByteOffset: 8, as: UInt64.self)
        let room = chain.writableBytes &- 1
        var status = Status.ok
        var data = 0
        switch type {
        case Request.read:
            (status, data) = read(chain, queue, sector: sector, length: room)
        case Request.write:
            status = write(chain, queue, sector: sector)
        case Request.flush:
            status = backend.flush() ? Status.ok : Status.ioError
        case Request.getID:
            (status, data) = getID(chain, queue, room: room)
        case Request.discard, Request.writeZeroes:
            status = ranges(chain, queue, zeroes: type == Request.writeZeroes)
        default:
            Log.unimplemented("\(stateName): request of type \(type)")
            status = Status.unsupported
        }
        withUnsafeBytes(of: status) { _ = queue.copyIn(chain, offset: room, from: $0) }
        return data &+ 1
    }

    /// The byte offset of a transfer that lies within the disk, else nil.
    private func place(_ sector: UInt64, _ length: Int) -> UInt64? {
        let (offset, overflow) = sector.multipliedReportingOverflow(by: 512)
        guard length % 512 == 0, !overflow, backend.contains(offset: offset, length: UInt64(length)) else {
            Log.guestError("\(stateName): \(length) bytes at sector \(sector) are not within the disk")
            return nil
        }
        return offset
    }

    private func read(_ chain: VirtioChain, _ queue: VirtQueue, sector: UInt64, length: Int) -> (UInt8, Int) {
        guard let offset = place(sector, length) else { return (Status.ioError, 0) }
        // All but the last byte, which is the status.
        let vectors = queue.writable(chain)
        let last = vectors.count - 1
        let whole = vectors[last].iov_len
        vectors[last].iov_len = whole - 1
        let done = backend.read(UnsafeBufferPointer(vectors), offset: offset)
        vectors[last].iov_len = whole
        // A read that fails half way may have stored something all the same.
        queue.didWrite(chain, length: length)
        return done ? (Status.ok, length) : (Status.ioError, 0)
    }

    private func write(_ chain: VirtioChain, _ queue: VirtQueue, sector: UInt64) -> UInt8 {
        guard !backend.readOnly, let offset = place(sector, chain.readableBytes &- 16) else { return Status.ioError }
        var vectors = queue.readable(chain)
        var skip = 16
        while let first = vectors.first, first.iov_len <= skip {
            skip -= first.iov_len
            vectors = UnsafeMutableBufferPointer(rebasing: vectors[1...])
        }
        if skip > 0, vectors.count > 0 {
            vectors[0].iov_base = vectors[0].iov_base.map { $0 + skip }
            vectors[0].iov_len -= skip
        }
        return backend.write(UnsafeBufferPointer(vectors), offset: offset) ? Status.ok : Status.ioError
    }

    private func getID(_ chain: VirtioChain, _ queue: VirtQueue, room: Int) -> (UInt8, Int) {
        let count = min(room, 20)
        let id = UnsafeMutableRawBufferPointer(rebasing: scratch[16..<36])
        id.initializeMemory(as: UInt8.self, repeating: 0)
        id.copyBytes(from: serial)
        return (Status.ok, queue.copyIn(chain, offset: 0, from: UnsafeRawBufferPointer(rebasing: id[..<count])))
    }

    /// DISCARD and WRITE ZEROES: one range (virtio 1.3, 5.2.6).
    private func ranges(_ chain: VirtioChain, _ queue: VirtQueue, zeroes: Bool) -> UInt8 {
        let segment = UnsafeMutableRawBufferPointer(rebasing: scratch[16..<32])
        guard !backend.readOnly, zeroes || backend.discardEnabled else { return Status.unsupported }
        guard chain.readableBytes == 32, queue.copyOut(chain, offset: 16, to: segment) == 16 else {
            Log.guestError("\(stateName): \(chain.readableBytes - 16) bytes of ranges to discard or zero")
            return Status.unsupported
        }
        let sector = segment.load(as: UInt64.self)
        let count = segment.load(fromByteOffset: 8, as: UInt32.self)
        let flags = segment.load(fromByteOffset: 12, as: UInt32.self)
        guard flags & ~(zeroes ? 1 : 0) == 0, count <= VirtioBlock.maxSectors else {
            Log.guestError("\(stateName): \(count) sectors to discard or zero, flags \(Hex(UInt64(flags)))")
            return Status.unsupported
        }
        guard let offset = place(sector, Int(count) * 512) else { return Status.ioError }
        guard count > 0 else { return Status.ok }
        let length = UInt64(count) * 512
        let done =
            zeroes
            ? backend.writeZeroes(offset: offset, length: length, mayUnmap: flags & 1 != 0)
            : backend.discard(offset: offset, length: length)
        return done ? Status.ok : Status.ioError
    }
}
