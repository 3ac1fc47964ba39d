import BatonRuntime

/// A request of a network card's control queue (virtio 1.3, 5.1.6.5). Each of
/// its bytes is read once.
struct NetControlRequest {
    enum Class {
        static let receive: UInt8 = 0
        static let address: UInt8 = 1
        static let announcement: UInt8 = 3
        static let queues: UInt8 = 4
        static let offloads: UInt8 = 5
    }

    let kind: UInt8
    let command: UInt8
    private let queue: VirtQueue
    private let chain: VirtioChain
    private var offset = 0

    /// - Returns: nil when the chain is too short for a request and its answer.
    fileprivate init?(_ queue: VirtQueue, _ chain: VirtioChain) {
        guard chain.readableBytes >= 2, chain.writableBytes >= 1 else { return nil }
        var head: (kind: UInt8, command: UInt8) = (0, 0)
        offset = withUnsafeMutableBytes(of: &head) { queue.copyOut(chain, offset: 0, to: $0) }
        (kind, command) = head
        self.queue = queue
        self.chain = chain
    }

    /// Bytes that have not been read.
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

extension VirtioDevice {
    /// Serves a control queue.
    /// - Parameter carryOut: returns false when the command is wrong; then
    ///   nothing has changed.
    func serveControl(_ queue: VirtQueue, _ carryOut: (inout NetControlRequest) -> Bool) {
        serveChains(queue) { chain in
            guard var request = NetControlRequest(queue, chain) else {
                fail("control request of \(chain.readableBytes) bytes")
                return .stopped
            }
            let isDone = carryOut(&request)
            if !isDone {
                Log.guestError("\(stateName): refused the control command \(request.kind)/\(request.command)")
            }
            let reply: UInt8 = isDone ? 0 : 1
            withUnsafeBytes(of: reply) { _ = queue.copyIn(chain, offset: 0, from: $0) }
            return .used(1)
        }
    }
}
