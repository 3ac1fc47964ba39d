import BatonBase

/// The part of a device that answers loads and stores of the guest.
///
/// Widths are 1, 2, 4 or 8 bytes, `offset + width` never exceeds the size the
/// region was mapped with, and values are in the low `width` bytes. Reads and
/// writes may not fail: what a device accepts and does not support it answers
/// as hardware would (reads as zero, writes ignored) and traces with
/// `Log.guestError` or `Log.unimplemented`.
public protocol MMIODevice: AnyObject {
    /// Whether the device takes accesses of this width here. One that it does
    /// not take is an access fault for the guest, and neither method below is
    /// called. By default a device takes all.
    func accepts(offset: UInt64, width: Int) -> Bool
    func mmioRead(offset: UInt64, width: Int) -> UInt64
    func mmioWrite(offset: UInt64, width: Int, value: UInt64)
}

extension MMIODevice {
    public func accepts(offset: UInt64, width: Int) -> Bool { true }

    /// Reads 8 bytes as two accesses of 4, the lower half first, for a device
    /// with registers of 4 bytes at most.
    public func mmioReadHalves(offset: UInt64) -> UInt64 {
        let low = mmioRead(offset: offset, width: 4)
        return low | mmioRead(offset: offset + 4, width: 4) << 32
    }

    /// Writes 8 bytes as two accesses of 4, the lower half first.
    public func mmioWriteHalves(offset: UInt64, value: UInt64) {
        mmioWrite(offset: offset, width: 4, value: value & 0xffff_ffff)
        mmioWrite(offset: offset + 4, width: 4, value: value >> 32)
    }
}

/// A range of guest-physical addresses that is backed by a RAM block.
public struct RAMRange {
    public let start: UInt64
    public let size: UInt64
    /// The host address of `start`.
    public let host: UnsafeMutableRawPointer
    public let readOnly: Bool
    public let block: RAMBlock
    /// Whether stores go to a device, which may answer loads as well: see `AddressSpace.map(rom:…)`.
    public let hasDevice: Bool

    public var end: UInt64 { start + size }
}

/// What an accelerator learns of an address space, with the VM lock held. What is not of interest may be left out.
public protocol MemoryListener: AnyObject {
    /// A range of RAM was mapped. It stays.
    func mapped(_ range: RAMRange)
    /// Device memory was mapped or unmapped (`AddressSpace.deviceMemory`), or who answers loads from memory with a
    /// device has changed (`AddressSpace.deviceAnswersLoads`): CPUs forget where it was.
    func deviceMemoryChanged()
    /// Anything but a CPU has stored to RAM (a device's DMA, a loader): CPUs drop what they decoded from it.
    func externalWrite(_ address: UInt64, length: UInt64)
    /// `AddressSpace.expectForeignWriters` was called.
    func foreignWritersExpected()
}

extension MemoryListener {
    public func mapped(_ range: RAMRange) {}
    public func deviceMemoryChanged() {}
    public func externalWrite(_ address: UInt64, length: UInt64) {}
    public func foreignWritersExpected() {}
}

/// The guest-physical address space of a board: RAM ranges and MMIO regions,
/// none of which overlap, built once, before the machine runs; and device
/// memory, which comes and goes as the guest places it over MMIO regions.
public final class AddressSpace {
    struct MMIORange {
        let start: UInt64
        let size: UInt64
        let name: String
        let device: any MMIODevice
    }

    public private(set) var ramRanges: [RAMRange] = []
    private var mmio: [MMIORange] = []
    private var lastMMIO = 0

    private var listeners: [any MemoryListener] = []

    /// Adds a listener, which is told of what is mapped already.
    public func add(_ listener: any MemoryListener) {
        listeners.append(listener)
        for range in ramRanges { listener.mapped(range) }
        if hasForeignWriters { listener.foreignWritersExpected() }
    }

    public func remove(_ listener: any MemoryListener) { listeners.removeAll { $0 === listener } }

