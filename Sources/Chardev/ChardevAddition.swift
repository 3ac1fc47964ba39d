import BatonRuntime

/// What `chardev-add` is given, as QMP has it (a `ChardevBackend` of QEMU's schema), turned into the properties of
/// `-chardev`.
public enum ChardevAddition {
    /// The back ends that can be added, by their names in QMP.
    public static let types = ["file", "memory", "null", "pipe", "pty", "ringbuf", "socket", "stdio", "udp"]

    /// - Parameters:
    ///   - data: the members that the type has.
    ///   - findDescriptor: a descriptor that a client has given a name.
    /// - Returns: an object that `-chardev` takes.
    /// - Throws: QEMU's errors for what is missing or unexpected.
    public static func properties(
        id: String, type: String, data: JSONObject, findDescriptor: (String) -> Int32?
    ) throws(VMMError) -> JSONObject {
        let given = try KeyValueOptions(data)
        var result: JSONObject = ["backend": .string(type == "memory" ? "ringbuf" : type), "id": .string(id)]
        switch type {
        case "file":
            result["path"] = .string(try given.requiredString("out"))
            result["append"] = try given.bool("append").map(JSON.bool)
        case "pipe": result["path"] = .string(try given.requiredString("device"))
        case "ringbuf", "memory": result["size"] = try given.number("size").map(JSON.init)
        case "stdio": result["signal"] = try given.bool("signal").map(JSON.bool)
        case "udp":
            try addInternet(given, "remote", host: "host", port: "port", to: &result)
            if given.has("local.type") {
                try addInternet(given, "local", host: "localaddr", port: "localport", to: &result)
            }
        case "socket": try addSocket(given, to: &result, findDescriptor)
        default: break
        }
        try given.finish()
        return result
    }

    private static func addInternet(
        _ given: KeyValueOptions, _ name: String, host: String, port: String, to result: inout JSONObject
    ) throws(VMMError) {
        let type = try given.requiredString("\(name).type")
        guard type == "inet" else {
            throw VMMError(
                "Parameter '\(name).type' does not accept value '\(type)'", hint: "Give an address of type inet.")
        }
        result[host] = .string(try given.requiredString("\(name).data.host"))
        result[port] = .string(try given.requiredString("\(name).data.port"))
    }

    private static func addSocket(
        _ given: KeyValueOptions, to result: inout JSONObject, _ findDescriptor: (String) -> Int32?
    ) throws(VMMError) {
        let type = try given.requiredString("addr.type")
        switch type {
        case "unix": result["path"] = .string(try given.requiredString("addr.data.path"))
        case "inet": try addInternet(given, "addr", host: "host", port: "port", to: &result)
        case "fd":
            let name = try given.requiredString("addr.data.str")
            guard let fd = Int32(name) ?? findDescriptor(name) else {
                throw VMMError("File descriptor named '\(name)' has not been found")
            }
            result["fd"] = .int(Int64(fd))
        default:
            throw VMMError("Parameter 'addr.type' does not accept value '\(type)'", hint: "Give unix, inet or fd.")
        }
        // As QMP has it, and unlike the command line.
        let isServer = try given.bool("server") ?? true
        result["server"] = .bool(isServer)
        for key in ["wait", "nodelay", "telnet"] {
            if let value = try given.bool(key) { result[key] = .bool(value) }
        }
        for key in ["reconnect", "reconnect-ms"] {
            if let value = try given.number(key) { result[key] = JSON(value) }
        }
    }
}
