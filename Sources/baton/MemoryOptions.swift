import BatonRuntime

/// `-m`, `-object memory-backend-*` and the memory part of `-machine`.
enum MemoryOptions {
    /// Bytes of guest RAM without `-m`.
    static let defaultSize: UInt64 = 128 << 20

    /// Bytes of guest RAM from `-m`.
    static func size(_ invocation: Invocation) throws(VMMError) -> UInt64? {
        var size: UInt64?
        try invocation.withLast("m") { text throws(VMMError) in size = try parse(text) }
        return size
    }

    private static func parse(_ text: String) throws(VMMError) -> UInt64? {
        let options = try KeyValueOptions(text, impliedKey: "size")
        let given = try options.size("size", defaultUnit: 1 << 20)
        // Room for memory that is plugged later, of which there is no kind: it changes nothing for the guest.
        _ = try options.number("slots", in: 0...256)
        let maximum = try options.size("maxmem")
        try options.finish()
        guard let size = given else { return nil }
        if let maximum, maximum < size {
            throw VMMError(
                "invalid value of maxmem: maximum memory size (\(Hex(maximum))) must be at least the initial "
                    + "memory size (\(Hex(size)))")
        }
        guard size >= 4096, size <= 1 << 46 else {
            throw VMMError("ram size \(size) is out of range", hint: "Use 4K to 64T, such as -m 512M.")
        }
        return size
    }

    /// Makes the memory of one `-object memory-backend-*`, whose type is taken.
    static func create(
        _ type: String, _ options: KeyValueOptions, memory: GuestMemory, loader: ModuleLoader
    ) throws(VMMError) {
        let backend = try find(type, loader)
        let id = try options.requiredIdentifier("id")
        let size = try options.requiredSize("size")
        guard size > 0, size <= 1 << 46 else {
            throw VMMError("property 'size' of \(type) doesn't take value '\(size)'")
        }
        guard let length = Mapping.roundedToPages(Int(size)) else { throw VMMError("size \(size) is too large") }
        var properties = MemoryBackendProperties(
            share: try options.bool("share"), merge: try options.bool("merge") ?? true,
            dump: try options.bool("dump") ?? true, prealloc: try options.bool("prealloc") ?? false)
        properties.hostNodes = try HostNodes(options)
        let alignment = try options.size("align") ?? UInt64(Mapping.pageSize)
        guard alignment >= UInt64(Mapping.pageSize), alignment <= 1 << 40, alignment & (alignment - 1) == 0 else {
            throw VMMError(
                "property 'align' of \(type) must be a power of two of at least the page size, not \(alignment)")
        }
        try memory.createBackend(
            type: backend, id: id,
            request: RAMRequest(name: id, usedLength: length, alignment: Int(alignment)),
            properties: properties, options: options)
        try options.finish()
    }

    private static let prefix = "memory-backend-"

    /// Whether a type of `-object` is one of memory, by its name.
    static func isBackend(_ type: String) -> Bool { type.hasPrefix(prefix) }

    /// The memory backend of a name, whose module is loaded if it is not yet.
    static func find(_ type: String, _ loader: ModuleLoader) throws(VMMError) -> any MemoryBackendType {
        if let known = loader.registry.memoryBackend(type) { return known }
        guard type.hasPrefix(prefix) else {
            throw VMMError("invalid object type: \(type)", hint: "Use -object help to list the types.")
        }
        do throws(VMMError) {
            try loader.require(kind: "memory-backend", name: String(type.dropFirst(prefix.utf8.count)))
        } catch {
            throw error.prefixed("invalid object type: \(type)")
        }
        guard let loaded = loader.registry.memoryBackend(type) else {
            throw VMMError("invalid object type: \(type)", hint: "The module of that name does not provide it.")
        }
        return loaded
    }

    /// The machine's main memory: the backend that `-machine memory-backend=`
    /// names, or a block of its own.
    /// - Parameters:
    ///   - name: of that block.
    ///   - path: `-mem-path`: the block is in a file there.
    ///   - preallocates: `-mem-prealloc`: all of the block's pages are there at once.
    static func mainMemory(
        name: String, backend: String?, size: UInt64?, path: String?, preallocates: Bool, memory: GuestMemory,
        loader: ModuleLoader
    ) throws(VMMError) -> RAMBlock {
        if let backend {
            if path != nil { throw VMMError("'-mem-path' can't be used together with '-machine memory-backend'") }
            let block = try memory.claimBackend(backend)
            if let size, UInt64(block.usedLength) != size {
                throw VMMError(
                    "Size specified by -m option must match size of explicitly specified 'memory-backend' property "
                        + "(\(size) and \(block.usedLength) bytes)")
            }
            return block
        }
        let bytes = size ?? defaultSize
        if path != nil || preallocates {
            let options = try KeyValueOptions("")
            options.set("id", name)
            options.set("size", "\(bytes)")
            if let path { options.set("mem-path", path) }
            if preallocates { options.set("prealloc", "on") }
            try create(prefix + (path == nil ? "memfd" : "file"), options, memory: memory, loader: loader)
            return try memory.claimBackend(name)
        }
        guard let length = Mapping.roundedToPages(Int(bytes)) else { throw VMMError("ram size \(bytes) is too large") }
        return try memory.allocate(RAMRequest(name: name, usedLength: length))
    }
}
