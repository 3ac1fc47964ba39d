import BatonRuntime
import Glibc

/// From requests back to the driver.
extension VirtioBlock {
    /// How often an error of a kind is told of, in nanoseconds.
    private static let errorInterval: Int64 = 1_000_000_000

    /// A request has ended. The driver is interrupted when all that has ended is known.
    func completed(_ request: UnsafeMutablePointer<BlockRequest>) {
        let slot = BlockSlots.of(request)
        let queue = queues[slot.pointee.queue]
        let code = request.pointee.error
        // A read that fails half way may have stored something all the same.
        for index in 0..<slot.pointee.rangeCount {
            guard let range = slot.pointee.ranges?[index] else { break }
            vm.addressSpace.didWrite(range.address, length: range.length)
        }
        var status = Status.ok
        var isAgain = code == ECANCELED
        if code != 0, !isAgain {
            switch failed(isRead: request.pointee.kind == .read, code) {
            case .stop: isAgain = true
            case .ignore: break
            case .report, .enospc: status = Status.ioError
            }
        }
        // Nothing is told to a guest that stands still, but by a pause that waits for it.
        if isAgain || !isRunning {
            unfinished.append(UnfinishedChain(queue: queue.index, head: slot.pointee.head))
            return slots.giveBack(slot)
        }
        slot.pointee.status?.storeBytes(of: status, as: UInt8.self)
        vm.addressSpace.didWrite(slot.pointee.statusAddress, length: 1)
        let written = status == Status.ok && slot.pointee.rangeCount > 0 ? slot.pointee.length &+ 1 : 1
        push(queue, slot.pointee.head, readable: slot.pointee.readable, written: written)
        count(slot, failed: status != Status.ok)
        slots.giveBack(slot)
    }

    private func count(_ slot: UnsafeMutablePointer<BlockSlot>, failed: Bool) {
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
    }

    func push(_ queue: VirtQueue, _ head: UInt16, readable: Int, written: Int) {
        queue.push(head: head, readable: readable, written: written)
        inHand[queue.index] &-= 1
        isAnswered[queue.index] = true
    }

    func signalAnswers() {
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

    // MARK: Errors

    /// A request has failed: tells the monitors, and stops the guest if that is what is to be done.
    /// - Returns: `report`, `ignore` or `stop`.
    private func failed(isRead: Bool, _ code: Int32) -> BlockErrorPolicy {
        let action = (isRead ? onReadError : onWriteError).action(code)
        if action == .stop {
            // The first error says why.
            if backend.ioStatus == .ok { backend.ioStatus = code == ENOSPC ? .nospace : .failed }
            vm.requestStop(.ioError)
        }
        // The guest can cause these as it likes.
        let kind = (isRead ? 1 : 0) | (action == .report ? 2 : action == .ignore ? 4 : 8) | (code == ENOSPC ? 16 : 0)
        let now = EventLoop.now
        if let last = errorTimes[kind], now - last < VirtioBlock.errorInterval { return action }
        errorTimes[kind] = now
        vm.emit(
            "BLOCK_IO_ERROR",
            [
                "device": .string(backend.id), "node-name": .string(backend.id),
                "operation": isRead ? "read" : "write", "action": .string(action.rawValue),
                "nospace": .bool(code == ENOSPC), "reason": .string(String(cString: strerror(code))),
            ])
        return action
    }
}
