import BatonRuntime
import CBaton
import Glibc

/// A descriptor chain that the driver made available, after every descriptor
/// of it was checked. Its segments stay in the queue until the next call of
/// `next()`.
public struct VirtioChain {
    /// The index of the first descriptor: what goes into the used ring.
    public let head: UInt16
    /// Number of segments that the device may read; they come first.
    public let readableCount: Int
    /// Number of segments that the device may write; they follow.
    public let writableCount: Int
    /// Sums of the segments' lengths in bytes.
    public let readableBytes: Int
    public let writableBytes: Int
}

/// A split virtqueue (virtio 1.3, 2.7).
///
/// The rings lie in guest RAM, which the guest and other processes may change
/// at any time: whatever is read from them is read once and checked before
/// use. A violation by the driver ends in `VirtioDevice.fail`, and the queue
/// yields nothing more.
public final class VirtQueue {
    /// The most segments in one chain, as in QEMU (VIRTQUEUE_MAX_SIZE).
    public static let maxSegments = 1024

    public let index: Int
    /// The largest size that the driver may choose; a power of two.
    public let maxSize: UInt16

    // What the driver set up.
    public internal(set) var size: UInt16
    public internal(set) var ready = false
    public internal(set) var descriptorAddress: UInt64 = 0
    public internal(set) var driverAddress: UInt64 = 0
    public internal(set) var deviceAddress: UInt64 = 0

    // Where the device is in the rings.
    /// The available ring's index of the next chain to take.
    public internal(set) var nextAvailable: UInt16 = 0
    /// The used ring's index of the next element to publish.
    public internal(set) var nextUsed: UInt16 = 0
    /// `nextUsed` when the driver was last told of.
    var signalledUsed: UInt16 = 0
    var signalledIsValid = false
    /// The device goes on with the queue in a later turn of the loop.
    var isPutOff = false

    // What has gone through the queue in this process, for metrics.
    /// Chains that were given back to the driver.
    public private(set) var chainCount: UInt64 = 0
    /// Bytes of the chains that were given back: for the device to read, of those that were pushed; written by it.
    public private(set) var readBytes: UInt64 = 0
    public private(set) var writtenBytes: UInt64 = 0

    // The rings' host addresses; nil unless `ready`.
    private var table: UnsafeMutableRawPointer?
    private var available: UnsafeMutableRawPointer?
    private var used: UnsafeMutableRawPointer?
    private var eventIndex = false
    private var indirect = false

    /// Segments of the chain that `next()` gave, and their guest addresses.
    /// Allocated when the queue is first enabled: a machine may have many that
    /// no driver uses.
    public private(set) var segments: UnsafeMutablePointer<iovec>
    private(set) var addresses: UnsafeMutablePointer<UInt64>
    private var hasSegments = false

    let addressSpace: AddressSpace
    // The largest writable RAM range: nearly every buffer lies in it.
    private var mainStart: UInt64 = 0
    private var mainSize: UInt64 = 0
    private var mainHost: UnsafeMutableRawPointer?

    /// The device that owns this queue, and so outlives it.
    unowned(unsafe) var owner: VirtioDevice?

    init(index: Int, maxSize: UInt16, addressSpace: AddressSpace) {
        precondition(maxSize > 0 && maxSize & (maxSize - 1) == 0 && maxSize <= 1024)
        self.index = index
        self.maxSize = maxSize
        self.size = maxSize
        self.addressSpace = addressSpace
        (segments, addresses) = (VirtQueue.noSegment, VirtQueue.noAddress)
    }

