import BatonRuntime

/// What an access is for: decides permissions and the cause of its faults.
enum AccessKind: Int {
    case load = 0
    case store = 1
    case fetch = 2

    var pageFault: UInt64 { self == .load ? Cause.loadPage : self == .store ? Cause.storePage : Cause.fetchPage }
    var accessFault: UInt64 {
        self == .load ? Cause.loadAccess : self == .store ? Cause.storeAccess : Cause.fetchAccess
    }
}

/// Why an access failed.
struct MemoryFault {
    var cause: UInt64 = 0
    /// The virtual address for mtval.
    var address: UInt64 = 0
}

// MARK: The hit path

/// Whether the TLB has the whole range of an access. One that crosses a page
/// never matches the tag. For stores, `set` is `dataTLB + TLB.storeOffset`.
@inline(__always)
func tlbHit<T>(_ set: UnsafeMutableRawPointer, _ address: UInt64, _ type: T.Type) -> Bool {
    tlbEntry(set, address).pointee.tag == (address &+ UInt64(MemoryLayout<T>.size - 1)) & pageMask
}

/// The host address of an access that hits.
@inline(__always)
func hostAddress(_ set: UnsafeMutableRawPointer, _ address: UInt64) -> UnsafeMutableRawPointer {
    let host = UInt(tlbEntry(set, address).pointee.addend &+ address)
    return UnsafeMutableRawPointer(bitPattern: host).unsafelyUnwrapped
}

extension UnsafeMutablePointer where Pointee == HartState {
    /// The op at a virtual address, if its page is in the TLB.
    @inline(__always)
    func fetchHit(_ address: UInt64) -> OpPointer? {
        let entry = tlbEntry(pointee.fetchTLB + TLB.fetchOffset, address)
        guard entry.pointee.tag == address & pageMask else { return nil }
        return OpPointer(bitPattern: UInt(entry.pointee.addend &+ (address & 0xfff) &* 4)).unsafelyUnwrapped
    }

    /// Makes `pc(of:)` right for the page of `op`, which is at `address`.
    @inline(__always)
    func enterPage(_ address: UInt64, _ op: OpPointer) {
        pointee.programCounterBase = address &- UInt64(UInt(bitPattern: op) >> 2)
    }

    // MARK: Fetches

    /// The op at a virtual address; a fault is taken as a trap, and the op is
    /// then the first of the handler.
    @inline(never)
    func resolve(_ address: UInt64) -> OpPointer {
        var address = address
        for attempt in 0..<2 {
            if let op = fetchHit(address) ?? fillFetch(address) {
                enterPage(address, op)
                return op
            }
            // The handler cannot be fetched either: try again as an op of its
            // own, so that the budget ends even a loop of traps.
            if attempt == 1 { break }
            takeTrap(pointee.fault.cause, value: pointee.fault.address, from: address)
            address = pointee.pc
        }
        let op = scratch + 3
        op.pointee = DecodedOp(code: .refetch)
        enterPage(address, op)
        return op
    }

    private func fillFetch(_ address: UInt64) -> OpPointer? {
        if pointee.isDebugged, let op = breakpointOp(address) { return op }
        guard let physical = translate(address, .fetch, size: 2) else { return nil }
        guard let range = pointee.cache.pointee.range(containing: physical) else {
            return fail(Cause.fetchAccess, address)
        }
        // A table of ops is entered without further checks.
        guard isUniform(physical), !(pointee.isDebugged && fetchesApart(address)) else { return fetchAlone(address) }
        let ops = pointee.cache.pointee.ops(for: physical, in: range)
        let entry = tlbEntry(pointee.fetchTLB + TLB.fetchOffset, address)
        entry.pointee.tag = address & pageMask
        entry.pointee.addend = UInt64(UInt(bitPattern: ops))
        return ops + Int(address & 0xfff) / 2
    }

    /// The instruction at an address of a page that PMP entries split, as an op
    /// of its own: what comes next is looked up, and so checked, again.
    /// - Returns: nil with `fault` set.
    private func fetchAlone(_ address: UInt64) -> OpPointer? {
        guard let low = fetchHalf(address) else { return nil }
        guard low & 3 == 3 else { return setAside(UInt32(low)) }
        guard let high = fetchHalf(address &+ 2) else { return nil }
        return setAside(UInt32(low) | UInt32(high) << 16)
    }

    private var decoder: Decoder { Decoder(has: has) }

    /// Decodes an instruction to `scratch`, with what leads on behind it.
    private func setAside(_ word: UInt32) -> OpPointer {
        scratch[0] = decoder.decode(word, offset: nil)
        scratch[1] = DecodedOp(code: .pageEnd)
        scratch[2] = DecodedOp(code: .pageEnd)
        return scratch
    }

