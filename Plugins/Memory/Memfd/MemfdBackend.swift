import BatonRuntime

/// The module `memory-backend-memfd`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "memory-backend", name: "memfd", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(MemfdBackend())
    }
}

/// `-object memory-backend-memfd,id=ID,size=SIZE[,share=on|off][,seal=on|off]`:
/// memory in a memfd, shared unless told otherwise, as QEMU's.
final class MemfdBackend: MemoryBackendType {
    let typeName = "memory-backend-memfd"
    let summary = "memory in a memfd; preserved by restart unless share=off"

    let properties = [DeviceProperty("seal", "bool", "whether its size is sealed")]

    func makeBlock(
        _ request: RAMRequest, common: MemoryBackendProperties, options: KeyValueOptions, memory: GuestMemory
    ) throws(VMMError) -> RAMBlock {
        // QEMU seals a memfd against resizing by default.
        let seal = try options.bool("seal") ?? true
        return try memory.preservedBlock(request, shared: common.share ?? true, origin: typeName) {
            () throws(VMMError) in
            try Mapping.createMemfd(name: "memory-backend-memfd", length: request.maxLength, sealSize: seal).release()
        }
    }
}