    public private(set) var hasForeignWriters = false

    /// Says that others than this process may store to RAM without a word: the
    /// process that serves a device, a device that does DMA. CPUs then look for
    /// changed code where the guest asks for it (an instruction barrier). Called
    /// while the machine is built.
    public func expectForeignWriters() {
        guard !hasForeignWriters else { return }
        hasForeignWriters = true
        for listener in listeners { listener.foreignWritersExpected() }
    }

    /// Whether somebody keeps the pages that guest RAM has now, as a device of the host's does for its DMA: those must
    /// not be given back to the host, as others would come in their place that the device knows nothing of.
    public private(set) var hasPinnedPages = false

    /// Says that pages of guest RAM are pinned from now on. Called while the machine is built.
    public func pinPages() { hasPinnedPages = true }

    public init() {}

    /// Maps `size` bytes of `block` from `blockOffset` at `start`.
    /// - Parameter size: a positive multiple of 4096, within the block.
    /// - Throws: an error when the range wraps or overlaps another.
    public func map(_ block: RAMBlock, at start: UInt64, size: UInt64, blockOffset: Int = 0, readOnly: Bool = false)
        throws(VMMError)
    {
        precondition(start % 4096 == 0 && size > 0 && size % 4096 == 0)
        precondition(blockOffset >= 0 && blockOffset + Int(size) <= block.usedLength)
        try checkFree(start: start, size: size, name: block.name)
        let range = RAMRange(
            start: start, size: size, host: block.host + blockOffset, readOnly: readOnly, block: block,
            hasDevice: false)
        add(range)
    }

    /// Whether a range of RAM begins where another ends, as those of NUMA nodes do.
    private var hasNeighbours = false

    private func add(_ range: RAMRange) {
        hasNeighbours = hasNeighbours || ramRanges.contains { $0.end == range.start || range.end == $0.start }
        ramRanges.append(range)
        ramRanges.sort { $0.start < $1.start }
        for listener in listeners { listener.mapped(range) }
    }

    /// Maps a device's registers.
    /// - Throws: an error when the range wraps or overlaps another.
    public func map(_ device: any MMIODevice, at start: UInt64, size: UInt64, name: String) throws(VMMError) {
        try checkFree(start: start, size: size, name: name)
        mmio.append(MMIORange(start: start, size: size, name: name, device: device))
    }

    // MARK: Memory with a device behind it

    /// Starts of ranges whose loads go to their devices now.
    private var switchedAway: Set<UInt64> = []

    /// Maps memory that CPUs read and fetch from as they do from RAM, and whose stores go to a device, as those to a
    /// flash chip do. The device may take the loads as well for a time (`switchMemory`).
    /// - Parameters:
    ///   - block: as long as `size`, a positive multiple of 4096.
    ///   - device: its offsets are those in the range.
    /// - Throws: an error when the range wraps or overlaps another.
    public func map(rom block: RAMBlock, at start: UInt64, size: UInt64, device: any MMIODevice) throws(VMMError) {
        precondition(start % 4096 == 0 && size > 0 && size % 4096 == 0 && Int(size) <= block.usedLength)
        try checkFree(start: start, size: size, name: block.name)
        mmio.append(MMIORange(start: start, size: size, name: block.name, device: device))
        add(RAMRange(start: start, size: size, host: block.host, readOnly: true, block: block, hasDevice: true))
    }

    /// Says who answers loads from a range with a device: memory, as in the beginning, or the device. Fetches go on
    /// from memory.
    /// - Parameter start: where the range begins.
    public func switchMemory(at start: UInt64, toDevice: Bool) {
        guard switchedAway.contains(start) != toDevice else { return }
        if toDevice { switchedAway.insert(start) } else { switchedAway.remove(start) }
        for listener in listeners { listener.deviceMemoryChanged() }
    }

    /// Whether the device behind the memory at `address` answers loads.
    public func deviceAnswersLoads(at address: UInt64) -> Bool {
        guard !switchedAway.isEmpty, let range = ramRange(containing: address) else { return false }
        return switchedAway.contains(range.start)
    }

