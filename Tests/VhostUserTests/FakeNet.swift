import Foundation
import TestSupport

/// A vhost-user-net back end of the tests' own: what is sent on a pair of
/// queues comes back on it.
final class FakeNet: FakeBackEnd, @unchecked Sendable {
    init(_ directory: TemporaryDirectory, pairs: Int) throws {
        // MRG_RXBUF and MQ.
        try super.init(
            directory, connects: false, queues: 2 * pairs, countedQueues: pairs,
            features: 1 << 15 | (pairs > 1 ? 1 << 22 : 0), protocolFeatures: 0, intercept: { _, _, _ in false })
    }

    override func kicked(_ index: Int) { while touch({ echo(index / 2) }) {} }

    /// - Returns: false when there is no frame, or no room for it.
    private func echo(_ pair: Int) -> Bool {
        let (receive, transmit) = (2 * pair, 2 * pair + 1)
        guard queues[receive].isEnabled, queues[transmit].isEnabled, let head = nextAvailable(transmit),
            let target = nextAvailable(receive), let frame = buffers(transmit, head).first,
            let room = buffers(receive, target).first, room.count >= frame.count
        else { return false }
        room.copyMemory(from: UnsafeRawBufferPointer(frame))
        room.storeBytes(of: 1, toByteOffset: 10, as: UInt16.self)
        queues[transmit].base &+= 1
        queues[receive].base &+= 1
        // Before the frame comes back: its sender may reuse the buffer then.
        use(transmit, head, length: 0)
        use(receive, target, length: frame.count)
        return true
    }
}
