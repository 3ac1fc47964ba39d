import BatonRuntime
import CBaton

/// The module `foreign-ffi`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "foreign", name: "ffi", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(FFIBridge())
    }
}

/// Calls foreign modules through libffi, from their tables. Makes no closures,
/// which need memory that can be both written and executed.
final class FFIBridge: ForeignBridge {
    func register(
        _ descriptor: baton_module_descriptor, module: ForeignModule, registrar: ModuleRegistrar
    ) throws(VMMError) {
        guard descriptor.register_module == nil else {
            throw VMMError("it has a register function, and no fingerprint of the runtime that it was built against")
        }
        let kind = descriptor.kind.map { String(cString: $0) } ?? ""
        let name = descriptor.name.map { String(cString: $0) } ?? ""
        // Everything is checked before any of it is called.
        let methods = try MethodTable(descriptor, kind: kind, module: module)
        let table = try CommandTable(descriptor, module: module)
        for command in table.commands { try registrar.add(command) }
        for event in table.events {
            try registrar.addEvent(event.name, data: .object(name: event.name, members: event.members))
            module.events[event.name] = event.members
        }
        ForeignPreserver.listen(module, methods)
        try methods.call("init")
        switch kind {
        case "preserver": try registrar.add(try ForeignPreserver(name: name, module: module, methods: methods))
        case "mode": try registrar.add(try ForeignMode(name: name, module: module, methods: methods))
        default: try registrar.add(ForeignMemoryBackend(name: name, module: module, methods: methods))
        }
    }
}
