import BatonRuntime

/// `-object`: memory backends, and what modules have besides.
final class ObjectOptions {
    private let vm: VirtualMachine
    private let memory: GuestMemory
    private let loader: ModuleLoader
    /// Those that are no memory backends.
    private var others: [String: any ObjectType] = [:]

    init(vm: VirtualMachine, memory: GuestMemory, loader: ModuleLoader) {
        (self.vm, self.memory, self.loader) = (vm, memory, loader)
    }

    /// Makes one of the command line's.
    func create(_ text: String) throws(VMMError) {
        let options = try KeyValueOptions(text, impliedKey: "qom-type", style: .keyval)
        let type = try options.requiredString("qom-type")
        let known = MemoryOptions.isBackend(type) ? nil : try loader.objectType(type)
        if let id = try options.identifier("id"), others[id] != nil || known != nil && memory.backend(id) != nil {
            throw VMMError("attempt to add duplicate property '\(id)' to object (type 'container')")
        }
        guard let known else { return try MemoryOptions.create(type, options, memory: memory, loader: loader) }
        let id = try options.requiredIdentifier("id")
        try known.make(id: id, options, vm: vm)
        others[id] = known
    }

    /// Makes one while the machine exists.
    func plug(_ text: String) throws(VMMError) {
        let options = try KeyValueOptions(text, impliedKey: "qom-type", style: .keyval)
        let type = try options.requiredString("qom-type")
        guard !MemoryOptions.isBackend(type) else {
            throw VMMError(
                "object '\(type)' cannot be added while the machine exists",
                hint: "Nothing that could be plugged would use it: give memory on the command line.")
        }
        try create(text)
    }

    /// Takes one away.
    func remove(_ id: String) throws(VMMError) {
        guard let type = others[id] else {
            if memory.backend(id) != nil { throw VMMError("object '\(id)' is in use, can not be deleted") }
            throw VMMError("object '\(id)' not found")
        }
        try type.remove(id: id, vm: vm)
        others[id] = nil
    }
}
