import BatonRuntime
import Glibc
import Virtio

/// `-module`, `-cpr-enable`, and the lists of what is there.
enum ModuleOptions {
    static func load(_ invocation: Invocation, loader: ModuleLoader) throws(VMMError) {
        for path in invocation.all("module") { try loader.load(path: path) }
    }

    static func enableModes(_ invocation: Invocation, cpr: CprController, loader: ModuleLoader) throws(VMMError) {
        for list in invocation.all("cpr-enable") {
            for name in list.split(separator: ",", omittingEmptySubsequences: false).map(String.init) {
                do throws(VMMError) {
                    cpr.enable(try mode(name, loader: loader))
                } catch {
                    throw error.prefixed("-cpr-enable \(name)")
                }
            }
        }
        cpr.modeLoader = { name throws(VMMError) in try mode(name, loader: loader) }
    }

    /// A mode, whose module is loaded if it is not yet.
    private static func mode(_ name: String, loader: ModuleLoader) throws(VMMError) -> any CprMode {
        if loader.registry.mode(name) == nil { try loader.require(kind: "mode", name: name) }
        guard let mode = loader.registry.mode(name) else {
            throw VMMError("the module of that name does not provide the mode")
        }
        return mode
    }

    /// Enables the modes that QEMU's options imply: a machine whose memory is
    /// all shared can be restarted, and a process that takes over a guest as
    /// QEMU's does (`-incoming`) needs no other word about it.
    static func enableImpliedModes(
        machine: MachineOptions, incoming: Bool, cpr: CprController, loader: ModuleLoader
    ) throws(VMMError) {
        if machine.sharesAuxiliaryRAM { cpr.enable(try mode("restart", loader: loader)) }
        if incoming, let inherited = cpr.inherited { cpr.enable(try mode(inherited.mode, loader: loader)) }
    }

    /// What `-module help`, `-cpr-enable help` and `-object help` print.
    static func help(_ kind: HelpKind, loader: ModuleLoader) -> String {
        let broken = loadAll(loader) { kind.includes($0) }
        let registry = loader.registry
        var lines: [String] = []
        switch kind {
        case .modules:
            lines.append("Modules (searched in \(loader.directories.joined(separator: ", "))):")
            for module in loader.loaded { lines.append(row("\(module.kind)-\(module.name)", module.path)) }
        case .modes:
            lines.append("CPR modes:")
            for mode in registry.modes {
                lines.append(row(mode.name, "\(mode.summary) (\(registry.origin(kind: "mode", name: mode.name)))"))
            }
        case .objects:
            lines.append("List of user creatable objects:")
            for backend in registry.memoryBackends {
                let origin = registry.origin(kind: "memory backend", name: backend.typeName)
                lines.append(row(backend.typeName, "\(backend.summary) (\(origin))"))
            }
            for type in registry.objectTypes {
                let origin = registry.origin(kind: "object type", name: type.name)
                lines.append(row(type.name, "\(type.summary) (\(origin))"))
            }
        }
        warn(broken)
        return lines.joined(separator: "\n") + "\n"
    }

    /// To say what a module provides it must be loaded; one that cannot be is
    /// a warning here.
    private static func loadAll(_ loader: ModuleLoader, _ isWanted: (String) -> Bool) -> [String: String] {
        var broken: [String: String] = [:]
        for candidate in loader.discover() where isWanted(candidate.kind) {
            do throws(VMMError) {
                try loader.load(path: candidate.path)
            } catch {
                broken[candidate.path] = error.message
            }
        }
        return broken
    }

    private static func warn(_ broken: [String: String]) {
        for (path, reason) in broken.sorted(by: { $0.key < $1.key }) { Report.warning("\(path): \(reason)") }
    }

    /// What `-device help` and `-device NAME,help` print.
    static func deviceHelp(_ request: DeviceModel.HelpRequest, loader: ModuleLoader) throws(VMMError) -> String {
        switch request {
        case .all:
            warn(loadAll(loader) { ["device", "preserver"].contains($0) })
            return DeviceModel.help(DeviceModel.all + loader.registry.deviceTypes)
        case .type(let name):
            if let model = DeviceModel.all.first(where: { $0.name == name }) { return model.help }
            guard let type = try loader.deviceType(name) else {
                throw VMMError(
                    "'\(name)' is not a valid device model name", hint: "Use -device help to list the models.")
            }
            return type.help
        }
    }

    /// What `-object TYPE,help` prints.
    static func objectHelp(_ type: String, loader: ModuleLoader) throws(VMMError) -> String {
        if !MemoryOptions.isBackend(type), let known = try loader.objectType(type) { return known.help }
        return try MemoryOptions.find(type, loader).help
    }

    /// What `-netdev TYPE,help` prints.
    static func netHelp(_ type: String, loader: ModuleLoader) throws(VMMError) -> String {
        if let text = NetBackendFactory.help(type) { return text }
        guard let known = try loader.netBackendType(type) else {
            throw VMMError(
                "Parameter 'type' does not accept value '\(type)'",
                hint: "Use -netdev help to list the network back ends.")
        }
        return DeviceProperty.help(known.properties, of: type)
    }

    /// What `-netdev help` prints.
    static func netHelp(loader: ModuleLoader) -> String {
        warn(loadAll(loader) { ["device", "preserver"].contains($0) })
        let types = NetBackendFactory.types + loader.registry.netBackendTypes.map(\.name)
        return "Available netdev backend types:\n" + types.sorted().map { $0 + "\n" }.joined()
    }

    /// What `-machine help` prints.
    static func machineHelp(loader: ModuleLoader) -> String {
        warn(loadAll(loader) { $0 == "machine" })
        return "Supported machines are:\n"
            + loader.registry.machineTypes.map { type in
                let name = type.name + String(repeating: " ", count: max(1, 21 - type.name.utf8.count))
                return name + type.summary + (type.name == MachineOptions.defaultMachine ? " (default)" : "") + "\n"
            }.joined()
    }

    /// What `-accel help` prints.
    static func acceleratorHelp(loader: ModuleLoader) -> String {
        warn(loadAll(loader) { $0 == "accel" })
        return "Accelerators supported in Baton binary:\n"
            + loader.registry.acceleratorTypes.map { $0.name + "\n" }.joined()
    }

    enum HelpKind {
        case modules, modes, objects

        func includes(_ kind: String) -> Bool {
            switch self {
            case .modules: true
            case .modes: kind == "mode"
            case .objects: ["memory-backend", "preserver"].contains(kind)
            }
        }
    }

    private static func row(_ name: String, _ text: String) -> String {
        "  " + name + String(repeating: " ", count: max(1, 24 - name.utf8.count)) + text
    }
}
