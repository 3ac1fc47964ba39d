import BatonBase

/// A request for guest memory.
public struct RAMRequest {
    /// Identifies the block over an update; unique in the VM.
    public var name: String
    /// Bytes that the guest sees; a positive multiple of the page size.
    public var usedLength: Int
    /// Bytes reserved for growth; at least `usedLength`, whole pages.
    public var maxLength: Int
    /// A power of two, at least the page size.
    public var alignment: Int

    public init(name: String, usedLength: Int, maxLength: Int? = nil, alignment: Int = Mapping.pageSize) {
        self.name = name
        self.usedLength = usedLength
        self.maxLength = maxLength ?? usedLength
        self.alignment = alignment
    }
}

/// A type of memory backend: what `-object TYPE,id=…` makes.
///
/// Implemented by modules named `memory-backend-NAME`.
public protocol MemoryBackendType: AnyObject {
    /// As on the command line: `memory-backend-NAME`.
    var typeName: String { get }
    /// One line for `-object help`.
    var summary: String { get }
    /// What it takes besides what every memory backend does, for `-object TYPE,help`.
    var properties: [DeviceProperty] { get }
    /// Makes the block of one object.
    ///
    /// The backend takes its own keys from `options`; what every memory backend
    /// has has been taken, and is in `request` and `common`.
    /// - Parameters:
    ///   - memory: where blocks that outlive an exec are recorded and found.
    /// - Returns: a block that owns its mapping and descriptor.
    func makeBlock(
        _ request: RAMRequest, common: MemoryBackendProperties, options: KeyValueOptions, memory: GuestMemory
    ) throws(VMMError) -> RAMBlock
}

extension MemoryBackendType {
    public var properties: [DeviceProperty] { [] }

    /// The text of `-object TYPE,help`.
    public var help: String {
        "\(typeName) options:\n" + (MemoryBackendProperties.all + properties).map(\.help).joined()
    }
}

/// The properties that every memory backend has, as QEMU's `HostMemoryBackend`.
public struct MemoryBackendProperties {
    /// `share=`: nil when not given; each backend has its own default.
    public var share: Bool?
    /// `merge=`: KSM may merge equal pages.
    public var merge: Bool
    /// `dump=`: the memory is part of a core dump.
    public var dump: Bool
    /// `prealloc=`: populate the memory at start.
    public var prealloc: Bool
    /// `host-nodes=` and `policy=`; nil for the default policy.
    public var hostNodes: HostNodes?

    static let all = [
        DeviceProperty("size", "size", "bytes of memory"),
        DeviceProperty("share", "bool", "whether it is shared, and so outlives the VMM"),
        DeviceProperty("merge", "bool", "whether equal pages may be merged"),
        DeviceProperty("dump", "bool", "whether it is part of a core dump"),
        DeviceProperty("prealloc", "bool", "whether it is allocated at the start"),
        DeviceProperty("align", "size", "alignment of the mapping"),
        DeviceProperty("host-nodes", "list", "the host's NUMA nodes that it comes from, as 0-1"),
        DeviceProperty("policy", "str", "how: default, preferred, bind or interleave"),
    ]

    public init(share: Bool? = nil, merge: Bool = true, dump: Bool = true, prealloc: Bool = false) {
        self.share = share
        self.merge = merge
        self.dump = dump
        self.prealloc = prealloc
    }
}

/// Is offered every RAM block that has no backend of its own: flash, ROM,
/// device memory, and main memory without `memory-backend=`.
public protocol AllocatorHook: AnyObject {
    /// For `info ramblock` and traces: the mode that the hook belongs to.
    var hookName: String { get }
    /// - Returns: a block, or nil to leave the request to the next hook and,
    ///   at last, to anonymous memory.
    func allocate(_ request: RAMRequest, memory: GuestMemory) throws(VMMError) -> RAMBlock?
}
