import BatonRuntime

/// Makes the back ends of `-netdev`.
public enum NetBackendFactory {
    /// The names that need no module.
    public static let types = ["dgram", "passt", "socket", "stream", "user"]

    /// The text of `-netdev TYPE,help`; nil for a type that is not one of `types`.
    public static func help(_ type: String) -> String? {
        func address(_ prefix: String) -> [DeviceProperty] {
            [
                DeviceProperty("\(prefix).type", "str", "unix, inet or fd"),
                DeviceProperty("\(prefix).path", "str", "of type unix"),
                DeviceProperty("\(prefix).host", "str", "of type inet"),
                DeviceProperty("\(prefix).port", "str", "of type inet"),
                DeviceProperty("\(prefix).str", "int", "of type fd: an open socket"),
            ]
        }
        switch type {
        case "dgram": return DeviceProperty.help(address("local") + address("remote"), of: type)
        case "passt": return DeviceProperty.help(PasstOptions.properties, of: type)
        case "user": return DeviceProperty.help(UserNetOptions.properties, of: type)
        case "socket":
            return DeviceProperty.help(
                [
                    DeviceProperty("listen", "str", "[HOST]:PORT"), DeviceProperty("connect", "str", "HOST:PORT"),
                    DeviceProperty("fd", "int", "an open socket"),
                ], of: type)
        case "stream":
            return DeviceProperty.help(
                [
                    DeviceProperty("server", "bool", "whether it listens"),
                    DeviceProperty("reconnect-ms", "uint32", "when a client connects again"),
                ] + address("addr"), of: type)
        default: return nil
        }
    }

    /// - Parameters:
    ///   - options: the argument of `-netdev`, parsed with the implied
    ///   key `type`.
    ///   - findType: finds the types of modules.
    /// - Throws: QEMU's errors for what is missing or wrong.
    public static func make(
        _ options: KeyValueOptions, vm: VirtualMachine,
        findType: (String) throws(VMMError) -> (any NetBackendType)? = { _ in nil }
    ) throws(VMMError) -> NetBackend {
        let type = try options.requiredString("type")
        switch type {
        case "socket", "stream":
            let id = try options.requiredIdentifier()
            let peer = try type == "socket" ? StreamOptions.socket(options) : StreamOptions.stream(options)
            try options.finish()
            let heritage = try NetHeritage.find(id, backend: type, vm: vm)
            if heritage == nil, vm.cpr?.isTrial == true { return NetBackend(id: id, backend: type) }
            return try SocketNetBackend(id: id, backend: type, peer: peer, vm: vm, heritage: heritage)
        case "dgram":
            let id = try options.requiredIdentifier()
            let ends = try DgramOptions.parse(options)
            try options.finish()
            let heritage = try NetHeritage.find(id, backend: type, vm: vm)
            if heritage == nil, vm.cpr?.isTrial == true { return NetBackend(id: id, backend: type) }
            return try DgramNetBackend(id: id, ends, vm: vm, heritage: heritage)
        case "passt", "user":
            let id = try options.requiredIdentifier()
            let command = try type == "user" ? UserNetOptions.parse(options) : PasstOptions.parse(options)
            try options.finish()
            return try command.makeBackend(id: id, type: type, vm: vm)
        default:
            guard let found = try findType(type) else {
                throw VMMError(
                    "Parameter 'type' does not accept value '\(type)'",
                    hint: "Use -netdev help to list the network back ends.")
            }
            return try found.make(id: try options.requiredIdentifier(), options, vm: vm)
        }
    }
}
