/// Bits of a page table entry.
private enum PTE {
    static let valid: UInt64 = 1
    static let read: UInt64 = 2
    static let write: UInt64 = 4
    static let execute: UInt64 = 8
    static let user: UInt64 = 16
    static let accessed: UInt64 = 64
    static let dirty: UInt64 = 128
    /// N, PBMT (extensions that this hart does not have) and bits that no
    /// extension uses.
    static let reserved: UInt64 = 0xffc0_0000_0000_0000
    static let ppn: UInt64 = ((1 << 44) - 1) << 10
}

/// Values of satp.MODE.
enum SATPMode {
    static let bare: UInt64 = 0
    static let sv39: UInt64 = 8
    static let sv48: UInt64 = 9
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
    /// Translation Process", for Sv39 and Sv48.
    private func walk(_ address: UInt64, _ kind: AccessKind, _ mode: UInt8) -> UInt64? {
        let levels: UInt64 = pointee.satp >> 60 == SATPMode.sv39 ? 3 : 4
        let unused = 64 - (12 + 9 * levels)
        guard UInt64(bitPattern: Int64(bitPattern: address << unused) >> Int64(unused)) == address else {
            return fail(kind.pageFault, address)
        }
        var table = (pointee.satp & ((1 << 44) - 1)) << 12
        var level = levels
        while level > 0 {
            level -= 1
            let shift = 12 + 9 * level
            let entryAddress = table + (address >> shift & 0x1ff) * 8
            guard allowsPMP(entryAddress, size: 8, .load, Mode.supervisor),
                let range = pointee.cache.pointee.range(containing: entryAddress)
            else { return fail(kind.accessFault, address) }
            let host = range.pointee.host + Int(entryAddress - range.pointee.start)
            let entry = host.load(as: UInt64.self)
            guard entry & PTE.valid != 0, entry & PTE.reserved == 0,
                entry & (PTE.read | PTE.write) != PTE.write
            else { return fail(kind.pageFault, address) }
            if entry & (PTE.read | PTE.execute) == 0 {
                guard entry & (PTE.accessed | PTE.dirty | PTE.user) == 0 else { return fail(kind.pageFault, address) }
                table = (entry & PTE.ppn) << 2
                continue
            }
            let inside = (1 << shift) - 1 as UInt64
            let base = (entry & PTE.ppn) << 2
            guard permits(entry, kind, mode), base & inside == 0 else { return fail(kind.pageFault, address) }
            let wanted = PTE.accessed | (kind == .store ? PTE.dirty : 0)
            if entry & wanted != wanted {
                // Svadu: with menvcfg.ADUE clear, software sets the bits.
                guard pointee.menvcfg & MEnvCfg.adue != 0 else { return fail(kind.pageFault, address) }
                guard allowsPMP(entryAddress, size: 8, .store, Mode.supervisor), !range.pointee.readOnly else {
                    return fail(kind.accessFault, address)
                }
                host.storeBytes(of: entry | wanted, as: UInt64.self)
                let cache = pointee.cache
                if cache.pointee.map[cache.pointee.mapIndex(range, entryAddress)] != 0 {
                    cache.pointee.dropOps(range, entryAddress, length: 8)
                }
            }
            if level > 0 { noteSuperpage(address, size: inside + 1) }
            return base | address & inside
        }
        return fail(kind.pageFault, address)
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
