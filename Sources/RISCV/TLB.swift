/// The software TLB: direct mapped, one entry a 4 KiB page, made of a tag (the
/// page's virtual address, or 1 for none) and an addend (host address minus
/// virtual address; for fetches the page's table of decoded ops).
///
/// There is a set of entries for each kind of mode, so that a trap does not
/// flush: what user mode may touch, what supervisor mode may touch without and
/// with mstatus.SUM, and what machine mode may touch. An entry is there only if
/// every access of its kind to the whole page succeeds without side effects.
enum TLB {
    static let entries = 256
    /// Load, store and fetch entries, 16 bytes each.
    static let setSize = 3 * entries * 16
    static let storeOffset = entries * 16
    static let fetchOffset = 2 * entries * 16
    static let sets = 4
    static let totalSize = sets * setSize
    /// From the HartState to the first set.
    static let offset = 2048
    static let noTag: UInt64 = 1

    static let userSet = 0
    static let supervisorSet = 1
    static let supervisorUserSet = 2
    static let machineSet = 3
}

let pageMask: UInt64 = ~0xfff

struct TLBEntry {
    var tag: UInt64
    var addend: UInt64
}

/// The entry of a kind for an address: `base` is a set plus the kind's offset.
@inline(__always)
func tlbEntry(_ base: UnsafeMutableRawPointer, _ address: UInt64) -> UnsafeMutablePointer<TLBEntry> {
    (base + Int(truncatingIfNeeded: address >> 8 & 0xff0)).assumingMemoryBound(to: TLBEntry.self)
}

extension UnsafeMutablePointer where Pointee == HartState {
    private var firstSet: UnsafeMutableRawPointer { UnsafeMutableRawPointer(self) + TLB.offset }

    private func set(_ index: Int) -> UnsafeMutableRawPointer { firstSet + index * TLB.setSize }

    /// Points the loop at the sets that the current mode and mstatus select.
    func selectTLB() {
        pointee.fetchTLB =
            switch pointee.mode {
            case Mode.user: set(TLB.userSet)
            case Mode.supervisor: set(TLB.supervisorSet)
            default: set(TLB.machineSet)
            }
        pointee.dataTLB =
            switch dataMode {
            case Mode.user: set(TLB.userSet)
            case Mode.supervisor:
                set(pointee.mstatus & MStatus.sum != 0 ? TLB.supervisorUserSet : TLB.supervisorSet)
            default: set(TLB.machineSet)
            }
    }

    /// The mode that loads and stores are made in: mstatus.MPRV may lower it.
    var dataMode: UInt8 {
        if pointee.mode == Mode.machine && pointee.mstatus & MStatus.mprv != 0 {
            return UInt8(truncatingIfNeeded: pointee.mstatus >> 11 & 3)
        }
        return pointee.mode
    }

    /// Drops every entry.
    func flushTLB() {
        let entries = firstSet.assumingMemoryBound(to: TLBEntry.self)
        for index in 0..<TLB.totalSize / 16 { entries[index].tag = TLB.noTag }
        pointee.superpageBase = 0
        pointee.superpageMask = UInt64.max
    }

    /// Drops what may come from the page tables' mapping of `address`.
    func flushTLB(page address: UInt64) {
        if address & pointee.superpageMask == pointee.superpageBase & pointee.superpageMask,
            pointee.superpageMask != UInt64.max
        {
            return flushTLB()
        }
        for index in 0..<TLB.machineSet {
            for kind in 0..<3 {
                let entry = tlbEntry(set(index) + kind * TLB.storeOffset, address)
                if entry.pointee.tag == address & pageMask { entry.pointee.tag = TLB.noTag }
            }
        }
    }

    /// Widens the range that `flushTLB(page:)` cannot flush page by page.
    func noteSuperpage(_ address: UInt64, size: UInt64) {
        if pointee.superpageMask == UInt64.max {
            pointee.superpageMask = ~(size &- 1)
            pointee.superpageBase = address & pointee.superpageMask
            return
        }
        var mask = pointee.superpageMask & ~(size &- 1)
        while (address ^ pointee.superpageBase) & mask != 0 { mask <<= 1 }
        pointee.superpageMask = mask
        pointee.superpageBase &= mask
    }

    /// Drops store entries that reach the page at `host`, which now has decoded ops.
    func dropStoreEntries(host: UInt64) {
        for index in 0..<TLB.sets {
            let entries = (set(index) + TLB.storeOffset).assumingMemoryBound(to: TLBEntry.self)
            for slot in 0..<TLB.entries where entries[slot].tag &+ entries[slot].addend == host {
                entries[slot].tag = TLB.noTag
            }
        }
    }

    /// Drops every fetch entry.
    func dropFetchEntries() {
        for index in 0..<TLB.sets {
            let entries = (set(index) + TLB.fetchOffset).assumingMemoryBound(to: TLBEntry.self)
            for slot in 0..<TLB.entries { entries[slot].tag = TLB.noTag }
        }
    }
}
