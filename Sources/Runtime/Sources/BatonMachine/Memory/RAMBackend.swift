import BatonBase

/// `-object memory-backend-ram`: anonymous memory, which no descriptor names
/// even with `share=on`. In the core, as it needs nothing of a module.
public final class RAMMemoryBackend: MemoryBackendType {
    public let typeName = "memory-backend-ram"
    public let summary = "anonymous memory, lost when the VMM is replaced"
    public init() {}

    public func makeBlock(
        _ request: RAMRequest, common: MemoryBackendProperties, options: KeyValueOptions, memory: GuestMemory
    ) throws(VMMError) -> RAMBlock {
        let host = try Mapping.map(
            length: request.maxLength, alignment: request.alignment, fd: -1, shared: common.share ?? false,
            name: request.name)
        return RAMBlock(
            name: request.name, usedLength: request.usedLength, maxLength: request.maxLength,
            alignment: request.alignment, host: host, fd: -1, shared: common.share ?? false, origin: typeName)
    }
}
