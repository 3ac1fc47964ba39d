import BatonRuntime
import Glibc

/// From chains to requests (virtio 1.2, 5.6.6.1).
extension VirtioSCSI {
    /// Bytes before the data: LUN, tag, three bytes of the transport's, and the command.
    private static let requestSize = 19 + SCSICommand.size
    /// Bytes before the data of the other direction: lengths, status and sense data.
    private static let responseSize = 12 + senseSize

    private enum Response {
        static let ok: UInt8 = 0
        static let overrun: UInt8 = 1
        static let badTarget: UInt8 = 3
    }

    private enum Status {
        static let good: UInt8 = 0
        static let checkCondition: UInt8 = 2
    }

    private var requestBytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: scratch[0..<VirtioSCSI.requestSize])
    }
    private var responseBytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: scratch[64..<64 + VirtioSCSI.responseSize])
    }

    /// Target and LUN of eight bytes; nil where they name neither.
    func address(_ bytes: UnsafeRawBufferPointer) -> (target: UInt8, lun: UInt16)? {
        guard bytes[0] == 1 else { return nil }
        return (bytes[1], (UInt16(bytes[2]) << 8 | UInt16(bytes[3])) & 0x3fff)
    }

    func startRequest(_ chain: VirtioChain, _ queue: VirtQueue) -> Bool {
        let request = requestBytes
        guard chain.writableBytes >= VirtioSCSI.responseSize,
            queue.copyOut(chain, offset: 0, to: request) == request.count
        else {
            fail("request of \(chain.readableBytes) bytes, with room for \(chain.writableBytes)")
            return false
        }
        let command = SCSICommand(UnsafeRawBufferPointer(rebasing: request[19...]))
        guard let (target, lun) = address(UnsafeRawBufferPointer(request)) else {
            respond(chain, queue, response: Response.badTarget)
            return true
        }
        guard let index = index(target: target, lun: lun) else {
            answerAbsent(chain, queue, command, luns: luns(of: target))
            return true
        }
        let disk = disks[index]
        switch command.operation {
        case SCSIOperation.inquiry, SCSIOperation.reportLUNs, SCSIOperation.requestSense: break
        default:
            guard disk.owesAttention else { break }
            disk.owesAttention = false
            respond(chain, queue, sense: .capacityChanged)
            return true
        }
        switch command.operation {
        case SCSIOperation.read6, SCSIOperation.read10, SCSIOperation.read12, SCSIOperation.read16:
            transfer(.read, index, command, chain, queue)
        case SCSIOperation.write6, SCSIOperation.write10, SCSIOperation.write12, SCSIOperation.write16:
            transfer(.write, index, command, chain, queue)
        case SCSIOperation.synchronizeCache10, SCSIOperation.synchronizeCache16:
            begin(.flush, index, chain, queue) { _ in }
        case SCSIOperation.writeSame10, SCSIOperation.writeSame16:
            writeSame(index, command, chain, queue)
        case SCSIOperation.unmap: unmap(index, command, chain, queue)
        default: finish(chain, queue, command, disk.answer(command, luns: luns(of: target)))
        }
        return true
    }

    // MARK: Answers

    /// A logical unit that is not there, of a target that may be.
    private func answerAbsent(_ chain: VirtioChain, _ queue: VirtQueue, _ command: SCSICommand, luns: [UInt16]) {
        guard !luns.isEmpty else { return respond(chain, queue, response: Response.badTarget) }
        switch command.operation {
        case SCSIOperation.inquiry: finish(chain, queue, command, .data(SCSIDisk.absentInquiry))
        case SCSIOperation.reportLUNs: finish(chain, queue, command, SCSIDisk.report(luns, command))
        default: respond(chain, queue, sense: .unsupportedLUN)
        }
    }

    private func finish(_ chain: VirtioChain, _ queue: VirtQueue, _ command: SCSICommand, _ answer: SCSIDisk.Answer) {
        switch answer {
        case .failure(let sense): respond(chain, queue, sense: sense)
        case .data(let bytes):
            let count = min(bytes.count, command.allocationLength, chain.writableBytes - VirtioSCSI.responseSize)
            let moved = bytes.withUnsafeBytes {
                queue.copyIn(
                    chain, offset: VirtioSCSI.responseSize, from: UnsafeRawBufferPointer(rebasing: $0[..<count]))
            }
            respond(chain, queue, moved: moved)
        }
    }

    /// Writes the response of the chain that the queue gave last, and gives it back.
    /// - Parameter moved: bytes of data, in either direction.
    private func respond(
        _ chain: VirtioChain, _ queue: VirtQueue, response: UInt8 = Response.ok, sense: SCSISense? = nil,
        moved: Int = 0
    ) {
        let bytes = responseBytes
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
        let room = chain.writableBytes - VirtioSCSI.responseSize
        let left = max(0, chain.readableBytes - VirtioSCSI.requestSize) + room - moved
        bytes.storeBytes(of: UInt32(clamping: left).littleEndian, toByteOffset: 4, as: UInt32.self)
        bytes[11] = response
        if let sense {
            bytes[10] = Status.checkCondition
            bytes.storeBytes(of: UInt32(SCSISense.size).littleEndian, toByteOffset: 0, as: UInt32.self)
            sense.write(to: UnsafeMutableRawBufferPointer(rebasing: bytes[12..<12 + SCSISense.size]))
        }
        _ = queue.copyIn(chain, offset: 0, from: UnsafeRawBufferPointer(bytes))
        push(
            queue, chain.head, readable: chain.readableBytes,
            written: VirtioSCSI.responseSize + min(moved, room))
    }

    // MARK: Blocks

    private func transfer(
        _ kind: BlockRequest.Kind, _ index: Int, _ command: SCSICommand, _ chain: VirtioChain, _ queue: VirtQueue
    ) {
        let disk = disks[index]
        let isRead = kind == .read
        guard isRead || !disk.isReadOnly else { return respond(chain, queue, sense: .writeProtected) }
        // Protection information, and data that is to be durable at once, are not offered.
        let isShort = command.operation == SCSIOperation.read6 || command.operation == SCSIOperation.write6
        guard isShort || command[1] & (isRead ? 0xe0 : 0xe8) == 0 else {
            return respond(chain, queue, sense: .invalidField)
        }
        let (block, count) = command.range
        guard let (offset, length) = disk.place(block, count) else {
            return respond(chain, queue, sense: .outOfRange)
        }
        guard length <= UInt64(VirtioStorage.maxRequest) else { return respond(chain, queue, sense: .invalidField) }
        let skip = isRead ? VirtioSCSI.responseSize : VirtioSCSI.requestSize
        let room = (isRead ? chain.writableBytes : chain.readableBytes) - skip
        guard length <= UInt64(room) else { return respond(chain, queue, response: Response.overrun) }
        guard length > 0 else { return respond(chain, queue) }
        begin(kind, index, chain, queue) {
            $0.pointee.move(chain, queue, skip: skip, length: Int(length), offset: offset)
        }
    }

    /// Starts a request, which may end before this returns.
    private func begin(
        _ kind: BlockRequest.Kind, _ index: Int, _ chain: VirtioChain, _ queue: VirtQueue,
        _ set: (UnsafeMutablePointer<BlockSlot>) -> Void
    ) {
        // There are as many as can be in hand.
        guard let slot = slots.take(kind, chain, queue) else { return respond(chain, queue, sense: .readError) }
        slot.pointee.disk = index
        set(slot)
        disks[index].backend.start(BlockSlots.request(of: slot))
    }

    /// A range for a request that moves no data, of the size that one may have; else the answer has been given.
    private func range(
        _ disk: SCSIDisk, _ block: UInt64, _ count: UInt64, _ chain: VirtioChain, _ queue: VirtQueue
    ) -> (offset: UInt64, length: UInt64)? {
        guard !disk.isReadOnly else {
            respond(chain, queue, sense: .writeProtected)
            return nil
        }
        guard let place = disk.place(block, count) else {
            respond(chain, queue, sense: .outOfRange)
            return nil
        }
        guard count <= disk.maxRange else {
            respond(chain, queue, sense: .invalidField)
            return nil
        }
        return place
    }

    /// WRITE SAME, of zeroes (SBC-3, 5.46).
    private func writeSame(_ index: Int, _ command: SCSICommand, _ chain: VirtioChain, _ queue: VirtQueue) {
        let disk = disks[index]
        let (block, count) = command.range
        let hasNoData = command.operation == SCSIOperation.writeSame16 && command[1] & 1 != 0
        let unmaps = command[1] & 8 != 0
        guard command[1] & 0xf0 == 0, count > 0, !unmaps || disk.discards else {
            return respond(chain, queue, sense: .invalidField)
        }
        if !hasNoData {
            let isZero: Bool? = withUnsafeTemporaryAllocation(byteCount: Int(disk.blockSize), alignment: 8) { bytes in
                guard queue.copyOut(chain, offset: VirtioSCSI.requestSize, to: bytes) == bytes.count else { return nil }
                return bytes.allSatisfy { $0 == 0 }
            }
            guard let isZero else { return respond(chain, queue, response: Response.overrun) }
            // A driver that is refused writes the blocks itself.
            guard isZero else { return respond(chain, queue, sense: .invalidField) }
        }
        guard let (offset, length) = range(disk, block, count, chain, queue) else { return }
        begin(.writeZeroes, index, chain, queue) { slot in
            slot.pointee.request.offset = offset
            slot.pointee.request.length = length
            slot.pointee.request.mayUnmap = unmaps
        }
    }

    /// UNMAP of one range (SBC-3, 5.28).
    private func unmap(_ index: Int, _ command: SCSICommand, _ chain: VirtioChain, _ queue: VirtQueue) {
        let disk = disks[index]
        guard disk.discards else { return respond(chain, queue, sense: .invalidOpcode) }
        let size = Int(command.number(UInt16.self, at: 7))
        guard command[1] & 1 == 0 else { return respond(chain, queue, sense: .invalidField) }
        guard size > 0 else { return respond(chain, queue) }
        let bytes = UnsafeMutableRawBufferPointer(rebasing: scratch[176..<200])
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
        let copied = queue.copyOut(chain, offset: VirtioSCSI.requestSize, to: bytes)
        guard size >= 8, copied >= min(size, bytes.count) else {
            return respond(chain, queue, sense: .invalidParameter)
        }
        // A head with the length of the list, and the one descriptor.
        let parameters = SCSICommand(UnsafeRawBufferPointer(bytes))
        let listed = parameters.number(UInt16.self, at: 2)
        guard listed > 0 else { return respond(chain, queue) }
        guard listed == 16, size >= bytes.count else { return respond(chain, queue, sense: .invalidParameter) }
        let (block, count) = (parameters.number(UInt64.self, at: 8), UInt64(parameters.number(UInt32.self, at: 16)))
        guard let (offset, length) = range(disk, block, count, chain, queue) else { return }
        guard length > 0 else { return respond(chain, queue) }
        begin(.discard, index, chain, queue) { slot in
            slot.pointee.request.offset = offset
            slot.pointee.request.length = length
        }
    }

    // MARK: Completion

    /// A request has ended.
    func completed(_ request: UnsafeMutablePointer<BlockRequest>) {
        let slot = BlockSlots.of(request)
        let disk = disks[slot.pointee.disk]
        let outcome = outcome(of: request, &disk.errors)
        if outcome == .again { return }
        let queue = queues[slot.pointee.queue]
        // The driver may have spoiled it meanwhile: then the device has failed.
        if let chain = queue.chain(at: slot.pointee.head), chain.writableBytes >= VirtioSCSI.responseSize {
            if outcome == .done {
                // Of a range, all of what describes it.
                let described = max(0, chain.readableBytes - VirtioSCSI.requestSize)
                respond(chain, queue, moved: slot.pointee.length > 0 ? slot.pointee.length : described)
            } else {
                let isRead = slot.pointee.request.kind == .read
                let isFull = request.pointee.error == ENOSPC && !isRead
                respond(
                    chain, queue, sense: isFull ? .spaceAllocationFailed : isRead ? .readError : .writeError)
            }
        } else if isOperating {
            fail("request that has changed while it was carried out")
        }
        finished(slot, of: disk.backend, failed: outcome != .done)
    }
}
