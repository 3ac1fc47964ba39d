import BatonRuntime
import InstructionSets

/// Numbers of the CSRs that the hart has.
enum CSR {
    static let fflags = 0x001, frm = 0x002, fcsr = 0x003
    static let sstatus = 0x100, sie = 0x104, stvec = 0x105, scounteren = 0x106, senvcfg = 0x10a
    static let sscratch = 0x140, sepc = 0x141, scause = 0x142, stval = 0x143, sip = 0x144, stimecmp = 0x14d
    static let siselect = 0x150, sireg = 0x151, stopei = 0x15c, stopi = 0xdb0
    static let satp = 0x180
    static let mstatus = 0x300, misa = 0x301, medeleg = 0x302, mideleg = 0x303, mie = 0x304, mtvec = 0x305
    static let mcounteren = 0x306, menvcfg = 0x30a, mcountinhibit = 0x320
    static let mvien = 0x308, mvip = 0x309, miselect = 0x350, mireg = 0x351, mtopei = 0x35c, mtopi = 0xfb0
    static let mscratch = 0x340, mepc = 0x341, mcause = 0x342, mtval = 0x343, mip = 0x344
    static let pmpcfg0 = 0x3a0, pmpcfg2 = 0x3a2, pmpcfg15 = 0x3af
    static let pmpaddr0 = 0x3b0, pmpaddr15 = 0x3bf, pmpaddr63 = 0x3ef
    static let mhpmevent3 = 0x323, mhpmevent31 = 0x33f
    static let tselect = 0x7a0, tdata1 = 0x7a1, tdata2 = 0x7a2, tdata3 = 0x7a3, tinfo = 0x7a4
    static let mcycle = 0xb00, minstret = 0xb02, mhpmcounter3 = 0xb03, mhpmcounter31 = 0xb1f
    static let cycle = 0xc00, time = 0xc01, instret = 0xc02, hpmcounter31 = 0xc1f
    static let mvendorid = 0xf11, marchid = 0xf12, mimpid = 0xf13, mhartid = 0xf14, mconfigptr = 0xf15

    /// RV64, S and U, and a bit for each letter.
    static func misa(_ has: RISCVExtensions) -> UInt64 {
        var value: UInt64 = 2 << 62 | 1 << 18 | 1 << 20
        for (letter, set) in [(8, .i), (12, .m), (0, .a), (5, .f), (3, .d), (2, .c), (1, .b)]
            as [(UInt64, RISCVExtensions)]
        where has.contains(set) { value |= 1 << letter }
        return value
    }
    static let supervisorInterrupts: UInt64 = 0x222
    static let allInterrupts: UInt64 = 0xaaa
    /// What may be delegated: everything up to ecall from S, and page faults.
    static let delegableExceptions: UInt64 = 0xb3ff
}

extension UnsafeMutablePointer where Pointee == HartState {
    /// csrrw, csrrs, csrrc and their immediate forms; the instruction word is
    /// the op's immediate.
    @inline(never)
    func executeCSR(_ op: OpPointer, _ d: DecodedOp) -> OpPointer {
        let word = UInt32(bitPattern: d.imm)
        let number = Int(word >> 20)
        let function = word >> 12 & 3
        let field = Int(word >> 15 & 31)
        let writes = function == 1 || field != 0
        guard (number >> 8 & 3) <= Int(pointee.mode), !(writes && number >> 10 == 3) else { return illegal(op, word) }
        let operand = word >> 14 & 1 != 0 ? UInt64(field) : x[field]
        guard let old = readCSR(number) else { return illegal(op, word) }
        if writes {
            // sip and mip: what is or-ed back must not contain the external
            // half of SEIP.
            let base = number == CSR.mip || number == CSR.sip ? pointee.mip & CSR.allInterrupts : old
            let new = function == 1 ? operand : function == 2 ? base | operand : base & ~operand
            guard let effect = writeCSR(number, new) else { return illegal(op, word) }
            x[d.destination] = old
            switch effect {
            case .none: break
            case .interrupts: checkInterrupts()
            case .translation:
                checkInterrupts()
                return resolve(pc(of: op + d.step))
            }
        } else {
            x[d.destination] = old
        }
        return op + d.step
    }

