import BatonRuntime

/// The control queue (virtio 1.3, 5.1.6.5).
extension VirtioNet {
    /// - Returns: false when the command is wrong; then nothing has changed.
    func carryOut(_ request: inout NetControlRequest) -> Bool {
        let command = request.command
        switch (request.kind, command) {
        case (NetControlRequest.Class.receive, 0...5):
            guard has(command < 2 ? VirtioNetFeature.controlReceive : VirtioNetFeature.controlReceiveExtra),
                request.remaining == 1, let value = request.number(UInt8.self)
            else { return false }
            let bit = ReceiveFilter.Mode(rawValue: 1 << command)
            if value != 0 { filter.mode.insert(bit) } else { filter.mode.remove(bit) }
            return true
        case (NetControlRequest.Class.address, 0):
            guard has(VirtioNetFeature.controlReceive), let unicast = request.table(), let multicast = request.table(),
                request.remaining == 0
            else { return false }
            filter.unicast = unicast.addresses
            filter.multicast = multicast.addresses
            filter.mode.remove([.unicastOverflow, .multicastOverflow])
            if unicast.isTooLong { filter.mode.insert(.unicastOverflow) }
            if multicast.isTooLong { filter.mode.insert(.multicastOverflow) }
            return true
        case (NetControlRequest.Class.address, 1):
            guard has(VirtioNetFeature.controlAddress), request.remaining == 6, let address = request.address() else {
                return false
            }
            setAddress(address)
            return true
        case (NetControlRequest.Class.announcement, 0):
            guard has(VirtioNetFeature.guestAnnounce), request.remaining == 0, linkChange.acknowledge() else {
                return false
            }
            setLink()
            return true
        case (NetControlRequest.Class.queues, 0):
            guard has(VirtioNetFeature.multipleQueues), request.remaining == 2, let pairs = request.number(UInt16.self)
            else { return false }
            return usePairs(Int(pairs))
        case (NetControlRequest.Class.offloads, 0):
            guard has(VirtioNetFeature.controlGuestOffloads), request.remaining == 8,
                let offloads = request.number(UInt64.self),
                offloads & ~(driverFeatures & VirtioNetFeature.guestOffloads) == 0
            else { return false }
            guestOffloads = offloads
            backend.allow(VirtioNetFeature.offloads(offloads))
            return true
        default: return false
        }
    }
}