    private nonisolated(unsafe) static let noSegment = UnsafeMutablePointer<iovec>.allocate(capacity: 1)
    private nonisolated(unsafe) static let noAddress = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)

    deinit {
        guard hasSegments else { return }
        segments.deallocate()
        addresses.deallocate()
    }

    // MARK: Set-up

    func reset() {
        disable()
        size = maxSize
        descriptorAddress = 0
        driverAddress = 0
        deviceAddress = 0
    }

    func disable() {
        ready = false
        table = nil
        available = nil
        used = nil
        nextAvailable = 0
        nextUsed = 0
        signalledUsed = 0
        signalledIsValid = false
    }

    /// The rings' host addresses for a set-up, or why it is not valid
    /// (virtio 1.3, 2.7: sizes and alignments).
    struct Rings {
        var table: UnsafeMutableRawPointer
        var available: UnsafeMutableRawPointer
        var used: UnsafeMutableRawPointer
    }

    func locate(size: UInt16, descriptors: UInt64, driver: UInt64, device: UInt64) throws(VMMError) -> Rings {
        guard size > 0, size <= maxSize, size & (size - 1) == 0 else {
            throw VMMError("queue \(index) has the invalid size \(size) (a power of two up to \(maxSize))")
        }
        let count = UInt64(size)
        guard descriptors % 16 == 0, let table = addressSpace.dma(descriptors, length: 16 * count, writing: false)
        else { throw VMMError("queue \(index) has its descriptors at the invalid address \(Hex(descriptors))") }
        guard driver % 2 == 0, let available = addressSpace.dma(driver, length: 6 + 2 * count, writing: false)
        else { throw VMMError("queue \(index) has its driver area at the invalid address \(Hex(driver))") }
        guard device % 4 == 0, let used = addressSpace.dma(device, length: 6 + 8 * count, writing: true)
        else { throw VMMError("queue \(index) has its device area at the invalid address \(Hex(device))") }
        return Rings(table: table, available: available, used: used)
    }

    /// Makes the queue usable with the addresses and the size set before.
    func enable(_ rings: Rings, features: UInt64) {
        if !hasSegments {
            segments = .allocate(capacity: VirtQueue.maxSegments)
            addresses = .allocate(capacity: VirtQueue.maxSegments)
            hasSegments = true
        }
        table = rings.table
        available = rings.available
        used = rings.used
        eventIndex = features & VirtioFeature.ringEventIndex != 0
        indirect = features & VirtioFeature.ringIndirect != 0
        mainSize = 0
        for range in addressSpace.ramRanges where !range.readOnly && range.size > mainSize {
            mainStart = range.start
            mainSize = range.size
            mainHost = range.host
        }
        ready = true
    }

    // MARK: Taking chains

    @inline(__always)
    private func translate(_ address: UInt64, _ length: UInt64, writing: Bool) -> UnsafeMutableRawPointer? {
        let offset = address &- mainStart
        if offset < mainSize, length <= mainSize &- offset, let mainHost {
            return mainHost + Int(truncatingIfNeeded: offset)
        }
        return addressSpace.dma(address, length: length, writing: writing)
    }

    /// The next chain that the driver made available, without taking it: call
    /// `consume()` for that.
    /// - Returns: nil when there is none, or the queue is not in use.
    public func next() -> VirtioChain? {
        guard ready, let available, let owner, owner.isOperating else { return nil }
        let pending = cbaton_load_acquire16(available + 2) &- nextAvailable
        if pending == 0 { return nil }
        guard pending <= size else {
            owner.fail("queue \(index): available index is \(pending) ahead in a queue of \(size)")
            return nil
        }
        let slot = Int(nextAvailable & (size &- 1))
        return walk(available.loadUnaligned(fromByteOffset: 4 &+ 2 &* slot, as: UInt16.self), owner)
    }

    /// Whether the driver has made anything available that was not taken, and
    /// that `next()` would look at.
    public var hasAvailable: Bool {
        guard ready, let available, let owner, owner.isOperating else { return false }
        return cbaton_load_acquire16(available + 2) != nextAvailable
    }

    /// Takes the chain that `next()` gave last.
    @inline(__always)
    public func consume() {
        nextAvailable &+= 1
    }

    /// The chain that begins with a descriptor, as `next()` gives one: for a chain that was consumed before, and that
    /// the driver has not got back. What it is now is checked anew.
    func chain(at head: UInt16) -> VirtioChain? {
        guard ready, let owner, owner.isOperating else { return nil }
        return walk(head, owner)
    }

    /// Gives `count` chains back that were consumed and not pushed.
    public func unconsume(_ count: Int) { nextAvailable &-= UInt16(truncatingIfNeeded: count) }

    private func walk(_ head: UInt16, _ owner: VirtioDevice) -> VirtioChain? {
        guard var table else { return nil }
        var limit = Int(size)
        var slot = Int(head)
        var walked = 0
        var count = 0
        var readableCount = 0
        var readableBytes = 0
        var writableBytes = 0
        var inIndirect = false
        while true {
            guard slot < limit else {
                owner.fail("queue \(index): descriptor index \(slot) in a table of \(limit)")
                return nil
            }
            guard walked < limit else {
                owner.fail("queue \(index): descriptor chain is a loop")
                return nil
            }
            walked &+= 1
            let address = table.loadUnaligned(fromByteOffset: slot &* 16, as: UInt64.self)
            let word = table.loadUnaligned(fromByteOffset: slot &* 16 &+ 8, as: UInt64.self)
            let length = word & 0xffff_ffff
            let flags = UInt16(truncatingIfNeeded: word >> 32)

            if flags & Flag.indirect != 0 {
                guard indirect, !inIndirect, flags & Flag.next == 0, length > 0, length % 16 == 0,
                    length / 16 <= UInt64(VirtQueue.maxSegments)
                else {
                    owner.fail("queue \(index): invalid indirect descriptor (\(length) bytes, flags \(flags))")
                    return nil
                }
                guard let inner = translate(address, length, writing: false) else {
                    owner.fail("queue \(index): indirect table at \(Hex(address)) is not in RAM")
                    return nil
                }
                table = inner
                limit = Int(length / 16)
                slot = 0
                walked = 0
                inIndirect = true
                continue
            }

            let writable = flags & Flag.write != 0
            if writable {
                writableBytes &+= Int(length)
            } else {
                guard writableBytes == 0 else {
                    owner.fail("queue \(index): readable descriptor after a writable one")
                    return nil
                }
                readableBytes &+= Int(length)
                readableCount &+= 1
            }
            guard length > 0 else {
                owner.fail("queue \(index): zero sized buffers are not allowed")
                return nil
            }
            guard count < VirtQueue.maxSegments else {
                owner.fail("queue \(index): more than \(VirtQueue.maxSegments) descriptors in a chain")
                return nil
            }
            if let host = translate(address, length, writing: writable) {
                segments[count] = iovec(iov_base: host, iov_len: Int(length))
                addresses[count] = address
                count &+= 1
            } else {
                let before = count
                guard addPieces(address, length, writing: writable, &count) else {
                    owner.fail("queue \(index): buffer of \(length) bytes at \(Hex(address)) is not in RAM")
                    return nil
                }
                if !writable { readableCount &+= count - before - 1 }
            }

            if flags & Flag.next == 0 { break }
            slot = Int(UInt16(truncatingIfNeeded: word >> 48))
        }
        guard readableBytes &+ writableBytes <= Int(UInt32.max) else {
            owner.fail("queue \(index): chain of \(readableBytes &+ writableBytes) bytes")
            return nil
        }
        return VirtioChain(
            head: head, readableCount: readableCount, writableCount: count &- readableCount,
            readableBytes: readableBytes, writableBytes: writableBytes)
    }

    /// Adds the segments of a buffer that goes from one range of RAM to the next, as from one NUMA node to another.
    /// - Returns: false when not all of it is RAM, or there is no room for them.
    private func addPieces(_ address: UInt64, _ length: UInt64, writing: Bool, _ count: inout Int) -> Bool {
        var (place, left) = (address, length)
        while left > 0 {
            guard count < VirtQueue.maxSegments, let range = addressSpace.ramRange(containing: place),
                !(writing && range.readOnly)
            else { return false }
            let size = min(left, range.end - place)
            segments[count] = iovec(iov_base: range.host + Int(place - range.start), iov_len: Int(size))
            addresses[count] = place
            count += 1
            place &+= size
            left -= size
        }
        return true
    }

    private enum Flag {
        static let next: UInt16 = 1
        static let write: UInt16 = 2
        static let indirect: UInt16 = 4
    }

    // MARK: Giving chains back

    /// Puts `chain` into the used ring and publishes it.
    /// - Parameter written: bytes that the device wrote.
    public func push(_ chain: VirtioChain, written: Int) {
        push(head: chain.head, readable: chain.readableBytes, written: written)
    }

    /// As above, for a chain of which only this is known.
    /// - Parameter readable: bytes of it that the device may read.
    func push(head: UInt16, readable: Int, written: Int) {
        readBytes &+= UInt64(truncatingIfNeeded: readable)
        fill(head, written: written, at: 0)
        publish(1)
    }

    /// Writes an element `position` places after the published ones.
    func fill(_ head: UInt16, written: Int, at position: UInt16) {
        guard let used else { return }
        writtenBytes &+= UInt64(truncatingIfNeeded: written)
        let slot = UInt64((nextUsed &+ position) & (size &- 1))
        let element = UInt64(head) | UInt64(UInt32(truncatingIfNeeded: written)) << 32
        used.storeBytes(of: element, toByteOffset: Int(4 &+ 8 &* slot), as: UInt64.self)
        addressSpace.didWrite(deviceAddress &+ 4 &+ 8 &* slot, length: 8)
    }

    /// Publishes `count` elements that were filled.
    func publish(_ count: UInt16) {
        guard let used else { return }
        chainCount &+= UInt64(count)
        nextUsed &+= count
        cbaton_store_release16(used + 2, nextUsed)
        addressSpace.didWrite(deviceAddress &+ 2, length: 2)
    }

    // MARK: Notifications

    /// Asks the driver to notify of the next chain that it makes available
    /// after those that there are.
    /// - Returns: true when there is one to take already.
    public func enableNotifications() -> Bool {
        guard ready, let used, let available else { return false }
        if eventIndex {
            let offset = 4 &+ 8 &* UInt64(size)
            used.storeBytes(of: cbaton_load_acquire16(available + 2), toByteOffset: Int(offset), as: UInt16.self)
            addressSpace.didWrite(deviceAddress &+ offset, length: 2)
        }
        cbaton_full_fence()
        return hasAvailable
    }

    /// The next chain; without one, asks to be notified of it, unless it has just come.
    func nextOrNotification() -> VirtioChain? {
        if let chain = next() { return chain }
        guard let owner, owner.isOperating, enableNotifications() else { return nil }
        return next()
    }

    /// Interrupts the driver if it wants to know of what was published since
    /// the last call (virtio 1.3, 2.7.7).
    public func signal() {
        guard ready, let available, let owner else { return }
        if signalledIsValid && signalledUsed == nextUsed { return }
        cbaton_full_fence()
        let wanted: Bool
        if eventIndex {
            let event = cbaton_load_acquire16(available + (4 &+ 2 &* Int(size)))
            wanted = !signalledIsValid || nextUsed &- event &- 1 < nextUsed &- signalledUsed
        } else {
            wanted = available.load(as: UInt16.self) & 1 == 0
        }
        signalledUsed = nextUsed
        signalledIsValid = true
        if wanted { owner.transport?.interrupt(queue: index) }
    }
}