    private var floatOff: Bool { pointee.mstatus & MStatus.fs == 0 }

    /// - Returns: nil when the CSR is not there, or not for this mode.
    func readCSR(_ number: Int) -> UInt64? {
        switch number {
        case CSR.fflags: return floatOff ? nil : UInt64(pointee.fflags)
        case CSR.frm: return floatOff ? nil : UInt64(pointee.frm)
        case CSR.fcsr: return floatOff ? nil : UInt64(pointee.frm) << 5 | UInt64(pointee.fflags)
        case CSR.cycle...CSR.hpmcounter31: return readCounter(number & 31)

        case CSR.sstatus: return statusWithSD & MStatus.supervisorVisible
        case CSR.sie: return pointee.mie & pointee.mideleg
        case CSR.stvec: return pointee.stvec
        case CSR.scounteren: return pointee.scounteren
        case CSR.senvcfg: return pointee.senvcfg
        case CSR.sscratch: return pointee.sscratch
        case CSR.sepc: return pointee.sepc
        case CSR.scause: return pointee.scause
        case CSR.stval: return pointee.stval
        case CSR.sip: return pointee.pendingBits & pointee.mideleg
        case CSR.stimecmp: return mayUseSupervisorTimer ? pointee.stimecmp : nil
        case CSR.satp:
            if pointee.mode == Mode.supervisor && pointee.mstatus & MStatus.tvm != 0 { return nil }
            return pointee.satp

        case CSR.mstatus: return statusWithSD
        case CSR.misa: return CSR.misa(has)
        case CSR.medeleg: return pointee.medeleg
        case CSR.mideleg: return pointee.mideleg
        case CSR.mie: return pointee.mie
        case CSR.mtvec: return pointee.mtvec
        case CSR.mcounteren: return pointee.mcounteren
        case CSR.menvcfg: return pointee.menvcfg
        case CSR.mcountinhibit: return pointee.mcountinhibit
        case CSR.mscratch: return pointee.mscratch
        case CSR.mepc: return pointee.mepc
        case CSR.mcause: return pointee.mcause
        case CSR.mtval: return pointee.mtval
        case CSR.mip: return pointee.pendingBits
        case CSR.pmpcfg0...CSR.pmpaddr63 where !has.contains(.pmp): return nil
        case CSR.pmpcfg0: return readPMPConfig(0)
        case CSR.pmpcfg2: return readPMPConfig(2)
        case CSR.pmpaddr0...CSR.pmpaddr15: return pmpaddr[number - CSR.pmpaddr0]
        // Of entries that there are not; the odd ones are RV32's.
        case CSR.pmpcfg0...CSR.pmpcfg15: return number & 1 == 0 ? 0 : nil
        case CSR.pmpaddr0...CSR.pmpaddr63: return 0
        case CSR.mcycle: return cycle
        case CSR.minstret: return instret
        case CSR.mhpmcounter3...CSR.mhpmcounter31: return has.contains(.hpmCounters) ? 0 : nil
        case CSR.mhpmevent3...CSR.mhpmevent31: return 0
        // No triggers: tdata1's type says that there is none at any index.
        case CSR.tselect...CSR.tdata3: return 0
        case CSR.tinfo: return 1
        case CSR.mvendorid, CSR.marchid, CSR.mimpid, CSR.mconfigptr: return 0
        case CSR.mhartid: return pointee.hartID
        default: return readAIA(number)
        }
    }

    /// What has to be looked at after a write.
    enum CSREffect {
        case none
        case interrupts
        case translation
    }

