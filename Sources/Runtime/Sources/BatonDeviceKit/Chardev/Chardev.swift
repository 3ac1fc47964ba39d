import BatonBase
import BatonMachine

/// What a chardev tells the part that uses it.
public enum ChardevEvent {
    case opened
    case closed
    case breakCondition
    /// A multiplexer gave the keyboard to this front end, or took it away.
    case focusGained
    case focusLost
}

/// The part that uses a chardev: a UART, a virtio console port, a monitor.
public protocol ChardevFrontend: AnyObject {
    /// Bytes the front end can take now; 0 makes the chardev stop reading
    /// until `Chardev.acceptInput` is called.
    func chardevCanReceive() -> Int
    /// At most `chardevCanReceive()` bytes of input; borrowed for the call.
    func chardevReceive(_ bytes: UnsafeRawBufferPointer)
    func chardevEvent(_ event: ChardevEvent)
    /// A `write` that was cut short may be tried again.
    func chardevWritable()
    /// Whether this is a monitor: it talks to its client in a process that has
    /// not taken its guest over yet, when devices must not.
    var isMonitor: Bool { get }
    /// Whether this front end reads, writes and watches the connection's
    /// descriptor itself, for protocols that send descriptors along: see
    /// `Chardev.connectionDescriptor`. It gets only `.opened` and `.closed`.
    var usesDescriptor: Bool { get }
    /// Whether whoever is behind the front end uses it: `frontend-open` of `query-chardev`.
    var isFrontendOpen: Bool { get }
}

extension ChardevFrontend {
    public func chardevEvent(_ event: ChardevEvent) {}
    public func chardevWritable() {}
    public var isMonitor: Bool { false }
    public var usesDescriptor: Bool { false }
    public var isFrontendOpen: Bool { true }
}

/// A byte stream to the host: `-chardev BACKEND,id=ID,…`. Subclasses are the
/// back ends. With the VM lock held.
open class Chardev {
    /// The `id=` of the option, unique in the VM (`serial0`, `compat_monitor0`
    /// for those made by short forms).
    public let id: String
    /// The back end's name as in `-chardev`: `stdio`, `socket`, `pty` …
    public let backend: String
    public private(set) weak var frontend: (any ChardevFrontend)?
    /// `reopen-on-cpr=on`: an update closes the chardev, and the new process
    /// opens it anew.
    public var reopensOnCpr = false
    /// Whether it is a multiplexer, which a monitor shares with devices.
    open var isShared: Bool { false }
    /// The process before had it elsewhere, and nothing of it is taken over: see
    /// `MachineHandover.hasOwnCommandLine`.
    public var startsAnew = false
    /// Whether the connection to the peer is that of the process before.
    open var isInherited: Bool { false }

    public init(id: String, backend: String) {
        self.id = id
        self.backend = backend
    }

    /// What `query-chardev` gives as `filename`: `pty:/dev/pts/3`,
    /// `disconnected:unix:/path,server=on` …
    open var filename: String { backend }
    /// Whether a peer is there to read and write.
    open var isOpen: Bool { true }

    /// Gives the chardev to its one user.
    /// - Throws: QEMU's error when it is in use.
    open func attach(_ frontend: any ChardevFrontend) throws(VMMError) {
        guard self.frontend == nil else { throw VMMError("Device '\(id)' is in use") }
        self.frontend = frontend
        didAttach()
    }
    public func detach() { frontend = nil }
    /// Called after `attach`: start reading here, and send `.opened` when open.
    open func didAttach() {}

    /// Sends bytes to the peer.
    /// - Returns: how many were taken; when fewer than all, `chardevWritable`
    ///   follows. Bytes for a peer that is not there are taken and dropped.
    open func write(_ bytes: UnsafeRawBufferPointer) -> Int { bytes.count }
    /// The first descriptor that the peer has sent along with its bytes and
    /// nobody has taken yet; the caller owns it. Nil when there is none.
    open func takeDescriptor() -> Int32? { nil }
    /// The front end can receive again.
    open func acceptInput() {}
    /// The connected socket, for a front end that `usesDescriptor`. Borrowed
    /// until `.closed`; non-blocking. Nil when there is no connection, or the
    /// back end has none that could carry descriptors.
    open var connectionDescriptor: Int32? { nil }
    /// What the event loop watches for it. Borrowed.
    open var descriptors: [Int32] { [] }
    /// A front end that `usesDescriptor` has found the connection's end, or
    /// ends it: the chardev closes it, sends `.closed`, and connects again or
    /// waits for the next client as its options say.
    open func endConnection() {}
    /// Whether there may be a connection again after this one.
    open var canReconnect: Bool { false }
    /// Waits, with the event loop running, until there is a connection.
    /// - Parameter isCancelled: asked after every event.
    /// - Throws: why there will be none: it was cancelled, or nobody tries.
    open func waitForConnection(isCancelled: () -> Bool) throws(VMMError) {
        guard isOpen else { throw VMMError("chardev '\(id)' has no connection") }
    }
    /// Closes what is open and removes files that the back end made.
    open func shutDown() {}
    /// The guest is another process' for good, and this one ends: removes files that the back end made and that nobody
    /// uses any more.
    open func leaveGuest() {}
    /// The guest is about to be handed over: lets go of what the next process must
    /// not find in use. `execFailed` follows when it is not.
    open func prepareForExec() {}
    /// The guest goes on here, with or without a `prepareForExec` before it. Whatever
    /// the process that failed may have done is undone.
    open func execFailed() {}

    // MARK: Update

    /// Bytes for the peer wait, as the guest stands still and has the processor first, until `releaseOutput`.
    open func holdOutput() {}
    open func releaseOutput() {}

    /// Saves descriptors, named `chardev-ID-…`, in `handover.fds` and hands over what
    /// the next process must know as the part `chardev/ID`. Everything must stay
    /// as it is: the guest may come back to this process.
    open func handOver(to handover: any MachineHandover) throws(VMMError) {}
    /// In a process that has not taken its guest over: takes over what has changed
    /// since it was made. Descriptors are named as in `handOver`.
    open func takeOver(_ changes: PartChanges) throws(VMMError) {
        throw VMMError("chardev '\(id)' cannot take that over", hint: "Try the update again.")
    }
    /// Has the next process not get the connection to the peer, after
    /// `handOver`: it is closed by the update.
    open func forgetConnection(in handover: any MachineHandover) {}
    /// Whether the chardev can be kept open over an update: `handOver` does
    /// what it takes. One that is not, and is not to be opened anew either
    /// (`reopensOnCpr`), keeps the VM from being updated in a mode that keeps
    /// connections.
    open var survivesUpdate: Bool { false }
    /// In a process that has not taken its guest over yet a chardev moves no
    /// byte: the process before may have to go on with them. Ends that, for
    /// the sake of a monitor or after the commit.
    open func release() {}
    /// The guest is this process' own.
    open func committed() { release() }
}
