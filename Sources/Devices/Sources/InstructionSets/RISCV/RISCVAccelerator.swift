import BatonRuntime

/// An accelerator that runs riscv64 harts: what a RISC-V board asks for.
public protocol RISCVAccelerator: Accelerator {
    /// The most harts that it can make.
    var maximumHarts: Int { get }
    /// Makes harts, which the board adds to the VM. Called once.
    /// - Parameters:
    ///   - count: 1 to `maximumHarts`.
    ///   - processor: what each of them has.
    func makeHarts(_ count: Int, _ processor: RISCVProcessor) throws(VMMError)
    /// What the harts have. A load of state from an older VMM, whose model had less, may change it.
    var processor: RISCVProcessor { get }
    /// In order of `mhartid`; empty before `makeHarts`.
    var riscvHarts: [any RISCVHart] { get }
    /// Has calls from S-mode answered by the VMM (`-bios default`). A reset then leaves every hart but the first
    /// stopped, until the guest starts it.
    /// - Parameter console: of the SBI's debug console. Not owned.
    func enableBuiltinSBI(console: any SBIConsole)
    /// Looks at the board's RAM, once all of it is mapped.
    func prepareMemory() throws(VMMError)
}

/// A hart, whose section in a checkpoint is `cpuN`.
public protocol RISCVHart: Device {
    /// `mhartid`.
    var index: Int { get }
    /// Sets what `reset` does; by default the hart starts in M-mode at 0x1000.
    func setResetVector(_ reset: ResetState)
    /// The counter behind the `time` CSR, in ticks of 100 ns.
    var time: UInt64 { get }
    /// The CLINT's compare register of this hart, in ticks.
    var mtimecmp: UInt64 { get set }
    /// Drives an interrupt input.
    func setInterrupt(_ line: RISCVInterrupt, _ level: Bool)
    /// Gives the hart Smaia and Ssaia with files for messages, before the machine runs. The files then drive its
    /// external interrupts.
    func makeInterruptFiles() -> (machine: IMSICFile, supervisor: IMSICFile)
}

/// Interrupt inputs of a hart; the raw value is the bit in `mip`.
public enum RISCVInterrupt: UInt64 {
    case supervisorSoftware = 1
    case machineSoftware = 3
    case supervisorTimer = 5
    case machineTimer = 7
    case supervisorExternal = 9
    case machineExternal = 11
}
