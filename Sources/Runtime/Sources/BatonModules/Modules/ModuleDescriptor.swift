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
    private(set) var blockEngineTypes: [any BlockEngineType] = []
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

    /// Refuses a thing whose name is staged already, and everything after the register function or a refusal.
    private func check(_ what: String, _ name: String, isTaken: Bool) throws(VMMError) {
        guard !isClosed else {
            throw VMMError("module '\(module)' registers the \(what) '\(name)' outside of its register function")
        }
        guard failure == nil, !isTaken else {
            let error = failure ?? VMMError("module '\(module)' registers the \(what) '\(name)' twice")
            failure = error
            throw error
        }
    }

    /// Stages one thing of a kind.
    private func stage<Item>(
        _ item: Item, _ what: String, in list: inout [Item], _ name: (Item) -> String
    ) throws(VMMError) {
        try check(what, name(item), isTaken: list.contains { name($0) == name(item) })
        list.append(item)
    }

    /// Registers a CPR mode, for `-cpr-enable`.
    public func add(_ mode: any CprMode) throws(VMMError) { try stage(mode, "mode", in: &modes) { $0.name } }

    /// Registers a memory backend type, for `-object`.
    public func add(_ backend: any MemoryBackendType) throws(VMMError) {
        try stage(backend, "memory backend", in: &memoryBackends) { $0.typeName }
    }

    /// Registers a preserver of file descriptors.
    public func add(_ preserver: any FdPreserver) throws(VMMError) {
        try stage(preserver, "preserver", in: &preservers) { $0.name }
    }

    /// Registers a type of network back end, for `-netdev`.
    public func add(_ netBackendType: any NetBackendType) throws(VMMError) {
        try stage(netBackendType, "network back end", in: &netBackendTypes) { $0.name }
    }

    /// Registers a device type, for `-device`.
    public func add(_ deviceType: any DeviceType) throws(VMMError) {
        try stage(deviceType, "device type", in: &deviceTypes) { $0.name }
    }

    /// Registers an object type, for `-object`.
    public func add(_ objectType: any ObjectType) throws(VMMError) {
        try stage(objectType, "object type", in: &objectTypes) { $0.name }
    }

    /// Registers an accelerator, for `-accel`.
    public func add(_ acceleratorType: any AcceleratorType) throws(VMMError) {
        try stage(acceleratorType, "accelerator", in: &acceleratorTypes) { $0.name }
    }

    /// Registers a machine, for `-machine`.
    public func add(_ machineType: any MachineType) throws(VMMError) {
        try stage(machineType, "machine", in: &machineTypes) { $0.name }
    }

    /// Registers what carries out requests to disks, for `aio=`.
    public func add(_ blockEngineType: any BlockEngineType) throws(VMMError) {
        try stage(blockEngineType, "block engine", in: &blockEngineTypes) { $0.name }
    }

    /// Adds a hook that is offered every RAM block without a backend of its own.
    public func add(_ hook: any AllocatorHook) { if !isClosed { hooks.append(hook) } }

    /// Registers a QMP command.
    public func add(_ command: QMPCommand) throws(VMMError) {
        try stage(command, "QMP command", in: &commands) { $0.name }
    }

    /// Registers a QMP event, for `query-qmp-schema`.
    public func addEvent(_ name: String, data: QMPType = .empty) throws(VMMError) {
        try check("QMP event", name, isTaken: events.contains { $0.name == name })
        events.append((name, data))
    }

    /// Registers what calls foreign modules.
    public func add(_ bridge: any ForeignBridge) throws(VMMError) {
        try check("bridge", "foreign", isTaken: self.bridge != nil)
        self.bridge = bridge
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
