import BatonRuntime
import Glibc

/// A memory backend whose memory a foreign module makes.
final class ForeignMemoryBackend: MemoryBackendType {
    let typeName: String
    let summary: String
    private let module: ForeignModule
    private let methods: MethodTable

    init(name: String, module: ForeignModule, methods: MethodTable) {
        typeName = "memory-backend-\(name)"
        self.module = module
        self.methods = methods
        summary = methods["summary"]?.callForText() ?? "(a foreign module)"
    }

    func makeBlock(
        _ request: RAMRequest, common: MemoryBackendProperties, options: KeyValueOptions, memory: GuestMemory
    ) throws(VMMError) -> RAMBlock {
        module.options = options
        defer { module.options = nil }
        let size = ForeignFunction.Value.uint64(UInt64(request.maxLength))
        try methods.call("check") { [$0.text(request.name), size] }
        var isNew = false
        let block = try memory.preservedBlock(request, shared: common.share ?? true, origin: typeName) {
            () throws(VMMError) in
            isNew = true
            return try make(request, size)
        }
        // Memory of the process before: nobody reads the options that only
        // `make` knows, which that process has accepted.
        if !isNew { for key in options.untakenKeys { _ = try? options.string(key) } }
        return block
    }

    /// - Returns: a descriptor that the caller owns.
    private func make(_ request: RAMRequest, _ size: ForeignFunction.Value) throws(VMMError) -> Int32 {
        guard let function = methods["make"] else { throw VMMError("\(typeName): there is no 'make'") }
        let fd = try function.callForDescriptor([function.text(request.name), size])
        let length = try Mapping.fileLength(fd.raw)
        guard length >= request.maxLength else {
            throw VMMError("\(module.name): 'make' returned \(length) bytes of memory, not \(request.maxLength)")
        }
        return fd.release()
    }
}