    // MARK: Device memory

    /// Memory of a device that the guest reaches without the VMM. No device
    /// does DMA there, and no CPU fetches from it.
    public struct DeviceMemory {
        public let start: UInt64
        public let size: UInt64
        public let host: UnsafeMutableRawPointer
        public let readOnly: Bool
    }

    public private(set) var deviceMemory: [DeviceMemory] = []

    /// Maps memory of a device over an MMIO region, whose device no longer sees
    /// accesses there. It must not overlap other device memory.
    /// - Parameters:
    ///   - host: must stay mapped until `unmapMemory`.
    ///   - start, size: positive multiples of 4096 within one MMIO region.
    public func mapMemory(_ host: UnsafeMutableRawPointer, at start: UInt64, size: UInt64, readOnly: Bool) {
        precondition(start % 4096 == 0 && size > 0 && size % 4096 == 0)
        deviceMemory.append(DeviceMemory(start: start, size: size, host: host, readOnly: readOnly))
        for listener in listeners { listener.deviceMemoryChanged() }
    }

    public func unmapMemory(at start: UInt64) {
        deviceMemory.removeAll { $0.start == start }
        for listener in listeners { listener.deviceMemoryChanged() }
    }

    /// The device memory that holds `address`, or nil.
    public func deviceMemory(containing address: UInt64) -> DeviceMemory? {
        for range in deviceMemory where address &- range.start < range.size { return range }
        return nil
    }

    private func checkFree(start: UInt64, size: UInt64, name: String) throws(VMMError) {
        let (end, overflow) = start.addingReportingOverflow(size)
        guard !overflow else { throw VMMError("region '\(name)' at \(Hex(start)) is too large for the address space") }
        let taken =
            ramRanges.map { ($0.start, $0.size, $0.block.name) } + mmio.map { ($0.start, $0.size, $0.name) }
        for (otherStart, otherSize, other) in taken where start < otherStart + otherSize && otherStart < end {
            throw VMMError("region '\(name)' at \(Hex(start)) overlaps region '\(other)' at \(Hex(otherStart))")
        }
    }

    /// Every MMIO region, for `info mtree`.
    public var mmioRegions: [(start: UInt64, size: UInt64, name: String)] {
        mmio.filter { ramRange(containing: $0.start) == nil }.map { ($0.start, $0.size, $0.name) }
    }

    // MARK: Access by CPUs

    /// The RAM range that holds `address`, or nil.
    public func ramRange(containing address: UInt64) -> RAMRange? {
        for range in ramRanges where address &- range.start < range.size { return range }
        return nil
    }

    /// Reads from a device.
    /// - Returns: nil when no device takes the whole access: an access fault.
    public func mmioRead(_ address: UInt64, width: Int) -> UInt64? {
        guard let index = mmioIndex(address, width) else { return nil }
        let (device, offset) = (mmio[index].device, address - mmio[index].start)
        return device.accepts(offset: offset, width: width) ? device.mmioRead(offset: offset, width: width) : nil
    }

    /// Writes to a device.
    /// - Returns: false when no device takes the whole access: an access fault.
    public func mmioWrite(_ address: UInt64, width: Int, value: UInt64) -> Bool {
        guard let index = mmioIndex(address, width) else { return false }
        let (device, offset) = (mmio[index].device, address - mmio[index].start)
        guard device.accepts(offset: offset, width: width) else { return false }
        device.mmioWrite(offset: offset, width: width, value: value)
        return true
    }

    private func mmioIndex(_ address: UInt64, _ width: Int) -> Int? {
        if lastMMIO < mmio.count, contains(mmio[lastMMIO], address, width) { return lastMMIO }
        for index in mmio.indices where contains(mmio[index], address, width) {
            lastMMIO = index
            return index
        }
        return nil
    }

