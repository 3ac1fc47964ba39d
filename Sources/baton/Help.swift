import BatonRuntime
import Chardev
import GuestHealth
import Monitor
import PCI
import Virtio

/// Options that only print something: `-help`, `-version`, and `help` or `?` as, or in, the argument of others.
enum Help {
    /// Prints and exits when the command line asks for it.
    static func answer(_ invocation: Invocation) throws(VMMError) {
        if invocation.has("h") { say(OptionTable.help) }
        if invocation.has("version") { say("Baton emulator version \(MonitorVersion.package)\n") }
        for spec in OptionTable.all {
            for value in invocation.all(spec.name) {
                guard let request = request(spec, value) else { continue }
                say(try text(spec, request, invocation))
            }
        }
    }

    /// Whether an option's argument asks for help.
    static func isWanted(_ invocation: Invocation, _ name: String) -> Bool {
        guard let spec = OptionTable.find(name) else { return false }
        return invocation.all(name).contains { request(spec, $0) != nil }
    }

    /// What help is wanted about.
    private enum Request {
        /// What the option can be at all.
        case all
        /// One of that: `virtio-blk-device` of `virtio-blk-device,help`.
        case one(String)
    }

    private static func request(_ spec: OptionSpec, _ value: String) -> Request? {
        switch spec.help {
        case .none: return nil
        case .word: return value == "help" || value == "?" ? .all : nil
        case .keys(let implied, _):
            guard mayAsk(value) else { return nil }
            // What cannot be parsed is told where it is used.
            guard let options = try? KeyValueOptions(value, impliedKey: implied), options.wantsHelp else { return nil }
            let first = implied.flatMap { try? options.string($0) } ?? "help"
            return first == "help" || first == "?" ? .all : .one(first)
        }
    }

    /// Whether the text has the words that ask for help, wherever: so that the
    /// arguments of a start, which may be thousands, need not be parsed for them.
    private static func mayAsk(_ value: String) -> Bool {
        let bytes = value.utf8
        return bytes.indices.contains { index in
            bytes[index] == UInt8(ascii: "?") || bytes[index...].starts(with: "help".utf8)
        }
    }

    private static func text(
        _ spec: OptionSpec, _ request: Request, _ invocation: Invocation
    ) throws(VMMError) -> String {
        switch (spec.name, request) {
        case ("machine", .all): return ModuleOptions.machineHelp(loader: try moduleLoader(invocation))
        case ("machine", .one(let name)):
            let type = try moduleLoader(invocation).machineType(name)
            guard case .keys(_, let common) = spec.help else { break }
            return DeviceProperty.help(common + type.properties, of: name)
        case ("accel", .all): return ModuleOptions.acceleratorHelp(loader: try moduleLoader(invocation))
        case ("accel", .one(let name)):
            let type = try moduleLoader(invocation).acceleratorType(name)
            guard case .keys(_, let common) = spec.help else { break }
            return DeviceProperty.help(common + type.properties, of: name)
        case ("cpu", .all):
            let type = try MachineOptions(invocation, loader: try moduleLoader(invocation)).type
            return "Available CPUs:\n" + type.cpuModels.map { "  \($0)\n" }.joined()
        case ("cpu", .one(let model)):
            let loader = try moduleLoader(invocation)
            let type = try MachineOptions(invocation, loader: loader).type
            guard type.cpuModels.contains(model) else { throw VMMError("unable to find CPU model '\(model)'") }
            var properties = type.cpuProperties(of: model)
            for name in type.accelerators {
                properties += try loader.acceleratorType(name).cpuProperties(of: model)
            }
            return DeviceProperty.help(properties, of: model)
        case ("vga", _): return "none                 no graphic card (default)\n"
        case ("display", _): return "Available display backend types:\nnone\n"
        case ("d", _): return LogOptions.help
        case ("trace", _): return LogOptions.traceHelp
        case ("chardev", .all): return ChardevFactory.help
        case ("chardev", .one(let name)):
            guard let text = ChardevFactory.help(name) else {
                throw VMMError(
                    "'\(name)' is not a valid char driver name", hint: "Use -chardev help to list the back ends.")
            }
            return text
        case ("netdev", .all), ("nic", .all), ("net", .all):
            return ModuleOptions.netHelp(loader: try moduleLoader(invocation))
        case ("netdev", .one(let type)), ("nic", .one(let type)), ("net", .one(let type)):
            return try ModuleOptions.netHelp(type, loader: try moduleLoader(invocation))
        case ("device", .all): return try ModuleOptions.deviceHelp(.all, loader: try moduleLoader(invocation))
        case ("device", .one(let name)):
            return try ModuleOptions.deviceHelp(.type(name), loader: try moduleLoader(invocation))
        case ("object", .one(let type)):
            return try ModuleOptions.objectHelp(type, loader: try moduleLoader(invocation))
        case ("object", .all): return ModuleOptions.help(.objects, loader: try moduleLoader(invocation))
        case ("module", _): return ModuleOptions.help(.modules, loader: try moduleLoader(invocation))
        case ("cpr-enable", _): return ModuleOptions.help(.modes, loader: try moduleLoader(invocation))
        default: break
        }
        guard case .keys(_, let properties) = spec.help else { return "" }
        return DeviceProperty.help(properties, of: spec.name)
    }

    /// A loader with the modules that the command line names.
    private static func moduleLoader(_ invocation: Invocation) throws(VMMError) -> ModuleLoader {
        let loader = ModuleLoader(registry: ModuleRegistry())
        loader.registry.addBuiltIn(RAMMemoryBackend())
        loader.registry.addBuiltIn(IOThreadType())
        for type in EntropySource.all { loader.registry.addBuiltIn(type) }
        for type in guestHealthDeviceTypes() + pciDeviceTypes() { loader.registry.addBuiltIn(type) }
        for path in invocation.all("module") where path != "help" && path != "?" { try loader.load(path: path) }
        return loader
    }
}
