import BatonRuntime
import CLiveUpdate
import Glibc

/// A session that is to go through a kexec. It ends with this process, unless the service manager keeps it.
final class OutgoingSession {
    private let name: String
    private let session: OwnedFD
    private let store: (any DescriptorStore)?
    private var isStored = false
    /// The CPR state, once it is part of the session.
    private var state: Int32 = -1

    /// How long the service manager may take to close a session that it was told to forget, in nanoseconds.
    private static let storeLimit: Int64 = 1_000_000_000
    private static let storeInterval: UInt32 = 10_000

    /// - Throws: why there can be no session of that name.
    init(_ name: String, store: (any DescriptorStore)?) throws(VMMError) {
        self.name = name
        self.store = store
        let deadline = EventLoop.now + (store == nil ? 0 : OutgoingSession.storeLimit)
        var fd = Orchestrator.createSession(name)
        while fd < 0, errno == EEXIST, EventLoop.now < deadline {
            usleep(OutgoingSession.storeInterval)
            fd = Orchestrator.createSession(name)
        }
        guard fd >= 0 else { throw OutgoingSession.failure(name, errno) }
        session = OwnedFD(adopting: fd)
    }

    private static func failure(_ name: String, _ code: Int32) -> VMMError {
        switch code {
        case EEXIST:
            VMMError(
                "the live update session '\(name)' exists already: another VM of that name or uuid was saved",
                hint: "End that VM, or have its guest go on there (cont), or give this one a name of its own.")
        case EBUSY: VMMError("/dev/liveupdate is in use by another process", hint: "Try again.")
        default: .system("the live update session '\(name)' cannot be made", errno: code)
        }
    }

    func preserve(memory: [RAMRecord]) throws(VMMError) {
        for (index, record) in memory.enumerated() {
            try preserve(record.fd, Orchestrator.Token.memory + UInt64(index), "RAM block '\(record.name)'")
        }
    }

    /// The state comes last: without it the rest is nobody's.
    func preserve(_ guest: KeptGuest) throws(VMMError) {
        try preserve(guest.checkpoint, Orchestrator.Token.checkpoint, "the checkpoint")
        let copy = fcntl(guest.state, F_DUPFD_CLOEXEC, 3)
        guard copy >= 0 else { throw .system("the guest's state cannot be kept") }
        state = copy
        try preserve(guest.state, Orchestrator.Token.state, "the guest's state")
        guard let store else { return }
        guard store.store(Orchestrator.storeName, session.raw) else {
            throw VMMError("the service manager does not take the live update session '\(name)' into its store")
        }
        isStored = true
    }

    private func preserve(_ fd: Int32, _ token: UInt64, _ what: String) throws(VMMError) {
        guard baton_session_preserve(session.raw, fd, token) != 0 else { return }
        let code = errno
        switch code {
        case ENOENT: throw VMMError("\(what) is no memory that the host's Live Update Orchestrator can keep")
        case EBUSY: throw VMMError("\(what) is kept by another live update session already")
        case EOPNOTSUPP: throw VMMError("\(what) has seals that the host's Live Update Orchestrator cannot keep")
        case ENOMEM:
            throw VMMError("\(what) cannot be kept: the host lacks the memory", hint: "Free some, and try again.")
        default: throw .system("\(what) cannot be kept in the live update session '\(name)'", errno: code)
        }
    }

    /// Ends the session. Should the service manager have it for a moment longer, and the host execute its new kernel
    /// just then, nobody takes what is in it for the guest.
    func drop() {
        if state >= 0 {
            let zeroes = [UInt8](repeating: 0, count: SectionContainer.headerSize)
            if pwrite(state, zeroes, zeroes.count, 0) != zeroes.count {
                Report.warning("the live update session '\(name)' may be found, though its guest goes on here")
            }
            close(state)
        }
        state = -1
        if isStored { store?.remove(Orchestrator.storeName) }
        isStored = false
    }

    deinit { if state >= 0 { close(state) } }
}
