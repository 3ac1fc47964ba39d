import BatonRuntime

/// `-object rng-builtin` and `-object rng-random`: where a virtio-rng device has its bytes from. Both are the kernel's random
/// numbers here, which /dev/urandom and /dev/random read too.
public final class EntropySource: ObjectType {
    public let name: String
    public let summary: String
    public let properties: [DeviceProperty]

    /// Of `rng-random`: files that are the kernel's random numbers.
    private static let kernelFiles = ["/dev/urandom", "/dev/random"]

    public static let all = [
        EntropySource("rng-builtin", "random numbers of the kernel's", []),
        EntropySource(
            "rng-random", "random numbers of the kernel's",
            [DeviceProperty("filename", "str", kernelFiles.joined(separator: " or "))]),
    ]

    private init(_ name: String, _ summary: String, _ properties: [DeviceProperty]) {
        (self.name, self.summary, self.properties) = (name, summary, properties)
    }

    public func make(id: String, _ options: KeyValueOptions, vm: VirtualMachine) throws(VMMError) {
        if properties.contains(where: { $0.name == "filename" }), let file = try options.string("filename"),
            !EntropySource.kernelFiles.contains(file)
        {
            throw VMMError(
                "\(name): filename=\(file) is not supported",
                hint: "Use \(EntropySource.kernelFiles[0]), which the kernel mixes hardware generators into.")
        }
        try options.finish()
        vm.parts(EntropySources.self).users[id] = 0
    }

    public func remove(id: String, vm: VirtualMachine) throws(VMMError) {
        let sources = vm.parts(EntropySources.self)
        guard sources.users[id] == 0 else { throw VMMError("object '\(id)' is in use, can not be deleted") }
        sources.users[id] = nil
    }

    /// Whether there is an object of that id.
    static func exists(_ id: String, _ vm: VirtualMachine) -> Bool { vm.parts(EntropySources.self).users[id] != nil }

    /// A device uses an object from now on, or no more.
    static func use(_ id: String, _ isUsed: Bool, _ vm: VirtualMachine) {
        vm.parts(EntropySources.self).users[id, default: 0] += isUsed ? 1 : -1
    }
}

/// How many devices use each of a machine's sources.
private final class EntropySources: MachineParts {
    var users: [String: Int] = [:]
}
