import BatonRuntime
import Glibc

/// From chains to requests.
extension VirtioBlock {
    private enum Request {
        static let read: UInt32 = 0
        static let write: UInt32 = 1
        static let flush: UInt32 = 4
        static let getID: UInt32 = 8
        static let discard: UInt32 = 11
        static let writeZeroes: UInt32 = 13
    }

    enum Status {
        static let ok: UInt8 = 0
        static let ioError: UInt8 = 1
        static let unsupported: UInt8 = 2
    }

    func startRequest(_ chain: VirtioChain, _ queue: VirtQueue) -> Bool {
        let header = UnsafeMutableRawBufferPointer(rebasing: scratch[0..<16])
        guard chain.writableBytes > 0, queue.copyOut(chain, offset: 0, to: header) == 16 else {
            fail("request without a header or a status byte")
            return false
        }
        let type = header.load(as: UInt32.self)
        let sector = header.load(fromByteOffset: 8, as: UInt64.self)
        switch type {
        case Request.read: read(chain, queue, sector)
        case Request.write: write(chain, queue, sector)
        case Request.flush: begin(.flush, chain, queue) { _ in }
        case Request.getID: getID(chain, queue)
        case Request.discard, Request.writeZeroes: range(chain, queue, zeroes: type == Request.writeZeroes)
        default:
            Log.unimplemented("\(stateName): request of type \(type)")
            answer(chain, queue, Status.unsupported)
        }
        return true
    }

    /// Answers a chain that has no slot.
    private func answer(_ chain: VirtioChain, _ queue: VirtQueue, _ status: UInt8, written: Int = 0) {
        withUnsafeBytes(of: status) { _ = queue.copyIn(chain, offset: chain.writableBytes &- 1, from: $0) }
        push(queue, chain.head, readable: chain.readableBytes, written: written &+ 1)
    }

    /// Starts a request.
    private func begin(
        _ kind: BlockRequest.Kind, _ chain: VirtioChain, _ queue: VirtQueue,
        _ set: (UnsafeMutablePointer<BlockSlot>) -> Void
    ) {
        // There are as many as can be in hand.
        guard let slot = slots.take(kind, chain, queue) else { return answer(chain, queue, Status.ioError) }
        let last = chain.readableCount &+ chain.writableCount &- 1
        let vector = queue.segments[last]
        slot.pointee.status = vector.iov_base.map { $0 + (vector.iov_len &- 1) }
        slot.pointee.statusAddress = queue.addresses[last] &+ UInt64(vector.iov_len &- 1)
        set(slot)
        backend.start(BlockSlots.request(of: slot))
    }

    /// The byte offset of a transfer that lies within the disk, else nil.
    private func place(_ sector: UInt64, _ length: Int) -> UInt64? {
        let (offset, overflow) = sector.multipliedReportingOverflow(by: 512)
        guard length % 512 == 0, length <= VirtioStorage.maxRequest, !overflow,
            backend.contains(offset: offset, length: UInt64(length))
        else {
            Log.guestError("\(stateName): \(length) bytes at sector \(sector) are not within the disk, or too many")
            return nil
        }
        return offset
    }

    private func read(_ chain: VirtioChain, _ queue: VirtQueue, _ sector: UInt64) {
        let length = chain.writableBytes &- 1
        guard let offset = place(sector, length) else { return answer(chain, queue, Status.ioError) }
        guard length > 0 else { return answer(chain, queue, Status.ok) }
        // All but the last byte, which is the status.
        begin(.read, chain, queue) { $0.pointee.move(chain, queue, skip: 0, length: length, offset: offset) }
    }

    private func write(_ chain: VirtioChain, _ queue: VirtQueue, _ sector: UInt64) {
        let length = chain.readableBytes &- 16
        guard !backend.readOnly, let offset = place(sector, length) else {
            return answer(chain, queue, Status.ioError)
        }
        guard length > 0 else { return answer(chain, queue, Status.ok) }
        begin(.write, chain, queue) { $0.pointee.move(chain, queue, skip: 16, length: length, offset: offset) }
    }

    private func getID(_ chain: VirtioChain, _ queue: VirtQueue) {
        let count = min(chain.writableBytes &- 1, 20)
        let id = UnsafeMutableRawBufferPointer(rebasing: scratch[16..<36])
        id.initializeMemory(as: UInt8.self, repeating: 0)
        id.copyBytes(from: serial)
        let copied = queue.copyIn(chain, offset: 0, from: UnsafeRawBufferPointer(rebasing: id[..<count]))
        answer(chain, queue, Status.ok, written: copied)
    }

    /// DISCARD and WRITE ZEROES: one range (virtio 1.3, 5.2.6).
    private func range(_ chain: VirtioChain, _ queue: VirtQueue, zeroes: Bool) {
        let segment = UnsafeMutableRawBufferPointer(rebasing: scratch[16..<32])
        guard !backend.readOnly, zeroes || backend.settings.discards else {
            return answer(chain, queue, Status.unsupported)
        }
        guard chain.readableBytes == 32, queue.copyOut(chain, offset: 16, to: segment) == 16 else {
            Log.guestError("\(stateName): \(chain.readableBytes - 16) bytes of ranges to discard or zero")
            return answer(chain, queue, Status.unsupported)
        }
        let sector = segment.load(as: UInt64.self)
        let count = segment.load(fromByteOffset: 8, as: UInt32.self)
        let flags = segment.load(fromByteOffset: 12, as: UInt32.self)
        guard flags & ~(zeroes ? 1 : 0) == 0, count <= VirtioBlock.maxSectors else {
            Log.guestError("\(stateName): \(count) sectors to discard or zero, flags \(Hex(UInt64(flags)))")
            return answer(chain, queue, Status.unsupported)
        }
        let length = Int(count) * 512
        guard let offset = place(sector, length) else { return answer(chain, queue, Status.ioError) }
        guard count > 0 else { return answer(chain, queue, Status.ok) }
        begin(zeroes ? .writeZeroes : .discard, chain, queue) { slot in
            slot.pointee.request.offset = offset
            slot.pointee.request.length = UInt64(length)
            slot.pointee.request.mayUnmap = flags & 1 != 0 && backend.settings.discards
        }
    }
}
