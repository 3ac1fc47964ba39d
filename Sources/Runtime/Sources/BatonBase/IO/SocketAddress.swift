import Glibc

/// Where a socket listens or connects to.
public enum SocketAddress: Equatable {
    case unix(path: String)
    case tcp(host: String, port: String)

    /// As QEMU shows it: `unix:/path`, `tcp:127.0.0.1:4444`.
    public var description: String {
        switch self {
        case .unix(let path): "unix:\(path)"
        case .tcp(let host, let port): "tcp:\(host.utf8.contains(UInt8(ascii: ":")) ? "[\(host)]" : host):\(port)"
        }
    }

    /// The address without its kind, for messages.
    public var name: String {
        switch self {
        case .unix(let path): path
        case .tcp(let host, let port): "\(host):\(port)"
        }
    }

    /// A socket address as the system takes it.
    struct Raw {
        var storage = sockaddr_storage()
        var length: socklen_t = 0
        var family: Int32 { Int32(storage.ss_family) }

        mutating func withPointer<R>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R {
            let length = length
            return withUnsafePointer(to: &storage) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, length) }
            }
        }
    }

    /// Every address that the name stands for.
    /// - Parameter passive: to listen, where no host means every interface.
    func resolve(passive: Bool) throws(VMMError) -> [Raw] {
        switch self {
        case .unix(let path):
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            let bytes = Array(path.utf8)
            let room = MemoryLayout.size(ofValue: address.sun_path) - 1
            guard bytes.count <= room else {
                throw VMMError(
                    "UNIX socket path '\(path)' is too long",
                    hint: "Path must be less than \(room + 1) bytes")
            }
            withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
            var raw = Raw()
            raw.length = socklen_t(MemoryLayout<sockaddr_un>.size)
            withUnsafeMutableBytes(of: &raw.storage) { target in
                withUnsafeBytes(of: &address) { target.copyMemory(from: $0) }
            }
            return [raw]
        case .tcp(let host, let port):
            var hints = addrinfo()
            hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
            hints.ai_flags = passive ? AI_PASSIVE : 0
            var list: UnsafeMutablePointer<addrinfo>?
            let code = getaddrinfo(host.isEmpty ? nil : host, port, &hints, &list)
            guard code == 0 else {
                throw VMMError(
                    "address resolution failed for \(host):\(port): \(String(cString: gai_strerror(code)))")
            }
            defer { freeaddrinfo(list) }
            var result: [Raw] = []
            var next = list
            while let entry = next {
                next = entry.pointee.ai_next
                guard let address = entry.pointee.ai_addr,
                    Int(entry.pointee.ai_addrlen) <= MemoryLayout<sockaddr_storage>.size
                else { continue }
                var raw = Raw()
                raw.length = entry.pointee.ai_addrlen
                withUnsafeMutableBytes(of: &raw.storage) {
                    $0.copyMemory(from: UnsafeRawBufferPointer(start: address, count: Int(raw.length)))
                }
                result.append(raw)
            }
            return result
        }
    }

    /// What a socket carries.
    public enum Kind {
        case stream
        /// Each message is read as it was sent. Of unix sockets only.
        case packets

        fileprivate var type: UInt32 { self == .stream ? SOCK_STREAM.rawValue : SOCK_SEQPACKET.rawValue }
    }

    /// A socket of the address' family, with FD_CLOEXEC and O_NONBLOCK.
    private static func makeSocket(_ raw: Raw, _ kind: Kind) throws(VMMError) -> OwnedFD {
        let fd = socket(raw.family, Int32(kind.type | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
        guard fd >= 0 else { throw .system("Failed to create socket") }
        return OwnedFD(adopting: fd)
    }

    /// Removes the file of a unix socket that nobody has any more. Only ever a
    /// socket: the path may be mistyped.
    /// - Returns: false when somebody has it, with EADDRINUSE: a live socket of
    ///   another process keeps its name.
    func removeStaleFile() -> Bool {
        guard case .unix(let path) = self else { return true }
        var status = stat()
        guard lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK else { return true }
        guard isServed else { return HostAccess.remove(path) == 0 || errno == ENOENT }
        errno = EADDRINUSE
        return false
    }

    /// Whether a socket has the path. One of another type, which is what most
    /// are, is refused a connection for its type, and does not notice.
    private var isServed: Bool {
        guard var raw = try? resolve(passive: false).first else { return false }
        guard let fd = try? Self.makeSocket(raw, .packets) else { return true }
        return raw.withPointer { HostAccess.connect(fd.raw, $0, $1) } == 0 || ![ECONNREFUSED, ENOENT].contains(errno)
    }

    /// Listens here; a unix socket that nobody owns any more is replaced.
    /// - Returns: a non-blocking listening socket, owned by the caller.
    public func listen(_ kind: Kind = .stream) throws(VMMError) -> Int32 {
        var failure = VMMError("Failed to find an available port")
        for var raw in try resolve(passive: true) {
            let fd = try Self.makeSocket(raw, kind)
            if case .unix(let path) = self {
                guard removeStaleFile() else { throw .system("Failed to bind socket to \(path)") }
            } else {
                var on: Int32 = 1
                setsockopt(fd.raw, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
                if raw.family == AF_INET6 {
                    setsockopt(fd.raw, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &on, socklen_t(MemoryLayout<Int32>.size))
                }
            }
            guard raw.withPointer({ HostAccess.bind(fd.raw, $0, $1) }) == 0 else {
                switch self {
                case .unix(let path): failure = .system("Failed to bind socket to \(path)")
                case .tcp: failure = .system("Failed to find an available port")
                }
                continue
            }
            guard Glibc.listen(fd.raw, 1) == 0 else {
                failure = .system("Failed to listen on socket")
                continue
            }
            return fd.release()
        }
        throw failure
    }

    /// Listens here again for a socket whose file is gone, or is another's that
    /// has ended: what a process has done that was to take this one's place.
    /// - Parameter file: the socket's own.
    /// - Returns: a new listening socket, owned by the caller; nil when there is
    ///   nothing to be done.
    public func listenAgain(_ file: SocketFile?) throws(VMMError) -> Int32? {
        guard let file, !file.isInPlace else { return nil }
        if let (fd, _) = try? startConnecting() {
            close(fd)
            throw VMMError("another process listens on \(description) now")
        }
        return try listen()
    }

    /// Starts to connect.
    /// - Returns: a non-blocking socket, owned by the caller, and whether it is
    ///   connected already.
    public func startConnecting(_ kind: Kind = .stream) throws(VMMError) -> (fd: Int32, connected: Bool) {
        var failure = VMMError("Failed to connect to '\(name)'")
        for var raw in try resolve(passive: false) {
            let fd = try Self.makeSocket(raw, kind)
            if retryingInterrupts({ raw.withPointer { HostAccess.connect(fd.raw, $0, $1) } }) == 0 {
                return (fd.release(), true)
            }
            if errno == EINPROGRESS { return (fd.release(), false) }
            failure = .system("Failed to connect to '\(name)'")
        }
        throw failure
    }

    /// The numeric host and port of a connected or listening TCP socket.
    public static func tcp(ofSocket fd: Int32, peer: Bool) -> SocketAddress? {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        var host = [CChar](repeating: 0, count: 256)
        var port = [CChar](repeating: 0, count: 32)
        if !peer {
            guard let bound = DescriptorKind.boundAddress(of: fd) else { return nil }
            length = socklen_t(min(bound.count, MemoryLayout<sockaddr_storage>.size))
            withUnsafeMutableBytes(of: &storage) { $0.copyBytes(from: bound.prefix(Int(length))) }
        }
        let ok = withUnsafeMutablePointer(to: &storage) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                (!peer || getpeername(fd, address, &length) == 0)
                    && getnameinfo(
                        address, length, &host, socklen_t(host.count), &port, socklen_t(port.count),
                        NI_NUMERICHOST | NI_NUMERICSERV) == 0
            }
        }
        guard ok, storage.ss_family == AF_INET || storage.ss_family == AF_INET6 else { return nil }
        func text(_ characters: [CChar]) -> String {
            String(decoding: characters.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        return .tcp(host: text(host), port: text(port))
    }
}
