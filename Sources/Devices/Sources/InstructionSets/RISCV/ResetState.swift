/// What a hart does first after a reset.
public struct ResetState {
    /// The privilege modes of RISC-V, with their encodings.
    public enum Mode: UInt8 {
        case user = 0
        case supervisor = 1
        case machine = 3
    }
    public var pc: UInt64
    /// Values of a0 to a2; all other registers are 0.
    public var a0: UInt64
    public var a1: UInt64
    public var a2: UInt64
    public var mode: Mode

    public init(pc: UInt64, a0: UInt64 = 0, a1: UInt64 = 0, a2: UInt64 = 0, mode: Mode = .machine) {
        self.pc = pc
        self.a0 = a0
        self.a1 = a1
        self.a2 = a2
        self.mode = mode
    }
}