    /// A halfword of code; checked by itself, as instructions are made of such.
    /// - Returns: nil with `fault` set.
    func fetchHalf(_ address: UInt64) -> UInt16? {
        guard let physical = translate(address, .fetch, size: 2) else { return nil }
        guard let range = pointee.cache.pointee.range(containing: physical) else {
            return fail(Cause.fetchAccess, address)
        }
        return (range.pointee.host + Int(physical - range.pointee.start)).loadUnaligned(as: UInt16.self)
    }

    /// Runs an instruction whose second half is on the next page: from scratch,
    /// as the next page may be another one every time.
    func runCrossing(_ op: OpPointer) -> OpPointer {
        let address = pc(of: op)
        let (table, _) = pointee.cache.pointee.table(of: op)
        let low = (table.host + 0xffe).loadUnaligned(as: UInt16.self)
        guard let high = fetchHalf(address &+ 2) else {
            return trap(op, pointee.fault.cause, pointee.fault.address)
        }
        let alone = setAside(UInt32(low) | UInt32(high) << 16)
        enterPage(address, alone)
        pointee.budget &+= 1
        return alone
    }

    /// Decodes the instruction at an op, in place.
    func decode(_ op: OpPointer) -> OpPointer {
        pointee.budget &+= 1
        let (table, slot) = pointee.cache.pointee.table(of: op)
        let code = table.host + slot * 2
        let low = code.loadUnaligned(as: UInt16.self)
        if low & 3 != 3 {
            op.pointee = decoder.decode(UInt32(low), offset: slot * 2)
        } else if slot == CodeCache.slots - 1 {
            op.pointee = DecodedOp(code: .crossing)
        } else {
            op.pointee = decoder.decode(code.loadUnaligned(as: UInt32.self), offset: slot * 2)
        }
        return op
    }

    // MARK: Loads and stores that miss the TLB

    func fail<T>(_ cause: UInt64, _ address: UInt64) -> T? {
        pointee.fault = MemoryFault(cause: cause, address: address)
        return nil
    }

    func refuse(_ cause: UInt64, _ address: UInt64) -> Bool {
        pointee.fault = MemoryFault(cause: cause, address: address)
        return false
    }

    /// Loads `size` (1, 2, 4, 8) bytes.
    /// - Returns: the value, zero-extended; nil with `fault` set.
    @inline(never)
    func load(_ address: UInt64, size: Int) -> UInt64? {
        let inPage = 4096 - Int(address & 0xfff)
        if size > inPage { return loadCrossing(address, size: size, first: inPage) }
        guard let physical = translate(address, .load, size: size) else { return nil }
        if pointee.isDebugged { noteAccess(address, .load, size: size) }
        if let range = pointee.cache.pointee.range(containing: physical),
            !range.pointee.hasDevice || !deviceAnswersLoads(physical)
        {
            let host = range.pointee.host + Int(physical - range.pointee.start)
            if isUniform(physical) { fillData(address, host, .load) }
            return HostMemory.load(host, size)
        }
        guard address & UInt64(size - 1) == 0 else { return fail(Cause.loadAccess, address) }
        if let memory = deviceMemory(physical) {
            let host = memory.host + Int(physical - memory.start)
            if isUniform(physical) { fillData(address, host, .load) }
            return HostMemory.load(host, size)
        }
        noteSlowWork(SlowWork.outside)
        guard let owner = pointee.owner,
            let value = owner._withUnsafeGuaranteedRef({ $0.addressSpace.mmioRead(physical, width: size) })
        else {
            Log.guestError("load of \(size) bytes from \(Hex(physical)): no device takes it")
            return fail(Cause.loadAccess, address)
        }
        return value
    }

    private func loadCrossing(_ address: UInt64, size: Int, first: Int) -> UInt64? {
        guard let low = hostAddress(address, .load, size: first),
            let high = hostAddress(address &+ UInt64(first), .load, size: size - first)
        else { return nil }
        var value: UInt64 = 0
        for index in 0..<size {
            let byte = index < first ? low + index : high + (index - first)
            value |= UInt64(byte.load(as: UInt8.self)) << UInt64(index * 8)
        }
        return value
    }

    /// Stores the low `size` (1, 2, 4, 8) bytes of `value`.
    /// - Returns: false with `fault` set.
    @inline(never)
    func store(_ address: UInt64, size: Int, _ value: UInt64) -> Bool {
        let inPage = 4096 - Int(address & 0xfff)
        if size > inPage { return storeCrossing(address, size: size, first: inPage, value) }
        guard let physical = translate(address, .store, size: size) else { return false }
        if pointee.isDebugged { noteAccess(address, .store, size: size) }
        if let range = pointee.cache.pointee.range(containing: physical) {
            if range.pointee.hasDevice { return storeToDevice(address, physical, size: size, value) }
            if range.pointee.readOnly {
                Log.guestError("store of \(size) bytes to read-only memory at \(Hex(physical))")
                return true
            }
            let host = range.pointee.host + Int(physical - range.pointee.start)
            HostMemory.store(host, size, value)
            didStore(address, physical, size: UInt64(size), range, host)
            return true
        }
        if address & UInt64(size - 1) == 0, let memory = deviceMemory(physical) {
            if memory.readOnly { return true }
            let host = memory.host + Int(physical - memory.start)
            if isUniform(physical) { fillData(address, host, .store) }
            HostMemory.store(host, size, value)
            return true
        }
        return storeToDevice(address, physical, size: size, value)
    }

