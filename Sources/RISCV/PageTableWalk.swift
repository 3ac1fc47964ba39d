import InstructionSets

/// Bits of a page table entry.
private enum PTE {
    static let valid: UInt64 = 1
    static let read: UInt64 = 2
    static let write: UInt64 = 4
    static let execute: UInt64 = 8
    static let user: UInt64 = 16
    static let accessed: UInt64 = 64
    static let dirty: UInt64 = 128
    /// Svnapot's and Svpbmt's bits, and those that no extension uses.
    static let reserved: UInt64 = 0xffc0_0000_0000_0000
    static let napot: UInt64 = 1 << 63
    static let memoryType: UInt64 = 3 << 61
    static let ppn: UInt64 = ((1 << 44) - 1) << 10
}

/// Values of satp.MODE.
enum SATPMode {
    static let bare: UInt64 = 0
    static let sv39: UInt64 = 8
    static let sv48: UInt64 = 9
    static let sv57: UInt64 = 10

    /// Whether satp can hold a mode.
    static func isThere(_ mode: UInt64, _ has: RISCVExtensions) -> Bool {
        switch mode {
        case bare: true
        case sv39: has.contains(.sv39)
        case sv48: has.contains(.sv48)
        case sv57: has.contains(.sv57)
        default: false
        }
    }
}

/// The shape of the page tables that a satp points to, whatever an access may do there.
private struct PageTables {
    /// Of the tables: 3 (Sv39) to 5 (Sv57). The leaves of pages are in level 0.
    let levels: UInt64
    /// The guest-physical address of the first table.
    let root: UInt64
    private let reserved: UInt64

    /// What an entry says.
    enum Meaning {
        /// A fault, whoever asks.
        case none
        /// The next table is at that guest-physical address.
        case table(UInt64)
        /// A page of `inside` + 1 bytes begins at `base`.
        case page(base: UInt64, inside: UInt64)
    }

    /// - Parameters:
    ///   - satp: with a mode that is not bare.
    ///   - reserved: bits of a leaf that must be zero.
    @inline(__always)
    init(satp: UInt64, reserved: UInt64) {
        // The modes are numbered by their levels.
        levels = satp >> 60 &- SATPMode.sv39 &+ 3
        root = (satp & ((1 << 44) - 1)) << 12
        self.reserved = reserved
    }

    /// Whether the bits above those that the tables translate repeat the highest of them.
    @inline(__always)
    func cover(_ address: UInt64) -> Bool {
        let unused = 64 - (12 + 9 * levels)
        return UInt64(bitPattern: Int64(bitPattern: address << unused) >> Int64(unused)) == address
    }

    /// Where a table has the entry for an address.
    @inline(__always)
    func place(of address: UInt64, in table: UInt64, level: UInt64) -> UInt64 {
        table + (address >> (12 + 9 * level) & 0x1ff) * 8
    }

    @inline(__always)
    func meaning(of entry: UInt64, level: UInt64) -> Meaning {
        guard entry & PTE.valid != 0, entry & reserved == 0, entry & (PTE.read | PTE.write) != PTE.write else {
            return .none
        }
        var base = (entry & PTE.ppn) << 2
        if entry & (PTE.read | PTE.execute) == 0 {
            let unused = PTE.accessed | PTE.dirty | PTE.user | PTE.reserved
            return entry & unused == 0 ? .table(base) : .none
        }
        var inside = (1 << (12 + 9 * level)) - 1 as UInt64
        if entry & (PTE.napot | PTE.memoryType) != 0 {
            guard entry & PTE.memoryType != PTE.memoryType else { return .none }
            if entry & PTE.napot != 0 {
                // Svnapot has one size: 64 KiB, in the lowest level, with 8 for the low bits of the page number.
                guard level == 0, base >> 12 & 15 == 8 else { return .none }
                inside = 0xffff
                base &= ~inside
            }
        }
        return base & inside == 0 ? .page(base: base, inside: inside) : .none
    }
}

extension UnsafeMutablePointer where Pointee == HartState {
    /// Translates and checks an access, or its part in one page.
    /// - Returns: the guest-physical address; nil with `fault` set.
    func translate(_ address: UInt64, _ kind: AccessKind, size: Int) -> UInt64? {
        let mode = kind == .fetch ? pointee.mode : dataMode
        var physical = address
        if mode != Mode.machine && pointee.satp >> 60 != SATPMode.bare {
            guard let walked = walk(address, kind, mode) else { return nil }
            physical = walked
        }
        guard allowsPMP(physical, size: UInt64(size), kind, mode) else { return fail(kind.accessFault, address) }
        return physical
    }

