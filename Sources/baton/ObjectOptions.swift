import BatonRuntime

/// `-object`: memory backends, and what modules have besides.
enum ObjectOptions {
    static func createAll(
        _ invocation: Invocation, vm: VirtualMachine, memory: GuestMemory, loader: ModuleLoader
    ) throws(VMMError) {
        var others: Set<String> = []
        try invocation.each("object") { text throws(VMMError) in
            let options = try KeyValueOptions(text, impliedKey: "qom-type", style: .keyval)
            let type = try options.requiredString("qom-type")
            let known = MemoryOptions.isBackend(type) ? nil : try loader.objectType(type)
            if let id = try options.identifier("id"), others.contains(id) || known != nil && memory.backend(id) != nil {
                throw VMMError("attempt to add duplicate property '\(id)' to object (type 'container')")
            }
            if let known {
                let id = try options.requiredIdentifier("id")
                try known.make(id: id, options, vm: vm)
                others.insert(id)
            } else {
                try MemoryOptions.create(type, options, memory: memory, loader: loader)
            }
        }
    }
}
