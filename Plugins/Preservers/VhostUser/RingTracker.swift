import BatonRuntime
import CBaton

/// Which requests of a queue a back end has in hand, for one that does not
/// note that itself (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD): what was made
/// available and not used yet, in that order.
///
/// Follows both rings at every kick and call. Should more requests than the
/// queue has descriptors pass in between, some are missed, which shows:
/// `isComplete` is false from then on. To be used while the guest stands still.
struct RingTracker {
    private(set) var inHand: [UInt16]
    private(set) var isComplete: Bool
    private var nextAvailable: UInt16
    private(set) var nextUsed: UInt16

    /// Follows a queue from where both rings have the same index.
    init(at index: UInt16) {
        inHand = []
        isComplete = true
        nextAvailable = index
        nextUsed = index
    }

    /// Takes note of what has passed since the last time.
    mutating func follow(_ queue: VirtioQueueSetup, _ space: AddressSpace) {
        guard isComplete, let rings = Rings(queue, space) else { return isComplete = false }
        // The available ring first: what was used is in it by then.
        let available = rings.availableIndex
        guard available &- nextAvailable <= queue.size else { return isComplete = false }
        while nextAvailable != available {
            inHand.append(rings.available(nextAvailable))
            nextAvailable &+= 1
        }
        let used = rings.usedIndex
        guard used &- nextUsed <= queue.size, inHand.count <= 2 * Int(queue.size) else { return isComplete = false }
        while nextUsed != used {
            guard let place = inHand.firstIndex(of: rings.used(nextUsed)) else { return isComplete = false }
            inHand.remove(at: place)
            nextUsed &+= 1
        }
        if inHand.count > Int(queue.size) { isComplete = false }
    }

    /// Puts the requests in hand where a back end that starts at `nextUsed`
    /// finds them: others that were made available before them have been used,
    /// and their places in the ring are free. The driver does not read these.
    func arrange(_ queue: VirtioQueueSetup, _ space: AddressSpace) {
        guard let rings = Rings(queue, space) else { return }
        for (place, head) in inHand.enumerated() {
            rings.setAvailable(nextUsed &+ UInt16(truncatingIfNeeded: place), head)
        }
        space.didWrite(queue.available, length: 6 + 2 * UInt64(queue.size))
    }

    // MARK: Update

    var fields: [UInt64] {
        [isComplete ? 1 : 0, UInt64(nextAvailable), UInt64(nextUsed)] + inHand.map { UInt64($0) }
    }

    /// - Returns: nil when `fields` are not those of a tracker.
    init?(fields: [UInt64]) {
        guard fields.count >= 3, fields[0] <= 1, fields.allSatisfy({ $0 <= 0xffff }) else { return nil }
        isComplete = fields[0] == 1
        nextAvailable = UInt16(truncatingIfNeeded: fields[1])
        nextUsed = UInt16(truncatingIfNeeded: fields[2])
        inHand = fields[3...].map { UInt16(truncatingIfNeeded: $0) }
    }
}

/// The rings of a queue in guest RAM, read as others write them.
struct Rings {
    private let availableRing: UnsafeMutableRawPointer
    private let usedRing: UnsafeMutableRawPointer
    private let mask: UInt16

    /// - Returns: nil when they are not in RAM.
    init?(_ queue: VirtioQueueSetup, _ space: AddressSpace) {
        let size = UInt64(queue.size)
        guard size > 0, size & (size - 1) == 0,
            let available = space.dma(queue.available, length: 6 + 2 * size, writing: true),
            let used = space.dma(queue.used, length: 6 + 8 * size, writing: false)
        else { return nil }
        availableRing = available
        usedRing = used
        mask = queue.size - 1
    }

    var availableIndex: UInt16 { cbaton_load_acquire16(availableRing + 2) }
    var usedIndex: UInt16 { cbaton_load_acquire16(usedRing + 2) }

    func available(_ index: UInt16) -> UInt16 {
        availableRing.loadUnaligned(fromByteOffset: 4 + 2 * Int(index & mask), as: UInt16.self)
    }
    func setAvailable(_ index: UInt16, _ head: UInt16) {
        availableRing.storeBytes(of: head, toByteOffset: 4 + 2 * Int(index & mask), as: UInt16.self)
    }
    /// The head of a used element; more than 16 bits are no head of a queue.
    func used(_ index: UInt16) -> UInt16 {
        let id = usedRing.loadUnaligned(fromByteOffset: 4 + 8 * Int(index & mask), as: UInt32.self)
        return UInt16(exactly: id) ?? .max
    }
}
