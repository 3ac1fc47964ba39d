import InstructionSets

/// Bits of mstatus.
enum MStatus {
    static let sie: UInt64 = 1 << 1
    static let mie: UInt64 = 1 << 3
    static let spie: UInt64 = 1 << 5
    static let mpie: UInt64 = 1 << 7
    static let spp: UInt64 = 1 << 8
    static let mpp: UInt64 = 3 << 11
    static let fs: UInt64 = 3 << 13
    static let mprv: UInt64 = 1 << 17
    static let sum: UInt64 = 1 << 18
    static let mxr: UInt64 = 1 << 19
    static let tvm: UInt64 = 1 << 20
    static let tw: UInt64 = 1 << 21
    static let tsr: UInt64 = 1 << 22
    /// UXL and SXL: 64 bits.
    static let fixed: UInt64 = 2 << 32 | 2 << 34
    static let sd: UInt64 = 1 << 63

    private static let allWritable = sie | mie | spie | mpie | spp | mpp | fs | mprv | sum | mxr | tvm | tw | tsr
    static func writable(_ has: RISCVExtensions) -> UInt64 { has.contains(.f) ? allWritable : allWritable & ~fs }
    /// What sstatus shows and what may be written through it.
    static let supervisorWritable = sie | spie | spp | fs | sum | mxr
    static let supervisorVisible = supervisorWritable | 3 << 32 | sd
}

/// Bits of menvcfg, and of senvcfg those below 8.
enum EnvCfg {
    static let fiom: UInt64 = 1
    /// Zicbom: cbo.inval, which may be carried out as cbo.flush (1) or as it is (3); both are the same here.
    static let cbie: UInt64 = 3 << 4
    /// Zicbom: cbo.clean and cbo.flush.
    static let cbcfe: UInt64 = 1 << 6
    /// Zicboz.
    static let cbze: UInt64 = 1 << 7
    static let pbmte: UInt64 = 1 << 62
    static let adue: UInt64 = 1 << 61
    static let stce: UInt64 = 1 << 63

    /// Bits of senvcfg that are there.
    static func supervisor(_ has: RISCVExtensions) -> UInt64 {
        fiom | (has.contains(.zicbom) ? cbie | cbcfe : 0) | (has.contains(.zicboz) ? cbze : 0)
    }

    /// Bits of menvcfg that are there.
    static func machine(_ has: RISCVExtensions) -> UInt64 {
        supervisor(has) | (has.contains(.svpbmt) ? pbmte : 0) | (has.contains(.svadu) ? adue : 0)
            | (has.contains(.sstc) ? stce : 0)
    }

    /// menvcfg after a reset, as in QEMU: where there is a choice, hardware sets A and D.
    static func atReset(_ has: RISCVExtensions) -> UInt64 {
        (has.contains(.svpbmt) ? pbmte : 0) | (has.contains(.svadu) && !has.contains(.svade) ? adue : 0)
    }
}

/// Exception causes, as in mcause.
enum Cause {
    static let fetchAccess: UInt64 = 1
    static let illegal: UInt64 = 2
    static let breakpoint: UInt64 = 3
    static let loadMisaligned: UInt64 = 4
    static let loadAccess: UInt64 = 5
    static let storeMisaligned: UInt64 = 6
    static let storeAccess: UInt64 = 7
    static let ecallFromUser: UInt64 = 8
    static let fetchPage: UInt64 = 12
    static let loadPage: UInt64 = 13
    static let storePage: UInt64 = 15
    static let interrupt: UInt64 = 1 << 63
}
