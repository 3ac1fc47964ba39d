import BatonRuntime

/// A socket address in the options of `-netdev`.
enum NetSocketAddress {
    case address(SocketAddress)
    /// `fd`: a descriptor that the command line names; the caller's.
    case descriptor(Int32)

    /// `PREFIX.type=unix|inet|fd,…`; nil when nothing begins with the prefix.
    static func parse(_ options: KeyValueOptions, _ prefix: String) throws(VMMError) -> NetSocketAddress? {
        guard let members = options.under(prefix) else { return nil }
        let result: NetSocketAddress
        switch try members.requiredString("type") {
        case "unix": result = .address(.unix(path: try members.requiredString("path")))
        case "inet":
            let host = try members.requiredString("host")
            result = .address(.tcp(host: host, port: try members.requiredString("port")))
        case "fd":
            guard let fd = try descriptor(members, "str") else {
                throw VMMError("Parameter '\(prefix).str' is missing")
            }
            result = .descriptor(fd)
        case let other:
            throw VMMError("Parameter '\(prefix).type' does not accept value '\(other)'")
        }
        try members.finish()
        return result
    }

    /// A descriptor's number. Whether it is open is found when it is used: one
    /// that was handed over may have closed since.
    static func descriptor(_ options: KeyValueOptions, _ key: String) throws(VMMError) -> Int32? {
        guard let number = try options.number(key, in: 0...UInt64(Int32.max)) else { return nil }
        return Int32(truncatingIfNeeded: number)
    }
}

/// The options of `-netdev socket` and `-netdev stream`.
enum StreamOptions {
    /// `listen=[HOST]:PORT`, `connect=HOST:PORT` or `fd=N`.
    static func socket(_ options: KeyValueOptions) throws(VMMError) -> SocketNetBackend.Peer {
        let listen = try options.string("listen")
        let connect = try options.string("connect")
        let fd = try NetSocketAddress.descriptor(options, "fd")
        guard [listen != nil, connect != nil, fd != nil].filter({ $0 }).count == 1 else {
            throw VMMError("exactly one of listen=, connect= or fd= is required")
        }
        if let listen { return .listen(try address(listen, passive: true)) }
        if let connect { return .connect(try address(connect, passive: false), reconnectDelay: 0) }
        return .descriptor(fd ?? -1)
    }

    /// `server=on|off,addr.type=unix|inet|fd,…`; a client has `reconnect-ms=`.
    static func stream(_ options: KeyValueOptions) throws(VMMError) -> SocketNetBackend.Peer {
        let server = try options.bool("server") ?? false
        let delay = try options.number("reconnect-ms", in: 0...86_400_000)
        guard let address = try NetSocketAddress.parse(options, "addr") else {
            throw VMMError("Parameter 'addr' is missing")
        }
        if server, delay != nil {
            throw VMMError("'reconnect-ms' option is incompatible with socket in server mode")
        }
        switch address {
        case .address(let address) where server: return .listen(address)
        case .address(let address):
            return .connect(address, reconnectDelay: Int64(truncatingIfNeeded: delay ?? 0) * 1_000_000)
        case .descriptor(let fd):
            guard !server else { throw VMMError("server=on needs an address of type unix or inet") }
            return .descriptor(fd)
        }
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

/// The options of `-netdev dgram`.
enum DgramOptions {
    /// `local.type=unix|inet|fd,…[,remote.type=unix|inet,…]`; with a multicast
    /// group as `remote`, `local` is an interface and may be left out.
    static func parse(_ options: KeyValueOptions) throws(VMMError) -> DgramNetBackend.Ends {
        let remote = try NetSocketAddress.parse(options, "remote")
        let local = try NetSocketAddress.parse(options, "local")
        if case .address(let address)? = remote, let group = MulticastGroup(address) {
            switch local {
            case nil: return .group(group, interface: nil, address)
            case .address(.tcp(let host, _)): return .group(group, interface: host, address)
            case .descriptor(let fd): return .descriptor(fd, remote: address)
            default: throw VMMError("remote and local types must be the same")
            }
        }
        guard let local else {
            throw VMMError(
                "dgram requires local= parameter", hint: "Without it remote.host= must be a multicast group.")
        }
        switch (local, remote) {
        case (.descriptor(let fd), nil): return .descriptor(fd, remote: nil)
        case (.descriptor, _): throw VMMError("don't set remote with local.fd")
        case (.address, nil): throw VMMError("type=inet or type=unix requires remote parameter")
        case (.address(.unix(let from)), .address(.unix(let to))): return .addresses(.unix(path: from), .unix(path: to))
        case (.address(.tcp(let host, let port)), .address(.tcp(let toHost, let toPort))):
            return .addresses(.tcp(host: host, port: port), .tcp(host: toHost, port: toPort))
        case (.address, _): throw VMMError("remote and local types must be the same")
        }
    }
}
