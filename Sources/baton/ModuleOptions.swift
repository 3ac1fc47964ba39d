import BatonRuntime
import Glibc

/// `-module`, `-cpr-enable`, and the lists of what is there.
enum ModuleOptions {
    static func load(_ invocation: Invocation, loader: ModuleLoader) throws(VMMError) {
        for path in invocation.all("module") { try loader.load(path: path) }
    }

    static func enableModes(_ invocation: Invocation, cpr: CprController, loader: ModuleLoader) throws(VMMError) {
        for list in invocation.all("cpr-enable") {
            for name in list.split(separator: ",").map(String.init) {
                if loader.registry.mode(name) == nil {
                    do throws(VMMError) {
                        try loader.require(kind: "mode", name: name)
                    } catch {
                        throw error.prefixed("-cpr-enable \(name)")
                    }
                }
                guard let mode = loader.registry.mode(name) else {
                    throw VMMError("-cpr-enable \(name): the module of that name does not provide the mode")
                }
                cpr.enable(mode)
            }
        }
    }

    /// What `-module help`, `-cpr-enable help` and `-object help` print.
    static func help(_ kind: HelpKind, loader: ModuleLoader) -> String {
        // To say what a module provides it must be loaded; one that cannot be
        // is a warning here.
        var broken: [String: String] = [:]
        for candidate in loader.discover() where kind.includes(candidate.kind) {
            do throws(VMMError) { try loader.load(path: candidate.path) } catch { broken[candidate.path] = error.message }
        }
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
        }
        for (path, reason) in broken.sorted(by: { $0.key < $1.key }) { Report.warning("\(path): \(reason)") }
        return lines.joined(separator: "\n") + "\n"
    }

    enum HelpKind {
        case modules, modes, objects

        func includes(_ kind: String) -> Bool {
            switch self {
            case .modules: true
            case .modes: kind == "mode"
            case .objects: kind == "memory-backend"
            }
        }
    }

    private static func row(_ name: String, _ text: String) -> String {
        "  " + name + String(repeating: " ", count: max(1, 24 - name.utf8.count)) + text
    }
}
