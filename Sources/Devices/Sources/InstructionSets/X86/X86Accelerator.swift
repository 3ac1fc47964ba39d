import BatonRuntime

/// An accelerator that runs x86-64 CPUs with their interrupt controllers: what an x86-64 board asks for.
public protocol X86Accelerator: Accelerator {
    /// Makes interrupt controllers, timers and CPUs, and maps what of them is in address spaces. Called once, after the
    /// board has mapped RAM.
    func build(_ machine: X86MachineDescription) throws(VMMError)
    /// In order of their APIC ids; empty before `build`.
    var x86CPUs: [any X86CPU] { get }
    /// What else has state: interrupt controllers, timers, the clock. The board adds them to the VM, after the CPUs.
    var systemDevices: [any Device] { get }
    /// The wire to an input of the interrupt controllers. Wires to the same input are joined: it is high while any is.
    /// - Parameter gsi: 0 to 23: an input of the I/O APIC (and below 16 also of the PICs, where there are any). As on a
    ///   PC, 0 (the PIT's) is input 2 of the I/O APIC, and 2 is none: tables for the guest say so.
    func line(gsi: Int) -> InterruptLine
    /// Sends a message signalled interrupt (Intel SDM 3A, 11.11).
    /// - Returns: false when nothing takes it.
    func send(address: UInt64, data: UInt32) -> Bool
    /// Ticks a second of the time-stamp counter as the guest sees it; nil when that is not known.
    var timeStampFrequency: UInt64? { get }
    /// Bits of a physical address of the guest's CPUs (CPUID 0x80000008).
    var physicalAddressBits: Int { get }
}

/// A CPU, whose section in a checkpoint is `cpuN`.
public protocol X86CPU: Device {
    var index: Int { get }
    var apicID: UInt32 { get }
    /// Sets what the CPU does first after a reset: nil for what hardware does, and for all but the first CPU, which
    /// wait for the first one's word.
    func setStartState(_ state: X86StartState?)
}

/// What the command line and the board say about CPUs and interrupt controllers.
public struct X86MachineDescription {
    /// `-smp`: all positive; CPUs are `sockets * cores * threads`.
    public var sockets = 1
    public var cores = 1
    public var threads = 1
    /// `-cpu`: `host`, `max`, or a level from `x86-64-v1` to `x86-64-v4`, then `,+FLAG`, `,-FLAG`, `,FLAG=on|off`.
    public var model = "host"
    /// Two 8259A, on the first 16 lines.
    public var hasPIC = true
    /// An 8254 and port 0x61.
    public var hasPIT = true
    public init() {}

    public var cpuCount: Int { sockets * cores * threads }
}

/// The registers with which the first CPU starts; those that are not named are as after a reset, segments flat.
public struct X86StartState: Equatable {
    /// How code is executed.
    public enum Mode: Equatable {
        /// As after a reset: at 0xfffffff0, in real mode. The registers below are not used.
        case reset
        /// 32-bit protected mode without paging (Xen's PVH).
        case protected
        /// 64-bit mode with paging (Linux' 64-bit boot protocol).
        case long
    }

    public var mode: Mode
    /// Address of the first instruction.
    public var rip: UInt64
    public var rbx: UInt64
    public var rsi: UInt64
    public var rsp: UInt64
    /// Guest-physical address of the page tables, in long mode.
    public var cr3: UInt64
    /// Guest-physical address and limit of a descriptor table, which has segments for the selectors below.
    public var gdtBase: UInt64
    public var gdtLimit: UInt16

    /// Of the code segment, which is flat; and of the segment that DS, ES, FS, GS and SS have.
    public static let codeSelector: UInt16 = 0x10, dataSelector: UInt16 = 0x18

    public init(
        mode: Mode, rip: UInt64 = 0, rbx: UInt64 = 0, rsi: UInt64 = 0, rsp: UInt64 = 0, cr3: UInt64 = 0,
        gdtBase: UInt64 = 0, gdtLimit: UInt16 = 0
    ) {
        (self.mode, self.rip, self.rbx, self.rsi, self.rsp) = (mode, rip, rbx, rsi, rsp)
        (self.cr3, self.gdtBase, self.gdtLimit) = (cr3, gdtBase, gdtLimit)
    }
}
