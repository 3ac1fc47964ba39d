/// Physical memory protection: 16 entries (privileged specification,
/// "Physical Memory Protection"). The registers of the other 48 read as 0.
///
/// A page for which one entry decides, or none, is checked when it comes into
/// the TLB. A page that entries split never does: each access to it is checked
/// by itself, and each of its instructions is fetched by itself.
enum PMP {
    static let entries = 16
    static let read: UInt8 = 1
    static let write: UInt8 = 2
    static let execute: UInt8 = 4
    static let matching: UInt8 = 3 << 3
    static let topOfRange: UInt8 = 1 << 3
    static let naturallyAligned4: UInt8 = 2 << 3
    static let locked: UInt8 = 1 << 7
    static let addressMask: UInt64 = (1 << 54) - 1
}

extension UnsafeMutablePointer where Pointee == HartState {
    /// Whether an access is allowed: the lowest-numbered entry that matches any
    /// of its bytes decides, and must match all of them.
    func allowsPMP(_ address: UInt64, size: UInt64, _ kind: AccessKind, _ mode: UInt8) -> Bool {
        let last = address &+ size
        var active = pointee.activePMP
        while active != 0 {
            let index = active.trailingZeroBitCount
            active &= active - 1
            let (start, end) = rangePMP(index)
            guard start < end, start < last, address < end else { continue }
            guard start <= address, last <= end else { return false }
            let config = pmpcfg[index]
            if mode == Mode.machine && config & PMP.locked == 0 { return true }
            let needed = kind == .load ? PMP.read : kind == .store ? PMP.write : PMP.execute
            return config & needed != 0
        }
        return mode == Mode.machine || !has.contains(.pmp)
    }

    /// Whether what is allowed to one access is allowed to each of its kind in
    /// the page: one entry decides for all of it, or none does. Entries that
    /// allow stores and no loads count as not, so that atomics are checked.
    func isUniformPMP(_ page: UInt64) -> Bool {
        var active = pointee.activePMP
        while active != 0 {
            let index = active.trailingZeroBitCount
            active &= active - 1
            let (start, end) = rangePMP(index)
            guard start < end, start < page + 4096, end > page else { continue }
            return start <= page && end >= page + 4096
                && pmpcfg[index] & (PMP.read | PMP.write) != PMP.write
        }
        return true
    }

    /// The bytes that an entry matches; the end of the last possible range is
    /// out of reach of physical addresses and does not wrap.
    private func rangePMP(_ index: Int) -> (start: UInt64, end: UInt64) {
        let address = pmpaddr[index]
        switch pmpcfg[index] & PMP.matching {
        case PMP.topOfRange: return (index == 0 ? 0 : pmpaddr[index - 1] << 2, address << 2)
        case PMP.naturallyAligned4: return (address << 2, (address << 2) + 4)
        default:
            // The lowest 0 bit tells the size: 8 bytes for bit 0.
            let ones = address ^ (address + 1)
            return ((address & ~ones) << 2, ((address | ones) + 1) << 2)
        }
    }

    // MARK: Registers

    func writePMPConfig(_ register: Int, _ value: UInt64) {
        for byte in 0..<8 {
            let index = register * 4 + byte
            guard index < PMP.entries, pmpcfg[index] & PMP.locked == 0 else { continue }
            // W without R is reserved; like QEMU, it is kept and allows stores.
            pmpcfg[index] = UInt8(truncatingIfNeeded: value >> UInt64(byte * 8)) & 0x9f
        }
        updatePMP()
    }

    func readPMPConfig(_ register: Int) -> UInt64 {
        var value: UInt64 = 0
        for byte in 0..<8 { value |= UInt64(pmpcfg[register * 4 + byte]) << UInt64(byte * 8) }
        return value
    }

    func writePMPAddress(_ index: Int, _ value: UInt64) {
        guard pmpcfg[index] & PMP.locked == 0 else { return }
        if index + 1 < PMP.entries {
            let next = pmpcfg[index + 1]
            if next & PMP.locked != 0 && next & PMP.matching == PMP.topOfRange { return }
        }
        pmpaddr[index] = value & PMP.addressMask
        updatePMP()
    }

    func updatePMP() {
        var active: UInt16 = 0
        for index in 0..<PMP.entries where pmpcfg[index] & PMP.matching != 0 { active |= 1 << UInt16(index) }
        pointee.activePMP = active
        flushTLB()
    }
}
