import CBaton
import Glibc

/// How a VMM in a sandbox gets what it cannot get itself: by asking the warden, a process outside of it.
///
/// The warden serves over one seqpacket socket, which old and new VMMs have. Each request brings a socket of its own for
/// the answer, so that any number of processes and threads can ask. Outside of a sandbox nothing is asked.
public enum HostAccess {
    /// What is asked; the numbers are part of the protocol, which never changes but by additions.
    public enum Request: UInt32 {
        // Until `seal`.
        case allowFile = 1, allowDirectory = 2, allowAddress = 3, allowHelper = 4, seal = 5, allowManager = 7
        // Once.
        case listener = 6
        // Any time.
        case open = 16, connect = 17, bind = 18, remove = 19, startHelper = 20, tellManager = 21
    }

    /// Bytes of a request's payload.
    public static let limit = 32 << 10
    /// Nanoseconds to wait for an answer.
    private static let patience: Int64 = 5_000_000_000

    /// To the warden; -1 outside of a sandbox. Owned.
    public nonisolated(unsafe) static var socket: Int32 = -1
    /// Whether a sandbox will be put on: addresses are noted until then.
    public nonisolated(unsafe) static var isNoting = false
    /// Whether this process is in a sandbox, or will be.
    public static var isInSandbox: Bool { socket >= 0 || isNoting }
    /// Where a service manager is told of the VM; as the system has addresses.
    public nonisolated(unsafe) static var manager: [UInt8]?
    /// Addresses that this process has connected to, as the system has them.
    public private(set) nonisolated(unsafe) static var addresses: Set<[UInt8]> = []
    /// Programs that were started as helpers, as the words of a request.
    public private(set) nonisolated(unsafe) static var helpers: [[String]] = []

    /// What to do about an error that the sandbox may be the reason of.
    static let hint =
        "The VM is in a sandbox (-sandbox), which has what the command line named when the VM was started: "
        + "name a directory for what comes later with -sandbox on,paths=DIR, or pass a descriptor with getfd."
    /// Files that this process has opened, with what open(2) was told.
    public private(set) nonisolated(unsafe) static var files: [String: Int32] = [:]

    public static func note(helper words: [String]) {
        if isNoting { helpers.append(words) }
    }

    /// open(2); what the sandbox refuses is asked for.
    /// - Returns: a descriptor with FD_CLOEXEC, or -1 and errno.
    public static func open(_ path: String, _ flags: Int32, mode: mode_t = 0o600) -> Int32 {
        let fd = retryingInterrupts { Glibc.open(path, flags | O_CLOEXEC, mode) }
        if isNoting, fd >= 0, let absolute = absolute(path) {
            files[absolute] = (files[absolute] ?? 0) | flags & O_ACCMODE
        }
        guard fd < 0, errno == EACCES, socket >= 0 else { return fd }
        guard let absolute = absolute(path), let answer = ask(.open, flags, mode, Array(absolute.utf8)) else {
            errno = EACCES
            return -1
        }
        if answer.fd < 0 { errno = answer.code == 0 ? EACCES : answer.code }
        return answer.fd
    }

    /// unlink(2).
    public static func remove(_ path: String) -> Int32 {
        guard unlink(path) != 0 else { return 0 }
        guard errno == EACCES, socket >= 0, let absolute = absolute(path) else { return -1 }
        return result(ask(.remove, 0, 0, Array(absolute.utf8)), EACCES)
    }

    static func connect(_ fd: Int32, _ address: UnsafePointer<sockaddr>, _ length: socklen_t) -> Int32 {
        let bytes = UnsafeRawBufferPointer(start: address, count: Int(length))
        if isNoting { addresses.insert(canonical(bytes)) }
        let code = Glibc.connect(fd, address, length)
        guard code != 0, errno == EPERM, socket >= 0 else { return code }
        return result(ask(.connect, 0, 0, Array(bytes), fd), EPERM)
    }

