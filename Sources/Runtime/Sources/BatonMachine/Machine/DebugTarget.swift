/// Where a CPU is to stop for a debugger.
public struct DebugPoint: Hashable {
    /// The kinds of gdb's packets `Z`, by their numbers.
    public enum Kind: Int, CaseIterable {
        /// Before the instruction at the address. Whether memory or the CPU is what has the breakpoint makes no
        /// difference here.
        case softwareBreakpoint = 0
        case hardwareBreakpoint = 1
        /// After an access that touches one of the bytes.
        case writeWatchpoint = 2
        case readWatchpoint = 3
        case accessWatchpoint = 4
    }

    public var kind: Kind
    /// As the CPU's instructions have it: virtual where it translates.
    public var address: UInt64
    /// Bytes of a watchpoint. Of a breakpoint, what the debugger says of the instruction.
    public var length: UInt64

    public init(kind: Kind, address: UInt64, length: UInt64) {
        (self.kind, self.address, self.length) = (kind, address, length)
    }
}

/// What a CPU does the next time that the guest runs.
public enum DebugAction: UInt64 {
    case run = 0
    /// One instruction; then the guest stops.
    case step = 1
    case stand = 2
}

/// Why a CPU has stopped the guest.
public struct DebugStop {
    public var cpu: Int
    /// The watchpoint that was touched, and where; nil for a breakpoint or a step.
    public var watchpoint: (point: DebugPoint, address: UInt64)?

    public init(cpu: Int, watchpoint: (point: DebugPoint, address: UInt64)? = nil) {
        (self.cpu, self.watchpoint) = (cpu, watchpoint)
    }
}

/// An accelerator's CPUs as a debugger has them, by the numbers and descriptions of gdb's remote protocol.
///
/// CPUs count from 0. Everything is called with the VM lock held, and while the guest does not run. A CPU that comes to
/// a point, or has done its step, calls `VirtualMachine.requestStop(.debug)`. What is set here is no part of the
/// guest's state: a reset or a load leaves it, and a new VMM is given it anew.
public protocol DebugTarget: AnyObject {
    /// gdb's target description: `target.xml`, and the documents that it includes. The same for all CPUs.
    var descriptions: [(name: String, text: String)] { get }
    /// Registers from 0 on that gdb reads and writes at once (`g`, `G`).
    var generalRegisters: Int { get }
    /// The number of the program counter.
    var programCounter: Int { get }

    /// A register's bytes in the guest's order; nil when there is none of that number.
    func register(_ number: Int, ofCPU cpu: Int) -> [UInt8]?
    /// Sets a register, as far as it takes the value.
    /// - Parameter bytes: as many as `register` has.
    /// - Returns: false when there is no such register, or the number of bytes is another.
    func setRegister(_ number: Int, ofCPU cpu: Int, _ bytes: [UInt8]) -> Bool

    /// The guest-physical address that an address of a CPU is translated to now; nil where nothing is mapped. Changes
    /// nothing of the guest.
    func physicalAddress(_ address: UInt64, ofCPU cpu: Int) -> UInt64?

    /// All points, in place of those before.
    func setPoints(_ points: Set<DebugPoint>)
    /// What the CPUs do when the guest runs again; those that are not named run.
    /// - Parameter withoutInterrupts: a CPU that steps takes no interrupt.
    func setActions(_ actions: [Int: DebugAction], withoutInterrupts: Bool)
    /// Why the guest has stopped, since the last call of `setActions`; nil when it was nothing of a debugger's.
    var stop: DebugStop? { get }
}
