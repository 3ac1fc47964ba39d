/// What a slice of guest execution ended with.
public enum SliceResult {
    /// The guest has more to do at once.
    case busy
    /// Every CPU waits for an interrupt. The earliest timer is due at this host
    /// CLOCK_MONOTONIC in nanoseconds; nil when there is none.
    case idle(until: Int64?)
}

/// A CPU as the monitor sees it.
public struct CPUInfo {
    public var index: Int
    public var qomPath: String
    public var threadID: Int32
    public var target: String
    public var halted: Bool
    public var programCounter: UInt64
    public init(index: Int, qomPath: String, threadID: Int32, target: String, halted: Bool, programCounter: UInt64) {
        self.index = index
        self.qomPath = qomPath
        self.threadID = threadID
        self.target = target
        self.halted = halted
        self.programCounter = programCounter
    }
}

/// Runs the guest's CPUs. Boards make CPUs through their accelerator; the VM
/// only runs them.
public protocol Accelerator: AnyObject {
    /// As in `-accel`.
    var name: String { get }
    /// Runs the CPUs on the calling thread for about a fifth of a millisecond,
    /// or less when a device asks for the loop (`yield`) or a timer is due.
    func runSlice() -> SliceResult
    /// Makes the current `runSlice` return soon; called from device code
    /// inside it.
    func yield()
    /// For `query-cpus-fast`.
    var cpus: [CPUInfo] { get }
    /// Registers of one CPU as text, for `info registers`.
    func registers(ofCPU index: Int) -> String
}

/// What the guest can ask of the machine it runs on: by a call of its firmware, a device's register …
public protocol GuestRequests: AnyObject {
    /// The guest powers the machine off. `status` is the exit status that a
    /// test finisher asks for, 0 for a plain power-off.
    func guestRequestedShutdown(status: Int32)
    func guestRequestedReset()
}
