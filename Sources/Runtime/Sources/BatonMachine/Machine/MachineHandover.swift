import BatonBase

/// What becomes of the sockets by which clients reach monitors when the VMM is replaced.
/// A monitor that shares a multiplexer with a device goes where that goes.
public enum MonitorSockets {
    /// All go over, with the clients' sessions.
    case handedOver
    /// Listening sockets go over; connections end, and with them the sessions.
    case ended
    /// Listening sockets go over; connections stay with this process, which has
    /// something to tell the clients when it has no guest any more.
    case connectionsKept
    /// All stay with this process.
    case kept
}

/// What a part of the machine may know of updates: what the process before has left for it, and what it hands over
/// to the next one. Whoever carries updates out, which is above the machine, implements this. Main thread, with the VM lock held.
public protocol MachineHandover: AnyObject {
    /// Whether this process is only to say whether it could take the guest over, while the process before runs it.
    /// Nothing that anybody else sees may be opened, made or sent then.
    var isTrial: Bool { get }
    /// Whether this process takes over the guest of another one, with what that one has open.
    var isSuccessor: Bool { get }
    /// Whether this process takes over the guest of another one, and was started by somebody with a command line of
    /// its own: where that has something at another place of the host, it is opened there.
    var hasOwnCommandLine: Bool { get }
    /// Whether the guest is still that of the process before.
    var awaitsLoad: Bool { get }
    /// What becomes of the monitors' sockets in the update in hand.
    var monitorSockets: MonitorSockets { get }
    /// Descriptors that outlive an exec: those of the process before that nobody has claimed, and what parts save.
    var fds: PreservedFDs { get }
    /// What a part of the process before has handed over under a name; nil when nothing, and once the guest is this
    /// process' own.
    /// - Throws: an error when it is damaged.
    func inheritedPart(_ name: String) throws(VMMError) -> StateReader?
    /// A part's state for the next process, to be given in `handOver` of `takePart`.
    func handOver(_ name: String, version: UInt32, _ writer: StateWriter)
    /// Has `take` called when, at the change of hands, something of a part is not
    /// as it was when this process was executed. Nothing may be read from its
    /// descriptors, nor written to them: the guest may still go back.
    /// - Parameters:
    ///   - part: its name, as in `handOver`.
    ///   - fds: what the names of its descriptors begin with; nil for a part that has none.
    ///   - take: an error makes the update fail.
    func onChange(of part: String, fds: String?, _ take: @escaping (PartChanges) throws(VMMError) -> Void)
    /// Has `body` called when the guest stands still, for what the process before lets
    /// go of only then. An error makes the update fail. Called at once in a process
    /// that has its guest.
    func whenHandedOver(_ body: @escaping () throws(VMMError) -> Void) throws(VMMError)
    /// Has a part called in the steps of each update.
    /// - Parameters:
    ///   - handOver: the next process is about to be executed or tried: saves descriptors and hands state over, and
    ///     changes nothing else. The guest may be running. An error ends the update.
    ///   - failed: nothing came of the update, and the guest goes on in this process.
    ///   - committed: the guest is this process' own.
    func takePart(
        handOver: @escaping () throws(VMMError) -> Void, failed: @escaping () -> Void, committed: @escaping () -> Void)
}

extension MachineHandover {
    public func handOver(_ name: String, _ writer: StateWriter) { handOver(name, version: 1, writer) }
}
