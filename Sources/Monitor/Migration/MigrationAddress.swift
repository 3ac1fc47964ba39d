import BatonRuntime

/// The file that `migrate`, `migrate-incoming` and `-incoming` name, as a URI
/// or as a channel: the one transport that a state is written to and read from.
struct MigrationAddress {
    let path: String

    /// Parses `file:PATH[,offset=0]`.
    /// - Throws: QEMU's error for another protocol.
    init(uri: String) throws(VMMError) {
        guard uri.hasPrefix("file:") else {
            throw VMMError("unknown migration protocol: \(uri)", hint: "The state goes to a file: file:PATH.")
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
        self.path = path
    }

    /// Parses `{"channel-type": "main", "addr": {"transport": "file", …}}`.
    init(channel: JSON) throws(VMMError) {
        let object = channel.objectValue
        guard object?["channel-type"]?.stringValue == "main" else {
            throw VMMError("Channel list must have only one entry, for type 'main'")
        }
        guard let address = object?["addr"]?.objectValue, let transport = address["transport"]?.stringValue else {
            throw VMMError("Parameter 'transport' is missing")
        }
        guard transport == "file" else {
            throw VMMError("unknown migration protocol: \(transport)", hint: "The state goes to a file: file:PATH.")
        }
        guard let name = address["filename"]?.stringValue else { throw VMMError("Parameter 'filename' is missing") }
        try MigrationAddress.check(offset: UInt64(clamping: address["offset"]?.intValue ?? 0))
        path = name
    }

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
            try self.init(uri: uri)
        } else if let channels {
            guard channels.count == 1, let channel = channels.first else {
                throw VMMError("Channel list must have only one entry, for type 'main'")
            }
            try self.init(channel: channel)
        } else {
            throw VMMError("need either 'uri' or 'channels' argument")
        }
    }

    private static func check(offset: UInt64) throws(VMMError) {
        guard offset == 0 else {
            throw VMMError(
                "the offset in a migration file must be 0, not \(offset)", hint: "Give each state a file of its own.")
        }
    }
}
