import CBaton
import Glibc

/// How a VMM in a sandbox gets what it cannot get itself: by asking the warden, a process outside of it.
///
/// The warden serves over one seqpacket socket, which old and new VMMs have. Each request brings a socket of its own for
/// the answer, so that any number of processes and threads can ask. Outside of a sandbox nothing is asked.
public enum HostAccess {
    /// What is asked; the numbers are part of the protocol, which never changes but by additions.
    public enum Request: UInt32 {
        // Until `seal`: by `Allowances`, of which `allow` has any number.
        case allowFile = 1, allowDirectory = 2, allowAddress = 3, allowHelper = 4, allowManager = 7, allow = 8
        case seal = 5
        // Once.
        case listener = 6
        // Any time.
        case open = 16, connect = 17, bind = 18, remove = 19, startHelper = 20, tellManager = 21, standIn = 22
    }

    /// Bytes of a request's payload.
    public static let limit = 32 << 10
    /// Nanoseconds to wait for an answer.
    private static let patience: Int64 = 5_000_000_000

    /// To the warden; -1 outside of a sandbox. Owned.
    public nonisolated(unsafe) static var socket: Int32 = -1
    /// To a warden that waits for the sandbox to be put on; -1 when there is none. Owned.
    public nonisolated(unsafe) static var preparedSocket: Int32 = -1
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

    /// The directory of what the sandbox has refused last, until it is told.
    nonisolated(unsafe) private static var refusedDirectory: String?

    /// What an error says that the sandbox is the reason of; nil when it has refused nothing since that was said.
    static func takeRefusal() -> String? {
        guard let directory = refusedDirectory else { return nil }
        refusedDirectory = nil
        return "the VM's sandbox has what its command line named: start it with -sandbox paths=\(directory) for what "
            + "comes later, or give files with add-fd"
    }

    /// Takes note of a path that the sandbox has refused, so that the error says what to do.
    /// - Parameter code: the errno value, which the caller finds again afterwards.
    public static func noteRefusal(_ path: String, _ code: Int32 = errno) {
        defer { errno = code }
        guard socket >= 0, code == EACCES || code == EPERM, let path = absolute(path) else { return }
        refusedDirectory = FD.directory(of: path)
    }
    /// Files that this process has opened, with what open(2) was told.
    public private(set) nonisolated(unsafe) static var files: [String: Int32] = [:]

    public static func note(helper words: [String]) {
        if isNoting { helpers.append(words) }
    }

    /// open(2); what the sandbox refuses is asked for.
    /// - Returns: a descriptor with FD_CLOEXEC, or -1 and errno.
    public static func open(_ path: String, _ flags: Int32, mode: mode_t = 0o600) -> Int32 {
        if FDSets.isName(path) { return FDSets.open(path, flags) }
        let fd = retryingInterrupts { Glibc.open(path, flags | O_CLOEXEC, mode) }
        if isNoting, fd >= 0, let absolute = absolute(path) {
            files[absolute] = (files[absolute] ?? 0) | flags & O_ACCMODE
        }
        guard fd < 0, errno == EACCES, socket >= 0 else { return fd }
        guard let absolute = absolute(path), let answer = ask(.open, flags, mode, Array(absolute.utf8)) else {
            noteRefusal(path, EACCES)
            return -1
        }
        if answer.fd < 0 { noteRefusal(absolute, answer.code == 0 ? EACCES : answer.code) }
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
        return result(ask(.connect, 0, 0, Array(bytes), fd), EPERM, of: bytes)
    }

