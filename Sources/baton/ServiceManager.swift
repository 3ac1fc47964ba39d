import BatonRuntime
import CBaton
import Glibc

/// Tells the service manager that started the VMM how it is, as sd_notify(3)
/// does: that the machine stands, that the VMM ends, and that another process
/// has become the main one, which happens when an update fails.
///
/// Its socket is in NOTIFY_SOCKET. That is taken out of the environment, so that
/// it reaches no child but a new VMM.
enum ServiceManager {
    private static let variable = "NOTIFY_SOCKET"
    /// Milliseconds that it may take to hear of a new main process, for which
    /// the guest waits.
    private static let barrierLimit: Int32 = 2000
    private nonisolated(unsafe) static var path: String?

    /// Takes the socket's address from the environment.
    static func find() {
        path = getenv(variable).map { String(cString: $0) }
        unsetenv(variable)
    }

    /// Takes part in the updates of the VM.
    static func register(_ cpr: CprController) {
        guard let path else { return }
        cpr.successorEnvironment.append((variable, path))
        CprController.whenTakenBack { mainProcessChanged() }
    }

    static func machineStands() { send("READY=1") }
    static func ending() { send("STOPPING=1") }

    /// Comes before the end of the process that was the main one: the service
    /// would end with that. Waits until the manager has read it.
    private static func mainProcessChanged() {
        guard path != nil else { return }
        send("MAINPID=\(getpid())")
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { return }
        for fd in ends { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
        let wasSent = send("BARRIER=1", descriptor: ends[1])
        close(ends[1])
        if wasSent {
            // The manager closes the other end when it has come so far.
            var state = pollfd(fd: ends[0], events: 0, revents: 0)
            _ = retryingInterrupts { poll(&state, 1, barrierLimit) }
        }
        close(ends[0])
    }

    @discardableResult
    private static func send(_ text: String, descriptor: Int32? = nil) -> Bool {
        guard let path, var address = address(path) else { return false }
        let fd = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { return false }
        defer { close(fd) }
        // It may be busy, and must not hold the guest up.
        var limit = timeval(tv_sec: 0, tv_usec: 200_000)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        let connected = withUnsafePointer(to: &address.name) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(fd, $0, address.length) == 0 }
        }
        let bytes = Array(text.utf8)
        let descriptors = descriptor.map { [$0] } ?? []
        return connected && cbaton_send_fds(fd, bytes, bytes.count, descriptors, descriptors.count, 0) == bytes.count
    }

    /// - Returns: nil when it is no address of a unix socket, such as `vsock:2:1`.
    private static func address(_ path: String) -> (name: sockaddr_un, length: socklen_t)? {
        var bytes = Array(path.utf8)
        var name = sockaddr_un()
        guard let first = bytes.first, bytes.count < MemoryLayout.size(ofValue: name.sun_path) else { return nil }
        switch first {
        case UInt8(ascii: "/"): bytes.append(0)
        // The kernel's own names begin with a zero, and have their length.
        case UInt8(ascii: "@"): bytes[0] = 0
        default: return nil
        }
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        let start = MemoryLayout<sockaddr_un>.offset(of: \.sun_path) ?? 2
        return (name, socklen_t(start + bytes.count))
    }
}