    static func bind(_ fd: Int32, _ address: UnsafePointer<sockaddr>, _ length: socklen_t) -> Int32 {
        let code = Glibc.bind(fd, address, length)
        guard code != 0, errno == EACCES || errno == EPERM, socket >= 0 else { return code }
        let bytes = UnsafeRawBufferPointer(start: address, count: Int(length))
        return result(ask(.bind, 0, 0, Array(bytes), fd), EACCES)
    }

    /// A unix socket's address without what is behind its path.
    public static func canonical(_ bytes: UnsafeRawBufferPointer) -> [UInt8] {
        guard bytes.count > 2, bytes.loadUnaligned(as: sa_family_t.self) == sa_family_t(AF_UNIX), bytes[2] != 0 else {
            return Array(bytes)
        }
        return Array(bytes.prefix(2)) + bytes.dropFirst(2).prefix { $0 != 0 }
    }

    /// Has a helper started that was one before the sandbox was put on.
    /// - Returns: the socket to its guard, owned by the caller; -1 and errno.
    public static func startHelper(_ words: [String]) -> Int32 {
        guard let answer = ask(.startHelper, 0, 0, encode(words)) else {
            errno = EPERM
            return -1
        }
        if answer.fd < 0 { errno = answer.code == 0 ? EPERM : answer.code }
        return answer.fd
    }

    /// Sends a datagram to the service manager.
    /// - Parameter fd: goes along. Borrowed; -1 for none.
    /// - Returns: whether it was sent.
    public static func tellManager(_ text: String, _ fd: Int32) -> Bool {
        ask(.tellManager, 0, 0, Array(text.utf8), fd)?.code == 0
    }

    public static func encode(_ words: [String]) -> [UInt8] { words.flatMap { Array($0.utf8) + [0] } }

    private static func result(_ answer: (code: Int32, fd: Int32)?, _ otherwise: Int32) -> Int32 {
        let code = answer?.code ?? otherwise
        if code != 0 { errno = code }
        return code == 0 ? 0 : -1
    }

    private static func absolute(_ path: String) -> String? {
        if path.hasPrefix("/") { return path }
        guard let current = getcwd(nil, 0) else { return nil }
        defer { free(current) }
        return "\(String(cString: current))/\(path)"
    }

    /// Sends a request and waits for the answer.
    /// - Parameter fd: goes along. Borrowed; -1 for none.
    /// - Returns: an errno value or 0, and a descriptor, owned by the caller, or -1; nil when nobody answers.
    public static func ask(
        _ request: Request, _ flags: Int32, _ mode: mode_t, _ payload: [UInt8], _ fd: Int32 = -1
    ) -> (code: Int32, fd: Int32)? {
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else { return nil }
        defer { close(ends[0]) }
        let isSent = send(request, payload, flags: flags, mode: mode, fds: fd >= 0 ? [ends[1], fd] : [ends[1]])
        close(ends[1])
        guard isSent, FD.awaitInput(ends[0], until: cbaton_monotonic_ns() + patience) else { return nil }
        var code: Int32 = 0
        var fds = [Int32](repeating: -1, count: Int(CBATON_MESSAGE_FDS))
        var count: Int32 = 0
        guard cbaton_receive_fds(ends[0], &code, 4, &fds, &count, 0) == 4 else { return nil }
        for extra in fds.prefix(Int(max(0, count))).dropFirst() { close(extra) }
        return (code, count > 0 ? fds[0] : -1)
    }

    /// Sends a request that has no answer.
    /// - Parameter fds: go along. Borrowed.
    @discardableResult
    public static func send(
        _ request: Request, _ payload: [UInt8], flags: Int32 = 0, mode: mode_t = 0, fds: [Int32] = []
    ) -> Bool {
        guard payload.count <= limit else { return false }
        var message: [UInt8] = []
        for word in [request.rawValue, UInt32(bitPattern: flags), UInt32(mode)] {
            withUnsafeBytes(of: word) { message += $0 }
        }
        message += payload
        return cbaton_send_fds(socket, message, message.count, fds, fds.count, 0) == message.count
    }
}
