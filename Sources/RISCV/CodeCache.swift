import BatonRuntime
import CBaton
import Glibc
import InstructionSets

/// RAM as harts see it.
struct PhysicalRange {
    let start: UInt64
    let size: UInt64
    let host: UnsafeMutableRawPointer
    let readOnly: Bool
    /// Whether a device takes stores, and loads when it says so.
    let hasDevice: Bool
    /// Index of its first page in `CodeCache.map`.
    let firstPage: Int
}

/// Decoded instructions of all harts, by physical page: a page that holds code
/// has a table with one op a halfword. A store to such a page, from whomever,
/// drops the ops that it overlaps; harts keep these pages out of their store
/// TLBs to notice.
///
/// What other processes store goes unnoticed. Where there are such writers, a
/// copy is kept of each page that holds code, and the first fetch from a page
/// after a `fence.i` compares the two.
///
/// Everything is raw memory with one owner, `SoftwareAccelerator`.
struct CodeCache {
    /// Ops in a table: a page's halfwords, and two `pageEnd` ops for code that
    /// runs off the end after 2 or 4 bytes.
    static let slots = 2048
    static let tableSize = (slots + 8) * MemoryLayout<DecodedOp>.size
    /// Enough for 16 MiB of code.
    static let capacity = 4096
    /// Bytes before an instruction that an op may also stand for (fusion).
    static let reach: UInt64 = 10

    struct Table {
        var physical: UInt64
        var host: UnsafeMutableRawPointer
        var mapIndex: Int
        /// The `generation` in which the page was last known to be as decoded.
        var generation: UInt64
    }

    private(set) var ranges: UnsafeMutablePointer<PhysicalRange>
    private(set) var rangeCount = 0
    /// Table number plus one of each page of RAM, 0 for none.
    private(set) var map: UnsafeMutablePointer<UInt32>
    private var mapCount = 0
    private let pool: UnsafeMutableRawPointer
    private let tables: UnsafeMutablePointer<Table>
    private(set) var used = 0
    /// Counts the guest's `fence.i`, where others store to RAM.
    private var generation: UInt64 = 0
    private(set) var hasForeignWriters = false
    /// The bytes that each table's page had when it was made or compared.
    private var copies: UnsafeMutableRawPointer?
    let harts: UnsafeMutablePointer<HartPointer?>
    var hartCount = 0
    /// What the harts have, which decides what is an instruction.
    private(set) var extensions = RISCVProcessor.standard.extensions

    private init() throws(VMMError) {
        pool = try CodeCache.reserve(CodeCache.capacity * CodeCache.tableSize, "decoded instructions")
        // Where the kernel has huge pages, the guest's code needs fewer faults and
        // translations, and the end of an old VMM frees fewer pages.
        madvise(pool, CodeCache.capacity * CodeCache.tableSize, CBATON_MADV_HUGEPAGE)
        ranges = .allocate(capacity: 1)
        map = .allocate(capacity: 1)
        tables = .allocate(capacity: CodeCache.capacity)
        harts = .allocate(capacity: SoftwareAccelerator.maximumHarts)
        harts.initialize(repeating: nil, count: SoftwareAccelerator.maximumHarts)
    }

