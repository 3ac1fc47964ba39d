import Glibc
import InstructionSets

/// A hart's state lives in one raw allocation so that the interpreter reaches
/// registers and TLBs as displacements from a single pointer, without reference
/// counts or exclusivity checks:
///
///     -2048  x: 64 slots; x0 is slot 0, writes to it are decoded to slot 32
///     -1536  f: 32 registers, NaN-boxed
///     -1280  pmpaddr: 16 registers
///     -1152  pmpcfg: 16 bytes
///     -1136  scratch: 4 decoded ops (instructions that cross a page)
///         0  HartState
///      2048  TLB sets, see TLB.swift
typealias HartPointer = UnsafeMutablePointer<HartState>

/// The privilege modes as the interpreter sees them.
enum Mode {
    static let user: UInt8 = 0
    static let supervisor: UInt8 = 1
    static let machine: UInt8 = 3
}

/// The state of a hart in the SBI's Hart State Management extension.
enum HSMState: UInt8 {
    case started = 0
    case stopped = 1
    case suspended = 4
}

struct HartState {
    // MARK: Hot

    /// The next op's address is `pc(of: op) = programCounterBase + op / 4`.
    var programCounterBase: UInt64 = 0
    /// Instructions that the loop may still start.
    var budget: Int64 = 0
    /// `retired` when `budget` will be 0; a trap lowers it by one.
    var retiredAtEnd: UInt64 = 0
    /// TLB sets of data accesses and of fetches in the current mode.
    var dataTLB: UnsafeMutableRawPointer
    var fetchTLB: UnsafeMutableRawPointer
    /// Whether mstatus.FS is Dirty: anything else takes the slow path.
    var floatReady = false
    /// And whether the host's arithmetic may be used: frm is RNE and NX is set.
    var floatFast = false
    var fflags: UInt8 = 0
    var frm: UInt8 = 0
    /// The SBI is the VMM's own: ecall from S-mode does not trap.
    var hasBuiltinSBI = false
    /// The hart has Smaia and Ssaia.
    var hasAIA = false

    // MARK: Control flow

    var mode = Mode.machine
    /// Valid while the loop does not run.
    var pc: UInt64 = 0
    /// Ops off the loop until the next look at the clock, see `noteSlowWork`.
    var slowWorkLeft: Int64 = SlowWork.betweenLooks
    /// What `leaveLoop` took from `budget`.
    var withheld: Int64 = 0
    /// In WFI, with no interrupt yet.
    var waiting = false
    var hsm = HSMState.started
    /// Where a non-retentive suspend ends, and a1 there.
    var resumeAddress = HartState.noResume
    var resumeOpaque: UInt64 = 0
    static let noResume = UInt64.max
    /// A debugger has points or has the hart step (`HartDebugger`): what is not in a TLB is looked at.
    var isDebugged = false
    /// Each instruction is fetched by itself, and no breakpoint ends the loop.
    var steps = false
    /// The SBI has an event for the hart, to be delivered before it runs on.
    var hasEvents = false
    /// Physical address of the LR reservation and the value that was read.
    var reservation = HartState.noReservation
    var reservedValue: UInt64 = 0
    static let noReservation = UInt64.max

    // MARK: Registers

    var hartID: UInt64
    var mstatus: UInt64 = 0
    var medeleg: UInt64 = 0
    var mideleg: UInt64 = 0
    var mie: UInt64 = 0
    /// Without the external half of SEIP.
    var mip: UInt64 = 0
    var externalSEIP = false
    var mtvec: UInt64 = 0
    var mepc: UInt64 = 0
    var mcause: UInt64 = 0
    var mtval: UInt64 = 0
    var mscratch: UInt64 = 0
    var mcounteren: UInt64 = 0
    var mcountinhibit: UInt64 = 0
    var menvcfg: UInt64 = 0
    var senvcfg: UInt64 = 0
    var stvec: UInt64 = 0
    var sepc: UInt64 = 0
    var scause: UInt64 = 0
    var stval: UInt64 = 0
    var sscratch: UInt64 = 0
    var scounteren: UInt64 = 0
    var satp: UInt64 = 0
    var stimecmp = UInt64.max
    var mtimecmp = UInt64.max
    /// minstret and mcycle minus `retired`, or their values while inhibited.
    var instretOffset: UInt64 = 0
    var cycleOffset: UInt64 = 0

    // MARK: Memory

