import BatonRuntime

/// Makes the back ends of `-netdev`.
public enum NetBackendFactory {
    /// The names that need no module.
    public static let types = ["dgram", "socket", "stream"]

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
