import BatonBase
import CBaton
import Glibc

/// A unix socket of type SOCK_SEQPACKET by which the VMM that has the guest reaches
/// one that somebody has started to take it over: what a mode's `connect` and
/// `receive` are made of. Each side looks at who the other is (SO_PEERCRED).
public enum HandoverChannel {
    /// Nanoseconds that whoever has connected may take to say that it is a VMM.
    private static let introductionLimit: Int64 = 2_000_000_000

    /// Connects to a VMM that waits at `path`. Does not block.
    /// - Parameter peer: the user that the VMM there runs as; if nil, this one's or root.
    /// - Returns: the socket, non-blocking and with FD_CLOEXEC, owned by the caller.
    public static func connect(_ path: String, peer: UInt32? = nil) throws(VMMError) -> Int32 {
        let (raw, isConnected) = try SocketAddress.unix(path: path).startConnecting(.packets)
        let fd = OwnedFD(adopting: raw)
        guard isConnected else { throw VMMError("Failed to connect to '\(path)': nobody accepts the connection") }
        let user = try self.peer(of: fd.raw).user
        guard user == peer || peer == nil && mayTrust(user) else {
            throw VMMError(
                "the process that listens at '\(path)' is of user \(user)",
                hint: "Only this VMM's user and root may take the guest over, or the user that peer-uid names.")
        }
        return fd.release()
    }

    /// Listens at `path` until a VMM of this one's user, or of root, has connected.
    /// Others are told off in the log, and waited on for 2 s at most. The socket's file
    /// is there for as long as that takes.
    /// - Returns: the socket, non-blocking and with FD_CLOEXEC, owned by the caller.
    public static func accept(_ path: String) throws(VMMError) -> Int32 {
        let address = SocketAddress.unix(path: path)
        // Nobody but this user and root may connect.
        let mask = umask(0o177)
        defer { umask(mask) }
        let listener = OwnedFD(adopting: try address.listen(.packets))
        let file = SocketFile(address)
        defer { file?.remove() }
        while true {
            var state = pollfd(fd: listener.raw, events: Int16(POLLIN), revents: 0)
            guard retryingInterrupts({ Int(poll(&state, 1, -1)) }) >= 0 else {
                throw .system("cannot wait at '\(path)'")
            }
            let number = cbaton_accept(listener.raw)
            guard number >= 0 else { continue }
            let fd = OwnedFD(adopting: number)
            do throws(VMMError) {
                let user = try peer(of: fd.raw).user
                guard mayTrust(user) else { throw VMMError("user \(user) is not this VMM's, nor root") }
                guard isIntroduced(fd.raw) else { throw VMMError("it is no VMM that hands its guest over") }
                return fd.release()
            } catch {
                Report.warning("a connection to '\(path)' was refused: \(error.message)")
            }
        }
    }

    /// Who is at the other end.
    /// - Returns: its PID is nil if it is of another PID namespace.
    static func peer(of fd: Int32) throws(VMMError) -> (pid: pid_t?, user: UInt32) {
        var (pid, user): (pid_t, UInt32) = (0, 0)
        guard cbaton_peer(fd, &pid, &user) == 0 else { throw .system("cannot tell who is at the other end") }
        return (pid > 0 ? pid : nil, user)
    }

    private static func mayTrust(_ user: UInt32) -> Bool { user == 0 || user == geteuid() }

    private static func isIntroduced(_ fd: Int32) -> Bool {
        FD.awaitInput(fd, until: EventLoop.now + introductionLimit) && HandoverMessage.isIntroduction(nextOn: fd)
    }
}