    /// - Returns: nil when the write is an illegal instruction.
    func writeCSR(_ number: Int, _ value: UInt64) -> CSREffect? {
        switch number {
        case CSR.fflags:
            pointee.fflags = UInt8(truncatingIfNeeded: value) & 31
            dirtyFloat()
        case CSR.frm:
            pointee.frm = UInt8(truncatingIfNeeded: value) & 7
            dirtyFloat()
        case CSR.fcsr:
            pointee.fflags = UInt8(truncatingIfNeeded: value) & 31
            pointee.frm = UInt8(truncatingIfNeeded: value >> 5) & 7
            dirtyFloat()

        case CSR.sstatus:
            let mask = MStatus.supervisorWritable & MStatus.writable(has)
            return writeStatus(pointee.mstatus & ~mask | value & mask)
        case CSR.sie:
            pointee.mie = pointee.mie & ~pointee.mideleg | value & pointee.mideleg
            return .interrupts
        case CSR.stvec: if value & 2 == 0 { pointee.stvec = value }
        case CSR.scounteren: pointee.scounteren = value & counterMask
        case CSR.senvcfg: pointee.senvcfg = value & EnvCfg.supervisor(has)
        case CSR.sscratch: pointee.sscratch = value
        case CSR.sepc: pointee.sepc = value & ~1
        case CSR.scause: pointee.scause = value
        case CSR.stval: pointee.stval = value
        case CSR.sip:
            let mask = pointee.mideleg & (1 << 1)
            pointee.mip = pointee.mip & ~mask | value & mask
            return .interrupts
        case CSR.stimecmp:
            pointee.stimecmp = value
            timerChanged()
            return .interrupts
        case CSR.satp: return writeSATP(value)

        case CSR.mstatus:
            let mask = MStatus.writable(has)
            return writeStatus(pointee.mstatus & ~mask | value & mask)
        case CSR.misa: break
        case CSR.medeleg: pointee.medeleg = value & CSR.delegableExceptions
        case CSR.mideleg:
            pointee.mideleg = value & CSR.supervisorInterrupts
            return .interrupts
        case CSR.mie:
            pointee.mie = value & CSR.allInterrupts
            return .interrupts
        case CSR.mtvec: if value & 2 == 0 { pointee.mtvec = value }
        case CSR.mcounteren: pointee.mcounteren = value & counterMask
        case CSR.menvcfg:
            let value = value & EnvCfg.machine(has)
            let changed = pointee.menvcfg ^ value
            pointee.menvcfg = value
            if changed & EnvCfg.stce != 0 {
                if value & EnvCfg.stce == 0 { pointee.mip &= ~(1 << 5) }
                timerChanged()
            }
            if changed & (EnvCfg.adue | EnvCfg.pbmte) != 0 { flushTLB() }
            return .translation
        case CSR.mcountinhibit: writeCountInhibit(value & 0xffff_fffd)
        case CSR.mscratch: pointee.mscratch = value
        case CSR.mepc: pointee.mepc = value & ~1
        case CSR.mcause: pointee.mcause = value
        case CSR.mtval: pointee.mtval = value
        case CSR.mip:
            // STIP is stimecmp's while that is in use.
            let mask = CSR.supervisorInterrupts & ~(pointee.usesSupervisorTimer ? 1 << 5 : 0)
            pointee.mip = pointee.mip & ~mask | value & mask
            return .interrupts
        case CSR.pmpcfg0, CSR.pmpcfg2:
            writePMPConfig(number == CSR.pmpcfg0 ? 0 : 2, value)
            return .translation
        case CSR.pmpaddr0...CSR.pmpaddr15:
            writePMPAddress(number - CSR.pmpaddr0, value)
            return .translation
        case CSR.pmpcfg0...CSR.pmpcfg15: if number & 1 != 0 { return nil }
        case CSR.pmpaddr0...CSR.pmpaddr63: break
        // The instruction that writes a counter does not count into it.
        case CSR.mcycle: pointee.cycleOffset = cycleStands ? value : value &- pointee.retired
        case CSR.minstret: pointee.instretOffset = instretStands ? value : value &- pointee.retired
        case CSR.mhpmcounter3...CSR.mhpmcounter31, CSR.mhpmevent3...CSR.mhpmevent31: break
        case CSR.tselect...CSR.tdata3: break
        default: return writeAIA(number, value)
        }
        return CSREffect.none
    }

