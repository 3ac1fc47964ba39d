import BatonBase
import BatonCPR
import BatonDeviceKit
import BatonMachine
import BatonQMP
import CBaton

/// The descriptor that a Swift module returns from `baton_module_query`.
///
/// A module has one such function:
///
///     @_cdecl("baton_module_query")
///     public func query() -> UnsafeRawPointer {
///         ModuleDescriptor.make(kind: "mode", name: "mine", version: "1.0") { registrar throws(VMMError) in
///             try registrar.add(MyMode())
///         }
///     }
public enum ModuleDescriptor {
    /// What `make` comes to, with the fingerprint that was compiled into the module.
    public static func _make(
        _ kind: StaticString, _ name: StaticString, _ version: StaticString, _ fingerprint: StaticString,
        _ register: @escaping (ModuleRegistrar) throws(VMMError) -> Void
    ) -> UnsafeRawPointer {
        ModuleRegistrar.pending = register
        let descriptor = UnsafeMutablePointer<baton_module_descriptor>.allocate(capacity: 1)
        func text(_ string: StaticString) -> UnsafePointer<CChar> {
            UnsafeRawPointer(string.utf8Start).assumingMemoryBound(to: CChar.self)
        }
        descriptor.initialize(
            to: baton_module_descriptor(
                magic: 0x444f_4d4e_4f54_4142, size: UInt32(MemoryLayout<baton_module_descriptor>.size),
                abi: BATON_MODULE_ABI,
                kind: text(kind), name: text(name), version: text(version), fingerprint: text(fingerprint),
                capabilities: 0,
                register_module: { registrar in
                    guard let registrar else { return -1 }
                    return Unmanaged<ModuleRegistrar>.fromOpaque(registrar).takeUnretainedValue().runPending()
                },
                methods: nil, method_count: 0, commands: nil, command_count: 0, events: nil, event_count: 0))
        return UnsafeRawPointer(descriptor)
    }
}

/// Where a module registers what it provides. Everything stays staged until
/// the whole module has been accepted.
public final class ModuleRegistrar {
    /// Set by the query function of the Swift module that is being loaded.
    nonisolated(unsafe) static var pending: ((ModuleRegistrar) throws(VMMError) -> Void)?

    /// The module's name for error texts: `KIND-NAME`.
    let module: String
    /// Where the module was loaded from.
    let path: String
    private(set) var modes: [any CprMode] = []
    private(set) var memoryBackends: [any MemoryBackendType] = []
    private(set) var preservers: [any FdPreserver] = []
    private(set) var hooks: [any AllocatorHook] = []
    private(set) var deviceTypes: [any DeviceType] = []
    private(set) var netBackendTypes: [any NetBackendType] = []
    private(set) var objectTypes: [any ObjectType] = []
    private(set) var acceleratorTypes: [any AcceleratorType] = []
    private(set) var machineTypes: [any MachineType] = []
    private(set) var commands: [QMPCommand] = []
    private(set) var events: [(name: String, data: QMPType)] = []
    private(set) var bridge: (any ForeignBridge)?
    /// The first thing that was refused: the module is then refused too,
    /// whatever its register function makes of it.
    private(set) var failure: VMMError?
    /// Set when the register function has returned.
    private var isClosed = false

    init(module: String, path: String) {
        self.module = module
        self.path = path
    }

    /// Stages one thing, unless one of its name is staged already.
    private func stage(_ what: String, _ name: String, isTaken: Bool, _ body: () -> Void) throws(VMMError) {
        guard !isClosed else {
            throw VMMError("module '\(module)' registers the \(what) '\(name)' outside of its register function")
        }
        guard failure == nil, !isTaken else {
            let error = failure ?? VMMError("module '\(module)' registers the \(what) '\(name)' twice")
            failure = error
            throw error
        }
        body()
    }

    /// Registers a CPR mode, for `-cpr-enable`.
    public func add(_ mode: any CprMode) throws(VMMError) {
        try stage("mode", mode.name, isTaken: modes.contains { $0.name == mode.name }) { modes.append(mode) }
    }

    /// Registers a memory backend type, for `-object`.
    public func add(_ backend: any MemoryBackendType) throws(VMMError) {
        let isTaken = memoryBackends.contains { $0.typeName == backend.typeName }
        try stage("memory backend", backend.typeName, isTaken: isTaken) { memoryBackends.append(backend) }
    }

    /// Registers a preserver of file descriptors.
    public func add(_ preserver: any FdPreserver) throws(VMMError) {
        let isTaken = preservers.contains { $0.name == preserver.name }
        try stage("preserver", preserver.name, isTaken: isTaken) { preservers.append(preserver) }
    }

    /// Registers a type of network back end, for `-netdev`.
    public func add(_ netBackendType: any NetBackendType) throws(VMMError) {
        let isTaken = netBackendTypes.contains { $0.name == netBackendType.name }
        try stage("network back end", netBackendType.name, isTaken: isTaken) { netBackendTypes.append(netBackendType) }
    }

    /// Registers a device type, for `-device`.
    public func add(_ deviceType: any DeviceType) throws(VMMError) {
        let isTaken = deviceTypes.contains { $0.name == deviceType.name }
        try stage("device type", deviceType.name, isTaken: isTaken) { deviceTypes.append(deviceType) }
    }

    /// Registers an object type, for `-object`.
    public func add(_ objectType: any ObjectType) throws(VMMError) {
        let isTaken = objectTypes.contains { $0.name == objectType.name }
        try stage("object type", objectType.name, isTaken: isTaken) { objectTypes.append(objectType) }
    }

    /// Registers an accelerator, for `-accel`.
    public func add(_ acceleratorType: any AcceleratorType) throws(VMMError) {
        let isTaken = acceleratorTypes.contains { $0.name == acceleratorType.name }
        try stage("accelerator", acceleratorType.name, isTaken: isTaken) { acceleratorTypes.append(acceleratorType) }
    }

    /// Registers a machine, for `-machine`.
    public func add(_ machineType: any MachineType) throws(VMMError) {
        let isTaken = machineTypes.contains { $0.name == machineType.name }
        try stage("machine", machineType.name, isTaken: isTaken) { machineTypes.append(machineType) }
    }

    /// Adds a hook that is offered every RAM block without a backend of its own.
    public func add(_ hook: any AllocatorHook) { if !isClosed { hooks.append(hook) } }

    /// Registers a QMP command.
    public func add(_ command: QMPCommand) throws(VMMError) {
        let isTaken = commands.contains { $0.name == command.name }
        try stage("QMP command", command.name, isTaken: isTaken) { commands.append(command) }
    }

    /// Registers a QMP event, for `query-qmp-schema`.
    public func addEvent(_ name: String, data: QMPType = .empty) throws(VMMError) {
        try stage("QMP event", name, isTaken: events.contains { $0.name == name }) { events.append((name, data)) }
    }

    /// Registers what calls foreign modules.
    public func add(_ bridge: any ForeignBridge) throws(VMMError) {
        try stage("bridge", "foreign", isTaken: self.bridge != nil) { self.bridge = bridge }
    }

    /// The register function has returned.
    func close() { isClosed = true }

    func runPending() -> Int32 {
        guard let register = ModuleRegistrar.pending else { return -1 }
        ModuleRegistrar.pending = nil
        do throws(VMMError) {
            try register(self)
            return 0
        } catch {
            failure = failure ?? error
            return 1
        }
    }
}
