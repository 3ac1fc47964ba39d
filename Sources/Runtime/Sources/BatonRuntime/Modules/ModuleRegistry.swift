/// What modules have registered, by name. Filled by the loader, one whole
/// module at a time.
public final class ModuleRegistry {
    public private(set) var modes: [any CprMode] = []
    public private(set) var memoryBackends: [any MemoryBackendType] = []
    public private(set) var preservers: [any FdPreserver] = []
    public private(set) var hooks: [any AllocatorHook] = []
    public private(set) var deviceTypes: [any DeviceType] = []
    /// The path a named thing came from; `built in` for the core's own.
    private var origins: [String: String] = [:]

    public init() {}

    public func mode(_ name: String) -> (any CprMode)? { modes.first { $0.name == name } }
    public func memoryBackend(_ type: String) -> (any MemoryBackendType)? {
        memoryBackends.first { $0.typeName == type }
    }
    public func deviceType(_ name: String) -> (any DeviceType)? { deviceTypes.first { $0.name == name } }
    public func origin(kind: String, name: String) -> String { origins["\(kind)-\(name)"] ?? "built in" }

    /// Adds a part of the core.
    public func addBuiltIn(_ backend: any MemoryBackendType) { memoryBackends.append(backend) }
    public func addBuiltIn(_ type: any DeviceType) { deviceTypes.append(type) }

    /// Takes over everything that a module staged.
    /// - Throws: an error when one of its names is taken; then nothing is added.
    func commit(_ registrar: ModuleRegistrar) throws(VMMError) {
        func taken(_ kind: String, _ name: String) -> VMMError {
            VMMError(
                "module '\(registrar.module)' registers the \(kind) '\(name)', which is registered already",
                hint: "It came from \(origin(kind: kind, name: name)). Remove one of the two modules.")
        }
        for mode in registrar.modes where self.mode(mode.name) != nil { throw taken("mode", mode.name) }
        for backend in registrar.memoryBackends where memoryBackend(backend.typeName) != nil {
            throw taken("memory backend", backend.typeName)
        }
        for preserver in registrar.preservers where preservers.contains(where: { $0.name == preserver.name }) {
            throw taken("preserver", preserver.name)
        }
        for type in registrar.deviceTypes where deviceType(type.name) != nil { throw taken("device type", type.name) }
        modes += registrar.modes
        memoryBackends += registrar.memoryBackends
        preservers += registrar.preservers
        hooks += registrar.hooks
        deviceTypes += registrar.deviceTypes
        for mode in registrar.modes { origins["mode-\(mode.name)"] = registrar.path }
        for backend in registrar.memoryBackends { origins["memory backend-\(backend.typeName)"] = registrar.path }
        for type in registrar.deviceTypes { origins["device type-\(type.name)"] = registrar.path }
        for preserver in registrar.preservers { origins["preserver-\(preserver.name)"] = registrar.path }
    }
}