    // MARK: Status

    private var statusWithSD: UInt64 {
        pointee.mstatus & MStatus.fs == MStatus.fs ? pointee.mstatus | MStatus.sd : pointee.mstatus
    }

    private func writeStatus(_ value: UInt64) -> CSREffect {
        var value = value
        // MPP holds only modes that exist.
        if value & MStatus.mpp == 2 << 11 { value = value & ~MStatus.mpp | pointee.mstatus & MStatus.mpp }
        let changed = value ^ pointee.mstatus
        pointee.mstatus = value
        pointee.floatReady = value & MStatus.fs == MStatus.fs
        updateFloatFast()
        if changed & MStatus.mxr != 0 { flushTLB() }
        if changed & (MStatus.mxr | MStatus.sum | MStatus.mprv | MStatus.mpp) != 0 { selectTLB() }
        return changed & MStatus.mxr != 0 ? .translation : .interrupts
    }

    func dirtyFloat() {
        pointee.mstatus |= MStatus.fs
        pointee.floatReady = true
        updateFloatFast()
    }

    private func writeSATP(_ value: UInt64) -> CSREffect? {
        if pointee.mode == Mode.supervisor && pointee.mstatus & MStatus.tvm != 0 { return nil }
        let mode = value >> 60
        // A mode that is not there leaves the whole register as it is.
        guard SATPMode.isThere(mode, has) else { return CSREffect.none }
        if value == pointee.satp { return CSREffect.none }
        pointee.satp = value
        flushTLB()
        return .translation
    }

    // MARK: Counters and timers

    /// A bit for each counter that there is.
    private var counterMask: UInt64 { has.contains(.hpmCounters) ? 0xffff_ffff : 7 }

    private var instretStands: Bool { pointee.mcountinhibit & 4 != 0 }
    private var cycleStands: Bool { pointee.mcountinhibit & 1 != 0 }
    /// Instructions retired before the current one, which the budget has
    /// counted already.
    private var retiredBefore: UInt64 { pointee.retired &- 1 }
    private var instret: UInt64 { pointee.instretOffset &+ (instretStands ? 0 : retiredBefore) }
    private var cycle: UInt64 { pointee.cycleOffset &+ (cycleStands ? 0 : retiredBefore) }

    private func writeCountInhibit(_ value: UInt64) {
        let changed = value ^ pointee.mcountinhibit
        // A counter that stops keeps its value as its offset; this instruction
        // still counts in one that ran before, and not in one that stood.
        if changed & 4 != 0 { pointee.instretOffset &+= value & 4 != 0 ? pointee.retired : 0 &- pointee.retired }
        if changed & 1 != 0 { pointee.cycleOffset &+= value & 1 != 0 ? pointee.retired : 0 &- pointee.retired }
        pointee.mcountinhibit = value
    }

    private func readCounter(_ index: Int) -> UInt64? {
        guard has.contains(index < 3 ? .zicntr : .hpmCounters) else { return nil }
        if pointee.mode < Mode.machine && pointee.mcounteren >> UInt64(index) & 1 == 0 { return nil }
        if pointee.mode == Mode.user && pointee.scounteren >> UInt64(index) & 1 == 0 { return nil }
        switch index {
        case 0: return cycle
        case 1: return pointee.owner?._withUnsafeGuaranteedRef { $0.time }
        case 2: return instret
        default: return 0
        }
    }

    private var mayUseSupervisorTimer: Bool {
        guard has.contains(.sstc) else { return false }
        return pointee.mode == Mode.machine || (pointee.usesSupervisorTimer && pointee.mcounteren & 2 != 0)
    }

    /// stimecmp or its use changed: STIP and the slice's end may.
    func timerChanged() {
        pointee.owner?._withUnsafeGuaranteedRef {
            $0.updateTimers()
            $0.accelerator.yield()
        }
    }
}