    /// Memory that reads as 0 and costs nothing until it is used.
    private static func reserve(_ size: Int, _ what: String) throws(VMMError) -> UnsafeMutableRawPointer {
        guard
            let memory = mmap(
                nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            memory != MAP_FAILED
        else { throw .system("cannot reserve \(size) bytes for \(what)") }
        return memory
    }

    static func allocate() throws(VMMError) -> UnsafeMutablePointer<CodeCache> {
        let made = try CodeCache()
        let cache = UnsafeMutablePointer<CodeCache>.allocate(capacity: 1)
        cache.initialize(to: made)
        return cache
    }

    static func deallocate(_ cache: UnsafeMutablePointer<CodeCache>) {
        munmap(cache.pointee.pool, capacity * tableSize)
        if let copies = cache.pointee.copies { munmap(copies, capacity << 12) }
        cache.pointee.tables.deallocate()
        cache.pointee.harts.deallocate()
        cache.pointee.ranges.deallocate()
        cache.pointee.freeMap()
        cache.deallocate()
    }

    private func freeMap() {
        if mapCount > 0 { munmap(map, mapCount * 4) } else { map.deallocate() }
    }

    /// Takes over the RAM of an address space, and forgets all code.
    /// - Throws: an error when there is no memory for the map; nothing has changed.
    mutating func adopt(_ addressSpace: AddressSpace) throws(VMMError) {
        let source = addressSpace.ramRanges
        let pages = max(1, source.reduce(0) { $0 + Int($1.size >> 12) })
        let fresh = try CodeCache.reserve(pages * 4, "the map of decoded code")
        flush()
        ranges.deallocate()
        freeMap()
        ranges = .allocate(capacity: max(1, source.count))
        rangeCount = source.count
        var firstPage = 0
        for (index, range) in source.enumerated() {
            (ranges + index).initialize(
                to: PhysicalRange(
                    start: range.start, size: range.size, host: range.host, readOnly: range.readOnly,
                    hasDevice: range.hasDevice, firstPage: firstPage))
            firstPage += Int(range.size >> 12)
        }
        mapCount = pages
        map = fresh.assumingMemoryBound(to: UInt32.self)
    }

    // MARK: Look-up

    /// The RAM range that holds a guest-physical address.
    @inline(__always)
    func range(containing address: UInt64) -> UnsafeMutablePointer<PhysicalRange>? {
        // Main RAM is the last and the one that counts.
        var index = rangeCount
        while index > 0 {
            index &-= 1
            let range = ranges + index
            if address &- range.pointee.start < range.pointee.size { return range }
        }
        return nil
    }

    @inline(__always)
    func mapIndex(_ range: UnsafeMutablePointer<PhysicalRange>, _ address: UInt64) -> Int {
        range.pointee.firstPage &+ Int(truncatingIfNeeded: (address &- range.pointee.start) >> 12)
    }

    func ops(ofTable number: Int) -> OpPointer {
        (pool + number * CodeCache.tableSize).assumingMemoryBound(to: DecodedOp.self)
    }

    /// The table that an op belongs to, and the op's slot. For ops of tables only.
    func table(of op: OpPointer) -> (table: Table, slot: Int) {
        let distance = UnsafeMutableRawPointer(op) - pool
        let number = distance / CodeCache.tableSize
        return (tables[number], (distance - number * CodeCache.tableSize) / MemoryLayout<DecodedOp>.size)
    }

    /// The ops of the page at a guest-physical address, made when there are
    /// none. May flush everything when the pool is full.
    mutating func ops(for address: UInt64, in range: UnsafeMutablePointer<PhysicalRange>) -> OpPointer {
        let index = mapIndex(range, address)
        if map[index] != 0 {
            let number = Int(map[index]) - 1
            if tables[number].generation != generation { compare(number) }
            return ops(ofTable: number)
        }
        if used == CodeCache.capacity { flush() }
        let page = address & pageMask
        let host = range.pointee.host + Int(page - range.pointee.start)
        (tables + used).initialize(to: Table(physical: page, host: host, mapIndex: index, generation: generation))
        if let copies { (copies + (used << 12)).copyMemory(from: host, byteCount: 4096) }
        let ops = ops(ofTable: used)
        ops.initialize(repeating: DecodedOp(), count: CodeCache.slots)
        for slot in CodeCache.slots..<CodeCache.slots + 8 { ops[slot] = DecodedOp(code: .pageEnd) }
        used += 1
        map[index] = UInt32(used)
        for hart in 0..<hartCount { harts[hart]?.dropStoreEntries(host: UInt64(UInt(bitPattern: host))) }
        return ops
    }

    // MARK: Invalidation

    /// Sets what the harts have, and forgets all code.
    mutating func setExtensions(_ extensions: RISCVExtensions) {
        self.extensions = extensions
        flush()
    }

    /// Drops the ops that overlap `length` bytes at `address`, all within a page.
    @inline(never)
    func dropOps(_ range: UnsafeMutablePointer<PhysicalRange>, _ address: UInt64, length: UInt64) {
        let number = map[mapIndex(range, address)]
        guard number != 0 else { return }
        let ops = ops(ofTable: Int(number) - 1)
        let offset = address & 0xfff
        let first = offset > CodeCache.reach ? Int((offset - CodeCache.reach) >> 1) : 0
        let last = min(Int((offset + length - 1) >> 1), CodeCache.slots - 1)
        for slot in first...last { ops[slot].code = .undecoded }
    }

    /// For stores by anything but harts.
    func externalWrite(_ address: UInt64, _ length: UInt64) {
        guard length > 0, let range = range(containing: address) else { return }
        var address = address
        let end = min(range.pointee.start + range.pointee.size, address &+ min(length, range.pointee.size))
        while address < end {
            let next = min(end, (address & pageMask) + 4096)
            if map[mapIndex(range, address)] != 0 { dropOps(range, address, length: next - address) }
            address = next
        }
    }

    /// Others than this process store to RAM from now on.
    mutating func expectForeignWriters() {
        flush()
        hasForeignWriters = true
        // Without room for copies every page counts as changed.
        copies = try? CodeCache.reserve(CodeCache.capacity << 12, "copies of code")
    }

    /// What others have stored to RAM so far is seen by fetches from now on,
    /// of harts whose fetch entries are dropped.
    mutating func beginGeneration() { generation &+= 1 }

    /// Drops a table's ops if its page is not what it was.
    private mutating func compare(_ number: Int) {
        let page = tables[number].host
        tables[number].generation = generation
        if let copies {
            let copy = copies + (number << 12)
            if memcmp(copy, page, 4096) == 0 { return }
            copy.copyMemory(from: page, byteCount: 4096)
        }
        let ops = ops(ofTable: number)
        for slot in 0..<CodeCache.slots { ops[slot].code = .undecoded }
    }

    /// Forgets all code. Pointers to ops are invalid afterwards.
    mutating func flush() {
        for number in 0..<used { map[tables[number].mapIndex] = 0 }
        used = 0
        for hart in 0..<hartCount { harts[hart]?.dropFetchEntries() }
    }
}