    private func storeToDevice(_ address: UInt64, _ physical: UInt64, size: Int, _ value: UInt64) -> Bool {
        guard address & UInt64(size - 1) == 0 else { return refuse(Cause.storeAccess, address) }
        let mask = size == 8 ? UInt64.max : (1 << UInt64(size * 8)) - 1
        noteSlowWork(SlowWork.outside)
        guard let owner = pointee.owner,
            owner._withUnsafeGuaranteedRef({
                $0.addressSpace.mmioWrite(physical, width: size, value: value & mask)
            })
        else {
            Log.guestError("store of \(size) bytes to \(Hex(physical)): no device takes it")
            return refuse(Cause.storeAccess, address)
        }
        return true
    }

    /// Memory of a device at a physical address, which harts reach as they do RAM.
    private func deviceMemory(_ physical: UInt64) -> AddressSpace.DeviceMemory? {
        pointee.owner.flatMap { $0._withUnsafeGuaranteedRef { $0.addressSpace.deviceMemory(containing: physical) } }
    }

    private func deviceAnswersLoads(_ physical: UInt64) -> Bool {
        pointee.owner.map { $0._withUnsafeGuaranteedRef { $0.addressSpace.deviceAnswersLoads(at: physical) } } ?? false
    }

    private func storeCrossing(_ address: UInt64, size: Int, first: Int, _ value: UInt64) -> Bool {
        let second = address &+ UInt64(first)
        guard let low = hostAddress(address, .store, size: first),
            let high = hostAddress(second, .store, size: size - first)
        else { return false }
        for index in 0..<size {
            let byte = index < first ? low + index : high + (index - first)
            byte.storeBytes(of: UInt8(truncatingIfNeeded: value >> UInt64(index * 8)), as: UInt8.self)
        }
        return true
    }

    /// The host address of a part of a page that must be RAM; for a store,
    /// drops what was decoded from it.
    func hostAddress(_ address: UInt64, _ kind: AccessKind, size: Int) -> UnsafeMutableRawPointer? {
        guard let physical = translate(address, kind, size: size) else { return nil }
        guard let range = pointee.cache.pointee.range(containing: physical),
            !(kind == .store && range.pointee.readOnly)
        else { return fail(kind.accessFault, address) }
        if pointee.isDebugged { noteAccess(address, kind, size: size) }
        let host = range.pointee.host + Int(physical - range.pointee.start)
        if kind == .store { didStore(address, physical, size: UInt64(size), range, host) }
        // A device may answer the next load.
        if kind == .load, !range.pointee.hasDevice, isUniform(physical) { fillData(address, host, .load) }
        pointee.lastPhysical = physical
        return host
    }

    /// A store to RAM has been or is about to be made: keeps decoded code true,
    /// and fills the TLB where the page has none.
    private func didStore(
        _ address: UInt64, _ physical: UInt64, size: UInt64, _ range: UnsafeMutablePointer<PhysicalRange>,
        _ host: UnsafeMutableRawPointer
    ) {
        let cache = pointee.cache
        if cache.pointee.map[cache.pointee.mapIndex(range, physical)] != 0 {
            cache.pointee.dropOps(range, physical, length: size)
        } else if isUniform(physical) {
            fillData(address, host, .store)
        }
    }

    private func fillData(_ address: UInt64, _ host: UnsafeMutableRawPointer, _ kind: AccessKind) {
        if pointee.isDebugged, isWatched(page: address) { return }
        let entry = tlbEntry(pointee.dataTLB + (kind == .store ? TLB.storeOffset : 0), address)
        entry.pointee.tag = address & pageMask
        entry.pointee.addend = UInt64(UInt(bitPattern: host)) &- address
    }
}

/// Loads and stores of 1, 2, 4 or 8 bytes at any host address.
enum HostMemory {
    static func load(_ host: UnsafeMutableRawPointer, _ size: Int) -> UInt64 {
        switch size {
        case 1: UInt64(host.load(as: UInt8.self))
        case 2: UInt64(host.loadUnaligned(as: UInt16.self))
        case 4: UInt64(host.loadUnaligned(as: UInt32.self))
        default: host.loadUnaligned(as: UInt64.self)
        }
    }

    static func store(_ host: UnsafeMutableRawPointer, _ size: Int, _ value: UInt64) {
        switch size {
        case 1: host.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
        case 2: host.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
        case 4: host.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
        default: host.storeBytes(of: value, as: UInt64.self)
        }
    }
}
