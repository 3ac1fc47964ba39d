import BatonRuntime

/// Makes the back ends of `-netdev`.
public enum NetBackendFactory {
    /// The names that `-netdev help` lists.
    public static let types = ["socket", "stream"]

    /// - Parameters:
    ///   - options: the argument of `-netdev`, parsed with the implied
    ///   key `type`.
    ///   - isTrial: opens nothing: the back end has no peer.
    /// - Throws: QEMU's errors for what is missing or wrong.
    public static func make(_ options: KeyValueOptions, loop: EventLoop, isTrial: Bool = false) throws(VMMError) -> NetBackend {
        let type = try options.requiredString("type")
        guard types.contains(type) else {
            throw VMMError(
                "Parameter 'type' does not accept value '\(type)'", hint: "Net back ends: \(types.joined(separator: ", "))")
        }
        let id = try options.requiredIdentifier()
        let peer = type == "socket" ? try socketPeer(options) : try streamPeer(options)
        try options.finish()
        if isTrial { return NetBackend(id: id, backend: type) }
        return try SocketNetBackend(id: id, backend: type, peer: peer, loop: loop)
    }

    /// `listen=[HOST]:PORT`, `connect=HOST:PORT` or `fd=N`.
    private static func socketPeer(_ options: KeyValueOptions) throws(VMMError) -> SocketNetBackend.Peer {
        let listen = try options.string("listen")
        let connect = try options.string("connect")
        let fd = try descriptor(options, "fd")
        guard [listen != nil, connect != nil, fd != nil].filter({ $0 }).count == 1 else {
            throw VMMError("exactly one of listen=, connect= or fd= is required")
        }
        if let listen { return .listen(try address(listen, passive: true)) }
        if let connect { return .connect(try address(connect, passive: false)) }
        return .descriptor(fd ?? -1)
    }

    /// `server=on|off,addr.type=unix|inet|fd,…`.
    private static func streamPeer(_ options: KeyValueOptions) throws(VMMError) -> SocketNetBackend.Peer {
        let server = try options.bool("server") ?? false
        guard let address = options.under("addr") else { throw VMMError("Parameter 'addr' is missing") }
        let result: SocketNetBackend.Peer
        switch try address.requiredString("type") {
        case "unix":
            let path = try address.requiredString("path")
            result = server ? .listen(.unix(path: path)) : .connect(.unix(path: path))
        case "inet":
            let host = try address.requiredString("host")
            let port = try address.requiredString("port")
            result = server ? .listen(.tcp(host: host, port: port)) : .connect(.tcp(host: host, port: port))
        case "fd":
            guard !server, let fd = try descriptor(address, "str") else {
                throw VMMError("Parameter 'addr.str' is missing")
            }
            result = .descriptor(fd)
        case let other:
            throw VMMError("Parameter 'addr.type' does not accept value '\(other)'")
        }
        try address.finish()
        return result
    }

    private static func descriptor(_ options: KeyValueOptions, _ key: String) throws(VMMError) -> Int32? {
        guard let number = try options.number(key) else { return nil }
        guard let fd = Int32(exactly: number), FD.isOpen(fd) else {
            throw VMMError("Parameter '\(key)': \(number) is not an open file descriptor")
        }
        return fd
    }

    /// `HOST:PORT`; the host may be empty for a listener.
    private static func address(_ text: String, passive: Bool) throws(VMMError) -> SocketAddress {
        guard let colon = text.lastIndex(of: ":") else { throw VMMError("host address '\(text)' doesn't contain ':'") }
        let host = String(text[..<colon])
        let port = String(text[text.index(after: colon)...])
        guard let number = SizeText.unsignedNumber(port), number <= 65535 else {
            throw VMMError("port number '\(port)' is invalid")
        }
        return .tcp(host: host.isEmpty ? (passive ? "0.0.0.0" : "127.0.0.1") : host, port: String(number))
    }
}
