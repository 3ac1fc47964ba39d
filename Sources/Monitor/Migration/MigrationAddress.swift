import BatonRuntime

/// What `migrate`, `migrate-incoming` and `-incoming` name, as a URI or as channels: where the
/// state goes to or comes from, and by which unix socket two VMMs reach each other.
struct MigrationAddress {
    /// Where a channel of type `main` goes.
    enum Main {
        /// The one transport that a state is written to and read from.
        case file(path: String)
        /// Any other. Beside a channel of type `cpr` it has nothing to carry.
        case socket(uri: String)
    }
    private(set) var main: Main?
    /// The unix socket's path of a channel of type `cpr`.
    private(set) var channel: String?

    init() {}

    /// The arguments of `migrate` and `migrate-incoming`.
    init(_ arguments: JSONObject, command: String) throws(VMMError) {
        let uri = arguments["uri"]?.stringValue
        let channels = arguments["channels"]?.arrayValue
        if let uri {
            guard channels == nil else {
                throw VMMError(
                    "'uri' and 'channels' arguments are mutually exclusive; exactly one of the two should be present "
                        + "in '\(command)' qmp command ")
            }
            try add(uri: uri)
        } else if let channels {
            for channel in channels { try add(channel: channel) }
            guard main != nil else { throw VMMError("Channel list has no main entry") }
        } else {
            throw VMMError("need either 'uri' or 'channels' argument")
        }
    }

    init(uri: String) throws(VMMError) { try add(uri: uri) }

    /// The path of the file.
    /// - Throws: QEMU's error for another protocol.
    func file() throws(VMMError) -> String {
        switch main {
        case .file(let path)?: return path
        case .socket(let uri)?: throw MigrationAddress.unknown(uri)
        case nil: throw VMMError("Channel list has no main entry")
        }
    }

    static func unknown(_ protocolName: String) -> VMMError {
        VMMError("unknown migration protocol: \(protocolName)", hint: "The state goes to a file: file:PATH.")
    }

    /// Parses `file:PATH[,offset=0]`, or takes note of another protocol's URI.
    mutating func add(uri: String) throws(VMMError) {
        guard uri.hasPrefix("file:") else {
            guard ["tcp:", "unix:", "vsock:", "fd:"].contains(where: uri.hasPrefix) else {
                throw MigrationAddress.unknown(uri)
            }
            main = .socket(uri: uri)
            return
        }
        var path = String(uri.dropFirst(5))
        let marker = ",offset="
        var start = path.endIndex
        while start > path.startIndex {
            start = path.index(before: start)
            guard path[start...].hasPrefix(marker) else { continue }
            let text = String(path[start...].dropFirst(marker.count))
            guard let offset = try? SizeText.parse(text) else { throw VMMError("file URI has bad offset \(text)") }
            try MigrationAddress.check(offset: offset)
            path = String(path[..<start])
            break
        }
        main = .file(path: path)
    }

    /// Parses `{"channel-type": "main", "addr": {"transport": "file", …}}`, and
    /// `{"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": …}}`.
    mutating func add(channel json: JSON) throws(VMMError) {
        let object = json.objectValue
        let type = object?["channel-type"]?.stringValue ?? ""
        guard ["main", "cpr"].contains(type) else {
            throw VMMError("Parameter 'channel-type' does not accept value '\(type)'")
        }
        guard type == "main" ? main == nil : channel == nil else {
            throw VMMError("Channel list has more than one \(type) entry")
        }
        guard let address = object?["addr"]?.objectValue, let transport = address["transport"]?.stringValue else {
            throw VMMError("Parameter 'transport' is missing")
        }
        if type == "cpr" { return channel = try MigrationAddress.socket(address, transport) }
        guard transport == "file" else {
            guard transport == "socket" else { throw MigrationAddress.unknown(transport) }
            main = .socket(uri: transport)
            return
        }
        guard let name = address["filename"]?.stringValue else { throw VMMError("Parameter 'filename' is missing") }
        try MigrationAddress.check(offset: UInt64(clamping: address["offset"]?.intValue ?? 0))
        main = .file(path: name)
    }

    private static func socket(_ address: JSONObject, _ transport: String) throws(VMMError) -> String {
        let type = address["type"]?.stringValue
        guard transport == "socket", type == "unix" else {
            throw VMMError(
                "invalid transport of a 'cpr' channel: \(type ?? transport)",
                hint: "Descriptors go over unix sockets only: \"transport\": \"socket\", \"type\": \"unix\".")
        }
        guard let path = address["path"]?.stringValue, !path.isEmpty else {
            throw VMMError("Parameter 'path' is missing")
        }
        return path
    }

    private static func check(offset: UInt64) throws(VMMError) {
        guard offset == 0 else {
            throw VMMError(
                "the offset in a migration file must be 0, not \(offset)", hint: "Give each state a file of its own.")
        }
    }
}
