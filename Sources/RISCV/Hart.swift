import BatonRuntime
@_exported import InstructionSets

/// One RISC-V hart: RV64I in modes M, S and U, with what `RISCVProcessor` says.
/// Main thread only.
///
/// Its registers live in one raw allocation, `state`, which the interpreter
/// works on; this class is the hart's face to the rest of the VMM.
public final class Hart: RISCVHart {
    public typealias Interrupt = RISCVInterrupt

    /// Ticks of `time` and `mtimecmp` a second.
    public static let timebaseFrequency: UInt64 = 10_000_000

    /// `mhartid`.
    public let index: Int
    public var stateName: String { "cpu\(index)" }

    let addressSpace: AddressSpace
    let clock: GuestClock
    unowned let accelerator: SoftwareAccelerator
    let state: HartPointer
    private(set) var resetState = ResetState(pc: 0x1000)
    /// Smaia and Ssaia with interrupt files for messages; nil without.
    public private(set) var aia: HartAIA?

    init(index: Int, accelerator: SoftwareAccelerator, vm: VirtualMachine, cache: UnsafeMutablePointer<CodeCache>) {
        self.index = index
        self.accelerator = accelerator
        addressSpace = vm.addressSpace
        clock = vm.clock
        state = HartState.allocate(hartID: UInt64(index), cache: cache)
        state.pointee.owner = Unmanaged.passUnretained(self)
        // Its state can be saved and loaded also before the first reset.
        state.pointee.mstatus = MStatus.fixed
    }

    deinit { HartState.deallocate(state) }

    // MARK: What boards and devices use

    /// Sets what `reset` does; by default the hart starts in M-mode at 0x1000.
    public func setResetVector(_ reset: ResetState) { resetState = reset }

    public func setResetVector(pc: UInt64, a0: UInt64, a1: UInt64, a2: UInt64 = 0, mode: ResetState.Mode = .machine) {
        setResetVector(ResetState(pc: pc, a0: a0, a1: a1, a2: a2, mode: mode))
    }

    /// Gives the hart Smaia and Ssaia, before the machine runs. The files then
    /// drive its external interrupts.
    public func enableAIA() -> HartAIA {
        let aia = aia ?? HartAIA(self)
        self.aia = aia
        state.pointee.hasAIA = true
        return aia
    }

    public func makeInterruptFiles() -> (machine: IMSICFile, supervisor: IMSICFile) {
        let aia = enableAIA()
        return (aia.machineFile, aia.supervisorFile)
    }

    /// The counter behind the `time` CSR, in ticks of 100 ns.
    public var time: UInt64 { UInt64(bitPattern: clock.now) / 100 }

    /// The CLINT's compare register of this hart, in ticks. `machineTimer` is
    /// pending while `time >= mtimecmp`: the hart sees to that itself.
    public var mtimecmp: UInt64 {
        get { state.pointee.mtimecmp }
        set {
            state.pointee.mtimecmp = newValue
            updateTimers()
            state.leaveLoop()
        }
    }

    /// Drives an interrupt input. `machineTimer` and `supervisorTimer` are the
    /// hart's own where `mtimecmp` and `stimecmp` are in use.
    public func setInterrupt(_ line: Interrupt, _ level: Bool) {
        let bit = 1 << line.rawValue as UInt64
        if line == .supervisorExternal {
            state.pointee.externalSEIP = level
        } else if level {
            state.pointee.mip |= bit
        } else {
            state.pointee.mip &= ~bit
        }
        if level { state.leaveLoop() }
    }

    /// The level of an interrupt input as `mip` shows it.
    public func isPending(_ line: Interrupt) -> Bool { state.pointee.pendingBits & (1 << line.rawValue) != 0 }

    /// Address of the next instruction.
    public var programCounter: UInt64 { state.pointee.pc }
    /// Whether the hart waits for an interrupt or is stopped.
    public var isHalted: Bool { state.pointee.waiting || state.pointee.hsm != .started }
    /// Instructions retired since the last reset.
    public var retiredInstructions: UInt64 { state.pointee.retired }

    // MARK: Device

    public func reset() {
        state.reset()
        aia?.reset()
        state.pointee.pc = resetState.pc
        state.x[10] = resetState.a0
        state.x[11] = resetState.a1
        state.x[12] = resetState.a2
        state.setMode(resetState.mode.rawValue)
        accelerator.requireMemory()
        accelerator.sbi?.reset(self)
    }

    public func pause() { state.pointee.reservation = HartState.noReservation }

    // MARK: Time

    /// Makes the timer bits of `mip` what the clock says.
    func updateTimers() {
        let now = time
        setTimerBit(.machineTimer, now >= state.pointee.mtimecmp)
        if state.pointee.usesSupervisorTimer { setTimerBit(.supervisorTimer, now >= state.pointee.stimecmp) }
    }

    private static let never = UInt64(Int64.max) / 1000

    private func setTimerBit(_ line: Interrupt, _ level: Bool) {
        let bit = 1 << line.rawValue as UInt64
        if level { state.pointee.mip |= bit } else { state.pointee.mip &= ~bit }
    }

    /// Guest time in nanoseconds at which a timer that is not yet pending will
    /// be; nil when there is none.
    var nextDeadline: Int64? {
        var ticks = UInt64.max
        if state.pointee.mip & (1 << Interrupt.machineTimer.rawValue) == 0 { ticks = state.pointee.mtimecmp }
        if state.pointee.usesSupervisorTimer, state.pointee.mip & (1 << Interrupt.supervisorTimer.rawValue) == 0 {
            ticks = min(ticks, state.pointee.stimecmp)
        }
        // What is centuries ahead is never, and cannot overflow anywhere.
        return ticks < Hart.never ? Int64(ticks) * 100 : nil
    }
}
