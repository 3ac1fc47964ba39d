import BatonRuntime

/// `vhost-user-blk-device`, `vhost-user-fs-device`, `vhost-user-vsock-device`: options as QEMU's.
final class VhostUserDeviceType: DeviceType {
    let name: String
    let summary: String
    let bus: String
    let category: DeviceCategory
    let properties: [DeviceProperty]
    private let preserver: VhostUserPreserver
    private let kind: (DeviceOptions) throws(VMMError) -> DeviceKind

    private init(
        name: String, summary: String, bus: String, category: DeviceCategory = .storage, properties: [DeviceProperty],
        preserver: VhostUserPreserver,
        kind: @escaping (DeviceOptions) throws(VMMError) -> DeviceKind
    ) {
        self.name = name
        self.summary = summary
        self.bus = bus
        self.category = category
        self.properties = properties
        self.preserver = preserver
        self.kind = kind
    }

    /// The types of this module, each for virtio-mmio and for PCI.
    static func all(_ preserver: VhostUserPreserver) -> [VhostUserDeviceType] {
        [
            (suffix: "device", bus: "virtio-bus", more: []),
            (suffix: "pci", bus: "PCI", more: DeviceProperty.virtioPCI),
        ].flatMap { variant in
            [
                VhostUserDeviceType(
                    name: "vhost-user-blk-\(variant.suffix)", summary: "disk of a vhost-user process",
                    bus: variant.bus, properties: BlockKind.properties + variant.more, preserver: preserver,
                    kind: { options throws(VMMError) in try BlockKind.make(options) }),
                VhostUserDeviceType(
                    name: "vhost-user-fs-\(variant.suffix)", summary: "file system of a vhost-user process",
                    bus: variant.bus, properties: FileSystemKind.properties + variant.more, preserver: preserver,
                    kind: { options throws(VMMError) in try FileSystemKind.make(options) }),
                VhostUserDeviceType(
                    name: "vhost-user-vsock-\(variant.suffix)", summary: "sockets between guest and host",
                    bus: variant.bus, category: .misc, properties: VsockKind.properties + variant.more,
                    preserver: preserver, kind: { options throws(VMMError) in try VsockKind.make(options) }),
            ]
        }
    }

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        let kind = try kind(options)
        guard let id = try options.text("chardev") else { throw VMMError("chardev is mandatory") }
        guard let chardev = context.vm.chardev(id) else { throw options.notFound("chardev", id) }
        let device: VhostUserDevice =
            if kind.losesConnections {
                try VhostUserVsock(kind: kind, chardev: chardev, vm: context.vm)
            } else {
                try VhostUserDevice(kind: kind, chardev: chardev, vm: context.vm)
            }
        try context.plug(device, busType: bus, options: options)
        preserver.add(device)
    }
}

extension DeviceOptions {
    /// `queue-size=`: a power of two, at most what split rings here take.
    func queueSize() throws(VMMError) -> UInt16 {
        let size = try options.number("queue-size", in: 1...1024) ?? 128
        guard size & (size - 1) == 0 else { throw VMMError("queue-size property must be a power of 2") }
        return UInt16(size)
    }
}

/// virtio-blk (virtio 1.3, 5.2): the configuration space is the back end's.
enum BlockKind {
    static let properties = [
        DeviceProperty("chardev", "str", "socket of the back end"),
        DeviceProperty("num-queues", "uint16"),
        DeviceProperty("queue-size", "uint32"),
        DeviceProperty("config-wce", "bool", "whether the guest may switch the write cache"),
    ]
    private static let multiQueue: UInt64 = 1 << 12
    private static let configWCE: UInt64 = 1 << 11
    /// SIZE_MAX, SEG_MAX, GEOMETRY, RO, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE,
    /// MQ, DISCARD, WRITE_ZEROES.
    private static let features: UInt64 =
        1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | configWCE | multiQueue | 1 << 13 | 1 << 14
    /// Up to and with the fields of WRITE_ZEROES.
    private static let configSize = 60

    static func make(_ options: DeviceOptions) throws(VMMError) -> DeviceKind {
        let queues = Int(try options.options.number("num-queues", in: 1...64) ?? 1)
        let hasWCE = try options.options.bool("config-wce") ?? true
        return DeviceKind(
            model: "vhost-user-blk", deviceID: 2, features: features,
            withheld: (queues > 1 ? 0 : multiQueue) | (hasWCE ? 0 : configWCE), queueCount: queues,
            queueSize: try options.queueSize(), backendConfigSize: configSize,
            config: { config in
                var config = config
                // num_queues: those of this device, not of the back end.
                if config.count >= 36 { config.replaceSubrange(34..<36, with: littleEndianBytes(UInt16(queues))) }
                return config
            },
            writableConfig: hasWCE ? 32..<33 : 0..<0, isStateless: true, runsEmpty: true)
    }
}

/// virtio-fs (virtio 1.3, 5.11): the configuration space is the VMM's.
enum FileSystemKind {
    static let properties = [
        DeviceProperty("chardev", "str", "socket of the back end"),
        DeviceProperty("tag", "str", "by which the guest mounts it"),
        DeviceProperty("num-request-queues", "uint16"),
        DeviceProperty("queue-size", "uint16"),
    ]
    private static let tagSize = 36

    static func make(_ options: DeviceOptions) throws(VMMError) -> DeviceKind {
        guard let tag = try options.text("tag"), !tag.isEmpty else { throw VMMError("missing tag property") }
        guard tag.utf8.count <= tagSize else { throw VMMError("tag property must be \(tagSize) bytes or less") }
        let queues = Int(try options.options.number("num-request-queues", in: 1...63) ?? 1)
        let config =
            Array(tag.utf8) + [UInt8](repeating: 0, count: tagSize - tag.utf8.count)
            + littleEndianBytes(UInt32(queues))
        return DeviceKind(
            model: "vhost-user-fs", deviceID: 26, features: 0, queueCount: 1 + queues,
            queueSize: try options.queueSize(), backendConfigSize: 0, config: { _ in config }, isStateless: false,
            runsEmpty: false)
    }
}
