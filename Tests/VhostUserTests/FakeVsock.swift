import Foundation
import TestSupport

/// A vhost-user-vsock back end of the tests' own: a packet that is sent comes back.
final class FakeVsock: FakeBackEnd, @unchecked Sendable {
    /// The guest's address.
    var cid: UInt64 = 42

    init(_ directory: TemporaryDirectory, connects: Bool = false) throws {
        // SEQPACKET; BACKEND_REQ and CONFIG.
        try super.init(
            directory, connects: connects, queues: 2, countedQueues: 2, features: 1 << 1,
            protocolFeatures: 1 << 5 | 1 << 9, intercept: { _, _, _ in false })
    }

    override var config: Data { Data(number: cid) }

    override func kicked(_ index: Int) { while touch({ echo() }) {} }

    /// - Returns: false when there is no packet, or no room for it.
    private func echo() -> Bool {
        guard queues.allSatisfy(\.isEnabled), let head = nextAvailable(1), let target = nextAvailable(0),
            let packet = buffers(1, head).first, let room = buffers(0, target).first, room.count >= packet.count
        else { return false }
        room.copyMemory(from: UnsafeRawBufferPointer(packet))
        queues[1].base &+= 1
        queues[0].base &+= 1
        use(1, head, length: 0)
        use(0, target, length: packet.count)
        return true
    }
}