    static func bind(_ fd: Int32, _ address: UnsafePointer<sockaddr>, _ length: socklen_t) -> Int32 {
        let code = Glibc.bind(fd, address, length)
        guard code != 0, errno == EACCES || errno == EPERM, socket >= 0 else { return code }
        let bytes = UnsafeRawBufferPointer(start: address, count: Int(length))
        return result(ask(.bind, 0, 0, Array(bytes), fd), EACCES, of: bytes)
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

    /// Has a datagram sent to the service manager, after those before it. Waits for nothing.
    /// - Parameter fd: as for `tellManager`.
    /// - Returns: whether the warden has been told.
    public static func tellManagerSoon(_ text: String, _ fd: Int32) -> Bool {
        let answer = begin(.tellManager, Array(text.utf8), fd)
        if answer >= 0 { close(answer) }
        return answer >= 0
    }

    /// Sends a datagram to the service manager.
    /// - Parameter fd: goes along. Borrowed; -1 for none.
    /// - Returns: whether it was sent.
    public static func tellManager(_ text: String, _ fd: Int32) -> Bool {
        ask(.tellManager, 0, 0, Array(text.utf8), fd)?.code == 0
    }

    /// Has the warden name itself to the service manager as the VM's main process. Waits for nothing.
    /// - Returns: a socket that becomes readable when it has (`hasStoodIn`), owned by the caller; -1 when it was not asked.
    public static func standIn() -> Int32 {
        begin(.standIn, [])
    }

    /// - Parameter answer: of `standIn`. Borrowed.
    public static func hasStoodIn(_ answer: Int32) -> Bool {
        var code: Int32 = -1
        return recv(answer, &code, 4, Int32(MSG_DONTWAIT)) == 4 && code == 0
    }

    public static func encode(_ words: [String]) -> [UInt8] { words.flatMap { Array($0.utf8) + [0] } }

    /// - Parameter address: that it is about.
    private static func result(
        _ answer: (code: Int32, fd: Int32)?, _ otherwise: Int32, of address: UnsafeRawBufferPointer? = nil
    ) -> Int32 {
        let code = answer?.code ?? otherwise
        if code != 0 {
            errno = code
            if let path = address.flatMap(unixPath) { noteRefusal(path, code) }
        }
        return code == 0 ? 0 : -1
    }

    /// The path in the address of a unix socket that has one.
    private static func unixPath(_ address: UnsafeRawBufferPointer) -> String? {
        guard address.count > 2, address.loadUnaligned(as: sa_family_t.self) == sa_family_t(AF_UNIX), address[2] != 0
        else { return nil }
        return String(decoding: address.dropFirst(2).prefix { $0 != 0 }, as: UTF8.self)
    }

    private static func absolute(_ path: String) -> String? {
        if path.hasPrefix("/") { return path }
        guard let current = getcwd(nil, 0) else { return nil }
        defer { free(current) }
        return "\(String(cString: current))/\(path)"
    }

    /// Sends a request.
    /// - Parameter fd: goes along. Borrowed; -1 for none.
    /// - Returns: the socket on which the answer comes, or its end when nobody answers. Owned by the caller; -1 when the
    ///   request was not sent.
    private static func begin(
        _ request: Request, _ payload: [UInt8], _ fd: Int32 = -1, flags: Int32 = 0, mode: mode_t = 0
    ) -> Int32 {
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else { return -1 }
        let isSent = send(request, payload, flags: flags, mode: mode, fds: fd >= 0 ? [ends[1], fd] : [ends[1]])
        close(ends[1])
        if !isSent { close(ends[0]) }
        return isSent ? ends[0] : -1
    }

    /// Sends a request and waits for the answer.
    /// - Parameter fd: goes along. Borrowed; -1 for none.
    /// - Returns: an errno value or 0, and a descriptor, owned by the caller, or -1; nil when nobody answers.
    public static func ask(
        _ request: Request, _ flags: Int32, _ mode: mode_t, _ payload: [UInt8], _ fd: Int32 = -1
    ) -> (code: Int32, fd: Int32)? {
        let answer = begin(request, payload, fd, flags: flags, mode: mode)
        guard answer >= 0 else { return nil }
        defer { close(answer) }
        guard FD.awaitInput(answer, until: cbaton_monotonic_ns() + patience) else { return nil }
        var code: Int32 = 0
        var fds = [Int32](repeating: -1, count: Int(CBATON_MESSAGE_FDS))
        var count: Int32 = 0
        guard cbaton_receive_fds(answer, &code, 4, &fds, &count, 0) == 4 else { return nil }
        for extra in fds.prefix(Int(max(0, count))).dropFirst() { close(extra) }
        return (code, count > 0 ? fds[0] : -1)
    }

    /// What the VM may have, on its way to a warden that is not sealed yet: few messages for many things.
    public struct Allowances {
        private var bytes: [UInt8] = []

        public init() {}

        /// - Parameter what: one of the requests to allow something.
        public mutating func add(_ what: Request, _ payload: [UInt8], flags: Int32 = 0) {
            guard payload.count <= HostAccess.limit - 12 else { return }
            if bytes.count + 12 + payload.count > HostAccess.limit { send() }
            for word in [what.rawValue, UInt32(bitPattern: flags), UInt32(payload.count)] {
                withUnsafeBytes(of: word) { bytes += $0 }
            }
            bytes += payload
        }

        /// Sends what has been added since the last time.
        public mutating func send() {
            if !bytes.isEmpty { HostAccess.send(.allow, bytes) }
            bytes.removeAll(keepingCapacity: true)
        }

        /// Reads what was sent, as far as it makes sense.
        public static func forEach(in bytes: [UInt8], _ body: (Request, _ flags: Int32, _ payload: [UInt8]) -> Void) {
            var rest = bytes[...]
            while rest.count >= 12 {
                let words = rest.withUnsafeBytes { raw in
                    (0..<3).map { raw.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self) }
                }
                rest = rest.dropFirst(12)
                guard let request = Request(rawValue: words[0]), let length = Int(exactly: words[2]),
                    length <= rest.count
                else { return }
                body(request, Int32(bitPattern: words[1]), Array(rest.prefix(length)))
                rest = rest.dropFirst(length)
            }
        }
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