    private func contains(_ range: MMIORange, _ address: UInt64, _ width: Int) -> Bool {
        address >= range.start && range.size >= UInt64(width) && address - range.start <= range.size - UInt64(width)
    }

    // MARK: Access by devices (DMA)

    /// The host address of `[address, address + length)` when all of it lies in
    /// one RAM range (and, for `writing`, a writable one); else nil. A caller
    /// that stores through the pointer calls `didWrite` afterwards.
    public func dma(_ address: UInt64, length: UInt64, writing: Bool) -> UnsafeMutableRawPointer? {
        for range in ramRanges where address &- range.start < range.size {
            guard length <= range.size - (address - range.start), !(writing && range.readOnly) else { return nil }
            return range.host + Int(address - range.start)
        }
        return nil
    }

    /// Says that a device has stored to `[address, address + length)`.
    public func didWrite(_ address: UInt64, length: UInt64) {
        guard hasNeighbours else {
            for listener in listeners { listener.externalWrite(address, length: length) }
            return
        }
        var (place, left) = (address, length)
        // A listener looks at one range of RAM.
        while let range = ramRange(containing: place), left > range.end - place {
            for listener in listeners { listener.externalWrite(place, length: range.end - place) }
            left -= range.end - place
            place = range.end
        }
        for listener in listeners { listener.externalWrite(place, length: left) }
    }

    private var messageDepth = 0

    /// Stores a device's 32-bit message (an MSI): to a device's register, or
    /// to RAM. What takes it may send one in turn, as an interrupt controller may, but a
    /// guest could make a circle of these: the fourth is refused.
    /// - Returns: false when nothing takes it.
    public func storeMessage(_ value: UInt32, at address: UInt64) -> Bool {
        guard messageDepth < 3 else {
            Log.guestError("message to \(Hex(address)) caused by a message")
            return false
        }
        messageDepth += 1
        defer { messageDepth -= 1 }
        if let host = dma(address, length: 4, writing: true) {
            host.storeBytes(of: value.littleEndian, as: UInt32.self)
            didWrite(address, length: 4)
            return true
        }
        return mmioWrite(address, width: 4, value: UInt64(value))
    }

    /// Copies `bytes` to guest RAM.
    /// - Throws: an error when the range is not all writable RAM.
    public func write(_ bytes: UnsafeRawBufferPointer, at address: UInt64, what: String) throws(VMMError) {
        guard bytes.count > 0, let source = bytes.baseAddress else { return }
        guard let pieces = pieces(address, length: UInt64(bytes.count)) else {
            throw VMMError(
                "\(what) (\(bytes.count) bytes at \(Hex(address))) does not fit into guest memory",
                hint: "Give the guest more memory with -m.")
        }
        var offset = 0
        for piece in pieces {
            piece.host.copyMemory(from: source + offset, byteCount: piece.count)
            offset += piece.count
        }
        didWrite(address, length: UInt64(bytes.count))
    }

    /// Fills guest RAM with zeroes.
    /// - Returns: false, with nothing done, when the range is not all RAM.
    public func clear(_ address: UInt64, length: UInt64) -> Bool {
        guard let pieces = pieces(address, length: length) else { return false }
        for piece in pieces { piece.host.initializeMemory(as: UInt8.self, repeating: 0, count: piece.count) }
        didWrite(address, length: length)
        return true
    }

    /// The host's memory behind a range of addresses, which may go from one range of RAM to the next, as from one NUMA
    /// node to another; nil where not all of it is RAM. Unlike `dma`, a loader may fill read-only memory.
    private func pieces(_ address: UInt64, length: UInt64) -> [(host: UnsafeMutableRawPointer, count: Int)]? {
        var pieces: [(host: UnsafeMutableRawPointer, count: Int)] = []
        var (place, left) = (address, length)
        while left > 0 {
            guard let range = ramRange(containing: place) else { return nil }
            let count = min(left, range.end - place)
            pieces.append((range.host + Int(place - range.start), Int(count)))
            place &+= count
            left -= count
        }
        return pieces
    }
}