    let cache: UnsafeMutablePointer<CodeCache>
    /// The range of addresses mapped by superpages that may be in a TLB:
    /// everything that equals `superpageBase` under `superpageMask`.
    var superpageBase: UInt64 = 0
    var superpageMask: UInt64 = UInt64.max
    /// Entries of pmpcfg that are in use, a bit each.
    var activePMP: UInt16 = 0
    /// Set by an access that failed.
    var fault = MemoryFault()
    /// Set by `hostAddress`.
    var lastPhysical: UInt64 = 0
    var owner: Unmanaged<Hart>? = nil

    /// Instructions retired; exact while the loop is not inside an instruction.
    var retired: UInt64 { retiredAtEnd &- UInt64(bitPattern: budget) }
    /// `mip` as software reads it.
    var pendingBits: UInt64 { externalSEIP ? mip | 1 << 9 : mip }
    /// stimecmp exists (menvcfg.STCE) and drives STIP.
    var usesSupervisorTimer: Bool { menvcfg >> 63 != 0 }

    // MARK: Allocation

    private static let before = 2048

    static func allocate(hartID: UInt64, cache: UnsafeMutablePointer<CodeCache>) -> HartPointer {
        precondition(MemoryLayout<HartState>.size <= TLB.offset)
        let size = before + TLB.offset + TLB.totalSize
        let block = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 4096)
        block.initializeMemory(as: UInt8.self, repeating: 0, count: size)
        let state = (block + before).bindMemory(to: HartState.self, capacity: 1)
        let tlb = UnsafeMutableRawPointer(state) + TLB.offset
        state.initialize(to: HartState(dataTLB: tlb, fetchTLB: tlb, hartID: hartID, cache: cache))
        state.flushTLB()
        return state
    }

    static func deallocate(_ state: HartPointer) {
        (UnsafeMutableRawPointer(state) - before).deallocate()
    }
}

extension UnsafeMutablePointer where Pointee == HartState {
    /// Integer registers; slot 32 takes the writes to x0.
    @inline(__always)
    var x: UnsafeMutablePointer<UInt64> {
        (UnsafeMutableRawPointer(self) - 2048).assumingMemoryBound(to: UInt64.self)
    }
    /// Floating-point registers, NaN-boxed.
    @inline(__always)
    var f: UnsafeMutablePointer<UInt64> {
        (UnsafeMutableRawPointer(self) - 1536).assumingMemoryBound(to: UInt64.self)
    }
    var pmpaddr: UnsafeMutablePointer<UInt64> {
        (UnsafeMutableRawPointer(self) - 1280).assumingMemoryBound(to: UInt64.self)
    }
    var pmpcfg: UnsafeMutablePointer<UInt8> {
        (UnsafeMutableRawPointer(self) - 1152).assumingMemoryBound(to: UInt8.self)
    }
    /// Ops that belong to no page: an instruction that crosses a page end, the
    /// jump behind it, and `refetch`.
    var scratch: OpPointer {
        (UnsafeMutableRawPointer(self) - 1136).assumingMemoryBound(to: DecodedOp.self)
    }

    /// What the harts have besides RV64I.
    var has: RISCVExtensions { pointee.cache.pointee.extensions }

    /// The program counter of an op of the current page.
    @inline(__always)
    func pc(of op: OpPointer) -> UInt64 {
        pointee.programCounterBase &+ UInt64(UInt(bitPattern: op) >> 2)
    }

    /// Makes the loop stop after the current instruction so that interrupts,
    /// timers and requests are looked at.
    @inline(__always)
    func leaveLoop() {
        guard pointee.budget > 0 else { return }
        pointee.withheld &+= pointee.budget
        pointee.retiredAtEnd &-= UInt64(bitPattern: pointee.budget)
        pointee.budget = 0
    }

    /// Everything to its power-on value; `pc` and arguments are the caller's.
    func reset() {
        leaveLoop()
        var fresh = HartState(
            dataTLB: pointee.dataTLB, fetchTLB: pointee.fetchTLB, hartID: pointee.hartID, cache: pointee.cache)
        fresh.owner = pointee.owner
        fresh.hasBuiltinSBI = pointee.hasBuiltinSBI
        fresh.hasAIA = pointee.hasAIA
        fresh.isDebugged = pointee.isDebugged
        fresh.steps = pointee.steps
        fresh.withheld = pointee.withheld
        fresh.externalSEIP = pointee.externalSEIP
        // Level inputs stay what their controllers drive.
        fresh.mip = pointee.mip & (1 << 3 | 1 << 11)
        fresh.mstatus = MStatus.fixed
        fresh.menvcfg = EnvCfg.atReset(has)
        pointee = fresh
        for index in 0..<64 { x[index] = 0 }
        for index in 0..<32 { f[index] = 0 }
        for index in 0..<16 {
            pmpaddr[index] = 0
            pmpcfg[index] = 0
        }
        flushTLB()
        setMode(Mode.machine)
    }
}
