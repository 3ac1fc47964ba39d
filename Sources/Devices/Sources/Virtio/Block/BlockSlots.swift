import BatonRuntime
import Glibc

/// A request that the driver has not had an answer to.
struct BlockSlot {
    /// First, so that a request's address is its slot's.
    var request = BlockRequest()
    var head: UInt16 = 0
    var queue = 0
    /// Of several disks of a device, which.
    var disk = 0
    var isUsed = false
    /// The next free slot; -1 for none.
    var nextFree = -1
    /// Where the status byte goes, on the host and in the guest.
    var status: UnsafeMutableRawPointer?
    var statusAddress: UInt64 = 0
    /// Bytes of a read or write; and of the chain, those that the device may read.
    var length = 0
    var readable = 0
    /// CLOCK_MONOTONIC in nanoseconds when it was taken.
    var begun: Int64 = 0
    /// What the request's vectors are made of.
    var storage: UnsafeMutablePointer<iovec>?
    /// Where in the guest's memory they are, and how long: of a read.
    var ranges: UnsafeMutablePointer<Range>?
    var rangeCount = 0
    var capacity = 0

    struct Range {
        var address: UInt64
        var length: UInt64
    }

    /// Makes room for so many vectors: the room stays, so that few requests need any.
    mutating func reserve(_ count: Int) {
        guard count > capacity else { return }
        free()
        var size = 16
        while size < count { size *= 2 }
        storage = .allocate(capacity: size)
        ranges = .allocate(capacity: size)
        capacity = size
    }

    /// Has the request, a read or a write, move bytes of the chain that the queue has just given.
    /// - Parameters:
    ///   - skip: bytes before them: of those that the device may write in a read, else of those that it may read.
    ///   - length: as many as the chain has behind that, at most.
    ///   - offset: where they are on the disk.
    mutating func move(_ chain: VirtioChain, _ queue: VirtQueue, skip: Int, length: Int, offset: UInt64) {
        let isRead = request.kind == .read
        let first = isRead ? chain.readableCount : 0
        let segments = isRead ? chain.writableCount : chain.readableCount
        reserve(segments)
        guard let storage, let ranges else { return }
        var (skip, left, count) = (skip, length, 0)
        for place in first..<first &+ segments where left > 0 {
            let segment = queue.segments[place]
            if segment.iov_len <= skip {
                skip &-= segment.iov_len
                continue
            }
            let part = min(segment.iov_len &- skip, left)
            storage[count] = iovec(iov_base: segment.iov_base.map { $0 + skip }, iov_len: part)
            ranges[count] = Range(address: queue.addresses[place] &+ UInt64(skip), length: UInt64(part))
            left &-= part
            count &+= 1
            skip = 0
        }
        rangeCount = isRead ? count : 0
        self.length = length
        request.offset = offset
        request.length = UInt64(length)
        request.vectors = storage
        request.vectorCount = count
    }

    mutating func free() {
        storage?.deallocate()
        ranges?.deallocate()
        (storage, ranges, capacity) = (nil, nil, 0)
    }
}

/// As many slots as chains can be in hand, made when the first is needed.
struct BlockSlots {
    private let count: Int
    private var slots: UnsafeMutablePointer<BlockSlot>?
    private var firstFree = -1

    init(count: Int) { self.count = count }

    private mutating func make() -> UnsafeMutablePointer<BlockSlot> {
        precondition(MemoryLayout<BlockSlot>.offset(of: \.request) == 0)
        let made = UnsafeMutablePointer<BlockSlot>.allocate(capacity: count)
        made.initialize(repeating: BlockSlot(), count: count)
        for index in 0..<count {
            made[index].request.tag = index
            made[index].nextFree = index + 1 < count ? index + 1 : -1
        }
        firstFree = 0
        slots = made
        return made
    }

    /// Takes a free slot for the request of a chain that moves nothing yet.
    /// - Returns: nil when there is none.
    mutating func take(
        _ kind: BlockRequest.Kind, _ chain: VirtioChain, _ queue: VirtQueue
    ) -> UnsafeMutablePointer<BlockSlot>? {
        let slots = slots ?? make()
        guard firstFree >= 0 else { return nil }
        let slot = slots + firstFree
        firstFree = slot.pointee.nextFree
        slot.pointee.isUsed = true
        slot.pointee.head = chain.head
        slot.pointee.queue = queue.index
        slot.pointee.length = 0
        slot.pointee.readable = chain.readableBytes
        slot.pointee.begun = EventLoop.now
        slot.pointee.rangeCount = 0
        slot.pointee.request.kind = kind
        slot.pointee.request.length = 0
        slot.pointee.request.vectorCount = 0
        slot.pointee.request.mayUnmap = false
        return slot
    }

    mutating func giveBack(_ slot: UnsafeMutablePointer<BlockSlot>) {
        slot.pointee.isUsed = false
        slot.pointee.nextFree = firstFree
        firstFree = slot.pointee.request.tag
    }

    /// The slot of a request.
    static func of(_ request: UnsafeMutablePointer<BlockRequest>) -> UnsafeMutablePointer<BlockSlot> {
        UnsafeMutableRawPointer(request).assumingMemoryBound(to: BlockSlot.self)
    }

    static func request(of slot: UnsafeMutablePointer<BlockSlot>) -> UnsafeMutablePointer<BlockRequest> {
        UnsafeMutableRawPointer(slot).assumingMemoryBound(to: BlockRequest.self)
    }

    /// Queue and first descriptor of each request in hand.
    var used: [UnfinishedChain] {
        guard let slots else { return [] }
        return (0..<count).filter { slots[$0].isUsed }.map {
            UnfinishedChain(queue: slots[$0].queue, head: slots[$0].head)
        }
    }

    func free() {
        guard let slots else { return }
        for index in 0..<count { slots[index].free() }
        slots.deallocate()
    }
}

/// A chain that was taken from the driver, and is to be carried out, whole, when the guest goes on.
struct UnfinishedChain {
    var queue: Int
    var head: UInt16

    init(queue: Int, head: UInt16) { (self.queue, self.head) = (queue, head) }

    /// As in a saved state.
    init(word: UInt64) { (queue, head) = (Int(word >> 16 & 0xffff), UInt16(truncatingIfNeeded: word)) }
    var word: UInt64 { UInt64(queue) << 16 | UInt64(head) }
}
