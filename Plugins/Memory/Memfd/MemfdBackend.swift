import BatonRuntime

/// The module `memory-backend-memfd`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "memory-backend", name: "memfd", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(MemfdBackend())
    }
}

/// `-object memory-backend-memfd,id=ID,size=SIZE[,share=on|off][,seal=on|off][,hugetlb=on|off][,hugetlbsize=SIZE]`:
/// memory in a memfd, shared unless told otherwise, as QEMU's.
///
/// With `hugetlb=on` it is of huge pages, all of which are reserved at the start. The new VMM of an update maps the same
/// ones: it needs none of its own.
final class MemfdBackend: MemoryBackendType {
    let typeName = "memory-backend-memfd"
    let summary = "memory in a memfd; preserved by restart unless share=off"

    let properties = [
        DeviceProperty("seal", "bool", "whether its size is sealed"),
        DeviceProperty("hugetlb", "bool", "whether it is of the host's huge pages"),
        DeviceProperty("hugetlbsize", "size", "bytes of a huge page; the host's default if not given"),
    ]

    func makeBlock(
        _ request: RAMRequest, common: MemoryBackendProperties, options: KeyValueOptions, memory: GuestMemory
    ) throws(VMMError) -> RAMBlock {
        // QEMU seals a memfd against resizing by default.
        let seal = try options.bool("seal") ?? true
        let isHuge = try options.bool("hugetlb") ?? false
        let size = try options.size("hugetlbsize")
        var request = request
        var pages: HugePages?
        if isHuge {
            let kind = try HugePages(size: size == 0 ? nil : size)
            pages = kind
            request.maxLength = kind.rounded(request.maxLength)
            request.alignment = max(request.alignment, kind.size)
        }
        return try memory.preservedBlock(request, shared: common.share ?? true, origin: typeName) {
            () throws(VMMError) in
            try Mapping.createMemfd(
                name: "memory-backend-memfd", length: request.maxLength, sealSize: seal, hugePages: pages
            ).release()
        }
    }
}