    /// Whether the whole page may be accessed as these bytes were.
    func isUniform(_ physical: UInt64) -> Bool {
        pointee.activePMP == 0 || isUniformPMP(physical & pageMask)
    }

    /// The algorithm of the privileged specification, "Virtual Address
    /// Translation Process", for Sv39, Sv48 and Sv57.
    private func walk(_ address: UInt64, _ kind: AccessKind, _ mode: UInt8) -> UInt64? {
        let tables = PageTables(satp: pointee.satp, reserved: reservedBits)
        guard tables.cover(address) else { return fail(kind.pageFault, address) }
        var table = tables.root
        var level = tables.levels
        while level > 0 {
            level -= 1
            let entryAddress = tables.place(of: address, in: table, level: level)
            guard allowsPMP(entryAddress, size: 8, .load, Mode.supervisor),
                let range = pointee.cache.pointee.range(containing: entryAddress)
            else { return fail(kind.accessFault, address) }
            let host = range.pointee.host + Int(entryAddress - range.pointee.start)
            let entry = host.load(as: UInt64.self)
            switch tables.meaning(of: entry, level: level) {
            case .none: return fail(kind.pageFault, address)
            case .table(let next): table = next
            case .page(let base, let inside):
                guard permits(entry, kind, mode) else { return fail(kind.pageFault, address) }
                let wanted = PTE.accessed | (kind == .store ? PTE.dirty : 0)
                if entry & wanted != wanted {
                    guard updatesEntries else { return fail(kind.pageFault, address) }
                    guard allowsPMP(entryAddress, size: 8, .store, Mode.supervisor), !range.pointee.readOnly else {
                        return fail(kind.accessFault, address)
                    }
                    host.storeBytes(of: entry | wanted, as: UInt64.self)
                    let cache = pointee.cache
                    if cache.pointee.map[cache.pointee.mapIndex(range, entryAddress)] != 0 {
                        cache.pointee.dropOps(range, entryAddress, length: 8)
                    }
                }
                if inside > 0xfff { noteSuperpage(address, size: inside + 1) }
                return base | address & inside
            }
        }
        return fail(kind.pageFault, address)
    }

    /// Where loads of the current mode find an address, whatever they may do there. Neither sets a bit of a page table
    /// nor asks a device.
    func translateForDebugger(_ address: UInt64) -> UInt64? {
        guard dataMode != Mode.machine, pointee.satp >> 60 != SATPMode.bare else { return address }
        let tables = PageTables(satp: pointee.satp, reserved: reservedBits)
        guard tables.cover(address) else { return nil }
        var table = tables.root
        for level in (0..<tables.levels).reversed() {
            let place = tables.place(of: address, in: table, level: level)
            guard let range = pointee.cache.pointee.range(containing: place) else { return nil }
            let entry = (range.pointee.host + Int(place - range.pointee.start)).load(as: UInt64.self)
            switch tables.meaning(of: entry, level: level) {
            case .none: return nil
            case .table(let next): table = next
            case .page(let base, let inside): return base | address & inside
            }
        }
        return nil
    }

    /// Bits of a leaf that must be zero.
    private var reservedBits: UInt64 {
        PTE.reserved & ~(has.contains(.svnapot) ? PTE.napot : 0)
            & ~(pointee.menvcfg & EnvCfg.pbmte != 0 ? PTE.memoryType : 0)
    }

    /// Whether the hart sets A and D: as menvcfg.ADUE says (Svadu), never (Svade alone), or always.
    private var updatesEntries: Bool {
        has.contains(.svadu) ? pointee.menvcfg & EnvCfg.adue != 0 : !has.contains(.svade)
    }

    private func permits(_ entry: UInt64, _ kind: AccessKind, _ mode: UInt8) -> Bool {
        if mode == Mode.user {
            guard entry & PTE.user != 0 else { return false }
        } else if entry & PTE.user != 0 {
            guard kind != .fetch, pointee.mstatus & MStatus.sum != 0 else { return false }
        }
        switch kind {
        case .load:
            return entry & PTE.read != 0 || (pointee.mstatus & MStatus.mxr != 0 && entry & PTE.execute != 0)
        case .store: return entry & PTE.write != 0
        case .fetch: return entry & PTE.execute != 0
        }
    }
}
