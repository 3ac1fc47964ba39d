import BatonBase
import BatonCPR
import BatonDeviceKit
import BatonMachine
import BatonQMP

/// What modules have registered, by name. Filled by the loader, one whole
/// module at a time.
public final class ModuleRegistry: PreserverRegistry {
    public private(set) var modes: [any CprMode] = []
    public private(set) var memoryBackends: [any MemoryBackendType] = []
    public private(set) var preservers: [any FdPreserver] = []
    public private(set) var hooks: [any AllocatorHook] = []
    public private(set) var deviceTypes: [any DeviceType] = []
    public private(set) var netBackendTypes: [any NetBackendType] = []
    public private(set) var objectTypes: [any ObjectType] = []
    public private(set) var acceleratorTypes: [any AcceleratorType] = []
    public private(set) var machineTypes: [any MachineType] = []
    /// QMP commands and events of modules, with the module's name.
    private var commands: [(module: String, command: QMPCommand)] = []
    private var events: [(module: String, name: String, data: QMPType)] = []
    /// What calls foreign modules, once one has been met.
    private(set) var bridge: (any ForeignBridge)?
    /// What updates the VM that the modules are for; nil when there is no VM.
    public weak var cpr: CprController?
    /// The path a named thing came from; `built in` for the core's own.
    private var origins: [String: String] = [:]

    public init() {}

    public func mode(_ name: String) -> (any CprMode)? { modes.first { $0.name == name } }
    public func memoryBackend(_ type: String) -> (any MemoryBackendType)? {
        memoryBackends.first { $0.typeName == type }
    }
    public func deviceType(_ name: String) -> (any DeviceType)? { deviceTypes.first { $0.name == name } }
    public func netBackendType(_ name: String) -> (any NetBackendType)? { netBackendTypes.first { $0.name == name } }
    public func acceleratorType(_ name: String) -> (any AcceleratorType)? { acceleratorTypes.first { $0.name == name } }
    public func machineType(_ name: String) -> (any MachineType)? { machineTypes.first { $0.name == name } }
    public func objectType(_ name: String) -> (any ObjectType)? { objectTypes.first { $0.name == name } }
    public func origin(kind: String, name: String) -> String { origins["\(kind)-\(name)"] ?? "built in" }

    /// Adds a part of the core.
    public func addBuiltIn(_ backend: any MemoryBackendType) { memoryBackends.append(backend) }
    public func addBuiltIn(_ type: any DeviceType) { deviceTypes.append(type) }
    public func addBuiltIn(_ type: any ObjectType) { objectTypes.append(type) }

    /// Gives the monitors the commands and events of modules, once the core has
    /// registered its own.
    /// - Throws: an error when the core has a command of that name.
    public func installCommands(_ registry: CommandRegistry) throws(VMMError) {
        for (module, command) in commands {
            do throws(VMMError) { try registry.add(command) } catch { throw error.prefixed("module '\(module)'") }
        }
        for (module, name, data) in events {
            guard registry.events[name] == nil else {
                throw VMMError("module '\(module)': QMP event '\(name)' is already registered")
            }
            registry.addEvent(name, data: data)
        }
    }

    /// Takes over everything that a module staged.
    /// - Throws: an error when one of its names is taken; then nothing is added.
    func commit(_ registrar: ModuleRegistrar) throws(VMMError) {
        func check<Item>(
            _ kind: String, _ new: [Item], _ known: [Item], _ name: (Item) -> String
        ) throws(VMMError) {
            for item in new where known.contains(where: { name($0) == name(item) }) {
                throw VMMError(
                    "module '\(registrar.module)' registers the \(kind) '\(name(item))', which is registered already",
                    hint: "It came from \(origin(kind: kind, name: name(item))). Remove one of the two modules.")
            }
        }
        try check("mode", registrar.modes, modes) { $0.name }
        try check("memory backend", registrar.memoryBackends, memoryBackends) { $0.typeName }
        try check("preserver", registrar.preservers, preservers) { $0.name }
        try check("device type", registrar.deviceTypes, deviceTypes) { $0.name }
        try check("network back end", registrar.netBackendTypes, netBackendTypes) { $0.name }
        try check("object type", registrar.objectTypes, objectTypes) { $0.name }
        try check("accelerator", registrar.acceleratorTypes, acceleratorTypes) { $0.name }
        try check("machine", registrar.machineTypes, machineTypes) { $0.name }
        for command in registrar.commands {
            guard let other = commands.first(where: { $0.command.name == command.name }) else { continue }
            throw VMMError(
                "module '\(registrar.module)' registers the QMP command '\(command.name)', which \(other.module) has")
        }
        for event in registrar.events {
            guard let other = events.first(where: { $0.name == event.name }) else { continue }
            throw VMMError(
                "module '\(registrar.module)' registers the QMP event '\(event.name)', which \(other.module) has")
        }
        func take<Item>(_ kind: String, _ new: [Item], into list: inout [Item], _ name: (Item) -> String) {
            list += new
            for item in new { origins["\(kind)-\(name(item))"] = registrar.path }
        }
        take("mode", registrar.modes, into: &modes) { $0.name }
        take("memory backend", registrar.memoryBackends, into: &memoryBackends) { $0.typeName }
        take("preserver", registrar.preservers, into: &preservers) { $0.name }
        take("device type", registrar.deviceTypes, into: &deviceTypes) { $0.name }
        take("network back end", registrar.netBackendTypes, into: &netBackendTypes) { $0.name }
        take("object type", registrar.objectTypes, into: &objectTypes) { $0.name }
        take("accelerator", registrar.acceleratorTypes, into: &acceleratorTypes) { $0.name }
        take("machine", registrar.machineTypes, into: &machineTypes) { $0.name }
        hooks += registrar.hooks
        commands += registrar.commands.map { (registrar.module, $0) }
        events += registrar.events.map { (registrar.module, $0.name, $0.data) }
        bridge = bridge ?? registrar.bridge
    }
}
