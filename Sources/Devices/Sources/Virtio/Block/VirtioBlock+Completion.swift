import BatonRuntime

/// From requests back to the driver.
extension VirtioBlock {
    /// A request has ended.
    func completed(_ request: UnsafeMutablePointer<BlockRequest>) {
        let outcome = outcome(of: request, &errors)
        if outcome == .again { return }
        let slot = BlockSlots.of(request)
        let status = outcome == .done ? Status.ok : Status.ioError
        slot.pointee.status?.storeBytes(of: status, as: UInt8.self)
        vm.addressSpace.didWrite(slot.pointee.statusAddress, length: 1)
        let written = status == Status.ok && slot.pointee.rangeCount > 0 ? slot.pointee.length &+ 1 : 1
        push(queues[slot.pointee.queue], slot.pointee.head, readable: slot.pointee.readable, written: written)
        finished(slot, of: backend, failed: status != Status.ok)
    }
}
