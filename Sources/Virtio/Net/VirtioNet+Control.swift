import BatonRuntime

/// The control queue (virtio 1.3, 5.1.6.5).
extension VirtioNet {
    private enum Class {
        static let receive: UInt8 = 0
        static let address: UInt8 = 1
        static let queues: UInt8 = 4
        static let offloads: UInt8 = 5
    }

    /// The rest of a request that has not been read; each byte is read once.
    private struct Request {
        let queue: VirtQueue
        let chain: VirtioChain
        private var offset = 0

        init(_ queue: VirtQueue, _ chain: VirtioChain) {
            self.queue = queue
            self.chain = chain
        }

        var remaining: Int { chain.readableBytes - offset }

        /// A little-endian number; nil when it is not all there.
        mutating func number<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type) -> T? {
            guard remaining >= MemoryLayout<T>.size else { return nil }
            var value: T = 0
            offset += withUnsafeMutableBytes(of: &value) { queue.copyOut(chain, offset: offset, to: $0) }
            return T(littleEndian: value)
        }

        mutating func address() -> UInt64? {
            guard remaining >= 6 else { return nil }
            var bytes: UInt64 = 0
            offset += withUnsafeMutableBytes(of: &bytes) {
                queue.copyOut(chain, offset: offset, to: UnsafeMutableRawBufferPointer(rebasing: $0[..<6]))
            }
            return bytes.byteSwapped >> 16
        }

        /// A table of addresses; an empty one, and true, for one that is too long.
        mutating func table() -> (addresses: [UInt64], isTooLong: Bool)? {
            guard let count = number(UInt32.self), remaining / 6 >= Int(count) else { return nil }
            guard count <= UInt32(ReceiveFilter.maxAddresses) else {
                offset += Int(count) * 6
                return ([], true)
            }
            var addresses: [UInt64] = []
            for _ in 0..<count { addresses.append(address() ?? 0) }
            return (addresses, false)
        }
    }

    func control(_ queue: VirtQueue) {
        repeat {
            while let chain = queue.next() {
                var request = Request(queue, chain)
                guard chain.writableBytes >= 1, let kind = request.number(UInt8.self),
                    let command = request.number(UInt8.self)
                else { return fail("control request of \(chain.readableBytes) bytes") }
                let isDone = carryOut(kind, command, &request)
                if !isDone { Log.guestError("\(stateName): refused the control command \(kind)/\(command)") }
                let reply: UInt8 = isDone ? 0 : 1
                withUnsafeBytes(of: reply) { _ = queue.copyIn(chain, offset: 0, from: $0) }
                queue.consume()
                queue.push(chain, written: 1)
            }
        } while queue.enableNotifications()
        queue.signal()
    }

    /// - Returns: false when the command is wrong; then nothing has changed.
    private func carryOut(_ kind: UInt8, _ command: UInt8, _ request: inout Request) -> Bool {
        switch (kind, command) {
        case (Class.receive, 0...5):
            guard has(command < 2 ? VirtioNetFeature.controlReceive : VirtioNetFeature.controlReceiveExtra),
                request.remaining == 1, let value = request.number(UInt8.self)
            else { return false }
            let bit = ReceiveFilter.Mode(rawValue: 1 << command)
            if value != 0 { filter.mode.insert(bit) } else { filter.mode.remove(bit) }
            return true
        case (Class.address, 0):
            guard has(VirtioNetFeature.controlReceive), let unicast = request.table(), let multicast = request.table(),
                request.remaining == 0
            else { return false }
            filter.unicast = unicast.addresses
            filter.multicast = multicast.addresses
            filter.mode.remove([.unicastOverflow, .multicastOverflow])
            if unicast.isTooLong { filter.mode.insert(.unicastOverflow) }
            if multicast.isTooLong { filter.mode.insert(.multicastOverflow) }
            return true
        case (Class.address, 1):
            guard has(VirtioNetFeature.controlAddress), request.remaining == 6, let address = request.address() else {
                return false
            }
            setAddress(address)
            return true
        case (Class.queues, 0):
            guard has(VirtioNetFeature.multipleQueues), request.remaining == 2, let pairs = request.number(UInt16.self)
            else { return false }
            return usePairs(Int(pairs))
        case (Class.offloads, 0):
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
