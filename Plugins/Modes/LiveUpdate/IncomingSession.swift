import BatonRuntime
import CLiveUpdate
import Glibc

/// A session that the kernel before has left.
///
/// The kernel gives it out once, and drops it when nobody has it open. So it is the service manager's, from its store,
/// or a holder process' (`baton_holder_start`), and this process borrows it until it is finished: if this one fails,
/// the next can have it.
final class IncomingSession {
    private let name: String
    private let session: OwnedFD
    private let store: (any DescriptorStore)?
    /// To the holder; -1 when there is none.
    private var link: Int32
    private let holder: pid_t

    /// - Returns: nil when the kernel before has left no session of that name.
    /// - Throws: why one that there is cannot be had.
    init?(_ name: String, store: (any DescriptorStore)?) throws(VMMError) {
        guard name.utf8.count < Int(BATON_SESSION_NAME_SIZE) else { return nil }
        self.name = name
        self.store = store
        if let stored = store?.find(Orchestrator.storeName).first(where: { baton_session_is($0, name) != 0 }) {
            let copy = fcntl(stored, F_DUPFD_CLOEXEC, 3)
            guard copy >= 0 else { throw .system("the live update session '\(name)' cannot be used") }
            session = OwnedFD(adopting: copy)
            (link, holder) = (-1, 0)
            return
        }
        guard let (fd, connection, process) = try IncomingSession.borrow(name) else { return nil }
        session = OwnedFD(adopting: fd)
        (link, holder) = (connection, process)
        // The holder is of this service, and ends with it.
        _ = store?.store(Orchestrator.storeName, fd)
    }

    /// How often a holder may end before it has answered: each is of a VMM that looked for the session and found none, or of
    /// one whose guest goes on now.
    private static let attempts = 100

    private static func borrow(_ name: String) throws(VMMError) -> (session: Int32, link: Int32, holder: pid_t)? {
        var link: Int32 = -1, holder: pid_t = 0, user: pid_t = 0
        var fd: Int32 = -1
        for _ in 0..<attempts {
            fd = baton_holder_borrow(name, &link, &holder, &user)
            if fd < 0, errno == ENOENT {
                // Without a device there is no kernel before that could have left anything.
                guard baton_liveupdate_access() == 0 else { return nil }
                if baton_holder_start(name, Orchestrator.deviceLimit) != 0 {
                    let code = errno
                    if code == ENOENT { return nil }
                    guard code == EBUSY else {
                        throw .system("the live update session '\(name)' cannot be taken", errno: code)
                    }
                }
                fd = baton_holder_borrow(name, &link, &holder, &user)
            }
            if fd >= 0 || errno != ECONNRESET { break }
        }
        if fd >= 0 { return (fd, link, holder) }
        switch errno {
        case EBUSY:
            throw VMMError(
                "the live update session '\(name)' is in use by process \(user)",
                hint: "The guest goes on there. Another VM needs another name or uuid.")
        case ENOENT:
            throw VMMError(
                "the live update session '\(name)' was taken by another program, or its guest goes on already",
                hint: "Another VM needs another name or uuid.")
        case EPERM: throw VMMError("the live update session '\(name)' is held by a process of another user")
        case let code: throw .system("the live update session '\(name)' cannot be used", errno: code)
        }
    }

    /// Where the session is, if this process fails, as a sentence.
    private var remedy: String {
        holder == 0
            ? "The session stays in the service manager's store; to give the guest up: systemctl clean --what=fdstore."
            : "The session stays with process \(holder), for another try; to give the guest up, end that."
    }

    /// - Returns: the caller's from then on.
    /// - Throws: what the session lacks.
    func guest() throws(VMMError) -> KeptGuest {
        var fds: [Int32] = []
        do throws(VMMError) {
            for (token, what) in [(Orchestrator.Token.state, "state"), (Orchestrator.Token.checkpoint, "checkpoint")] {
                guard let fd = try retrieve(token, "the guest's \(what)") else {
                    throw VMMError("the live update session '\(name)' lacks the guest's \(what)", hint: remedy)
                }
                fds.append(fd)
            }
            while let fd = try retrieve(Orchestrator.Token.memory + UInt64(fds.count - 2), "guest memory") {
                fds.append(fd)
            }
        } catch {
            for fd in fds { close(fd) }
            throw error
        }
        return KeptGuest(state: fds[0], checkpoint: fds[1], memory: Array(fds.dropFirst(2)), place: remedy)
    }

    /// - Returns: nil when the session has nothing of that number.
    private func retrieve(_ token: UInt64, _ what: String) throws(VMMError) -> Int32? {
        let fd = baton_session_retrieve(session.raw, token)
        if fd >= 0 { return fd }
        switch errno {
        case ENOENT: return nil
        case EINVAL where token == Orchestrator.Token.state:
            throw VMMError(
                "the guest was saved to the live update session '\(name)' for the host's next kernel, "
                    + "which does not run yet", hint: "Execute that. " + remedy)
        case let code: throw .system("\(what) in the live update session '\(name)' is lost", errno: code, hint: remedy)
        }
    }

    func finish() throws(VMMError) {
        guard baton_session_finish(session.raw) == 0 else {
            throw .system("the live update session '\(name)' cannot be finished", errno: errno, hint: remedy)
        }
        store?.remove(Orchestrator.storeName)
        if link >= 0 { baton_holder_end(link) }
        link = -1
    }

    deinit { if link >= 0 { close(link) } }
}
