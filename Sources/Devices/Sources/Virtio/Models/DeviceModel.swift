import BatonRuntime

/// A device type that is built in.
public final class DeviceModel: DeviceType {
    public let name: String
    public let bus: String
    public let category: DeviceCategory
    /// Made when somebody asks: most types are not used in any one machine.
    public private(set) lazy var properties = makeProperties()
    /// Those on PCI, and those on the buses of such.
    public let isHotPluggable: Bool
    private let makeProperties: () -> [DeviceProperty]
    private let build: (DeviceFactory, DeviceOptions) throws(VMMError) -> Void

    init(
        name: String, bus: String, category: DeviceCategory, isHotPluggable: Bool = false,
        properties: @escaping @autoclosure () -> [DeviceProperty],
        make: @escaping (DeviceFactory, DeviceOptions) throws(VMMError) -> Void
    ) {
        self.name = name
        self.bus = bus
        self.category = category
        self.isHotPluggable = isHotPluggable
        makeProperties = properties
        build = make
    }

    public func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        guard let factory = context as? DeviceFactory else {
            throw VMMError("Device '\(name)' can't be made for this machine")
        }
        try build(factory, options)
    }

    public static let all: [DeviceModel] =
        [
            DeviceModel(
                name: "virtconsole", bus: VirtioSerial.busType, category: .input, isHotPluggable: true,
                properties: port,
                make: { factory, options throws(VMMError) in try factory.addSerialPort(options, isConsole: true) }),
            DeviceModel(
                name: "virtserialport", bus: VirtioSerial.busType, category: .input, isHotPluggable: true,
                properties: port,
                make: { factory, options throws(VMMError) in try factory.addSerialPort(options, isConsole: false) }),
            DeviceModel(
                name: "scsi-hd", bus: VirtioSCSI.busType, category: .storage, isHotPluggable: true,
                properties: scsiDisk,
                make: { factory, options throws(VMMError) in try factory.addSCSIDisk(options, isCD: false) }),
            DeviceModel(
                name: "scsi-cd", bus: VirtioSCSI.busType, category: .storage, isHotPluggable: true,
                properties: scsiDisk,
                make: { factory, options throws(VMMError) in try factory.addSCSIDisk(options, isCD: true) }),
        ]
        + onBothBuses("virtio-blk", .storage, disk) { factory, options, bus throws(VMMError) in
            try factory.addBlock(options, bus)
        }
        + onBothBuses("virtio-scsi", .storage, scsi) { factory, options, bus throws(VMMError) in
            try factory.addSCSI(options, bus)
        }
        + onBothBuses("virtio-net", .network, card) { factory, options, bus throws(VMMError) in
            try factory.addNet(options, bus)
        }
        + onBothBuses("virtio-rng", .misc, [DeviceProperty("rng", "str", "id of the -object behind it")]) {
            factory, options, bus throws(VMMError) in
            try factory.addEntropy(options, bus)
        }
        + onBothBuses("virtio-balloon", .misc, balloon) { factory, options, bus throws(VMMError) in
            try factory.addBalloon(options, bus)
        }
        + onBothBuses(
            "virtio-serial", .input,
            [DeviceProperty("max_ports", "uint32", "ports, 1 to 511 (default 31, or 1 with a single virtconsole)")]
        ) { factory, options, bus throws(VMMError) in
            try factory.addSerial(options, bus)
        }

    private static let balloon = [
        DeviceProperty("deflate-on-oom", "bool", "whether the guest may take pages back by itself (default off)"),
        DeviceProperty("free-page-reporting", "bool", "whether unused pages go back to the host (default off)"),
        DeviceProperty("page-poison", "bool", "whether the guest says what free pages are filled with (default on)"),
        DeviceProperty("guest-stats-polling-interval", "int", "seconds between statistics; 0, the default, for none"),
        DeviceProperty("free-page-hint", "bool", "off: no migration would use it"),
    ]
    private static let port = [
        DeviceProperty("chardev", "str", "id of the -chardev where its bytes go and come from"),
        DeviceProperty("name", "str", "what the guest finds it by: /dev/virtio-ports/NAME"),
        DeviceProperty("nr", "uint32", "its number; 0 is for a console (default the first free one)"),
    ]
    /// Of disks of every kind.
    private static let anyDisk = [
        DeviceProperty("drive", "str", "id of the -drive or -blockdev behind it"),
        DeviceProperty("serial", "str", "serial number, at most 20 bytes (36 by SCSI) of which the guest sees"),
        DeviceProperty("share-rw", "bool", "whether others may write to the image at the same time"),
        DeviceProperty("write-cache", "OnOffAuto", "whether a flush is what makes data durable"),
        DeviceProperty("werror", "BlockdevOnError", "report, ignore, enospc (default) or stop"),
        DeviceProperty("rerror", "BlockdevOnError", "report (default), ignore, enospc or stop"),
        DeviceProperty("bootindex", "int32", "accepted for QEMU's sake"),
    ]
    private static let disk =
        anyDisk + [
            DeviceProperty("num-queues", "uint16", "queues, 1 to 64 (default 1)"),
            DeviceProperty("queue-size", "uint16", "requests in a queue: a power of 2 from 4 to 1024 (default 256)"),
            DeviceProperty("config-wce", "bool", "whether the guest may change the cache (default on)"),
            DeviceProperty("iothread", "str", "id of an -object iothread"),
        ]
    private static let scsi = [
        DeviceProperty("num_queues", "uint32", "queues of requests, 1 to 64 (default 1)"),
        DeviceProperty("virtqueue_size", "uint32", "requests in a queue: a power of 2 from 4 to 1024 (default 256)"),
        DeviceProperty("max_sectors", "uint32", "sectors in a request (default 65535)"),
        DeviceProperty("cmd_per_lun", "uint32", "requests to a disk at a time (default 128)"),
        DeviceProperty("iothread", "str", "id of an -object iothread"),
    ]
    private static let scsiDisk =
        anyDisk + [
            DeviceProperty("channel", "uint32", "0, as there is one"),
            DeviceProperty("scsi-id", "uint32", "target, 0 to 255 (default the first free one)"),
            DeviceProperty("lun", "uint32", "logical unit, 0 to 16383 (default the first free one)"),
            DeviceProperty("vendor", "str", "name of the maker, at most 8 bytes"),
            DeviceProperty("product", "str", "name of the model, at most 16 bytes"),
            DeviceProperty("ver", "str", "version of the model, at most 4 bytes"),
            DeviceProperty("device_id", "str", "name of the disk (default its serial number, or the drive's id)"),
            DeviceProperty("wwn", "uint64", "world wide name; 0 for none"),
            DeviceProperty("rotation_rate", "uint16", "turns a minute; 1 for none (default unknown)"),
        ]
    private static let card =
        [
            DeviceProperty("netdev", "str", "id of the -netdev behind it"),
            DeviceProperty("mac", "str", "Ethernet address, as 52:54:00:12:34:56"),
            DeviceProperty("bootindex", "int32", "accepted for QEMU's sake"),
        ] + VirtioNetFeature.properties

    /// `NAME-device` for virtio-mmio and `NAME-pci`.
    private static func onBothBuses(
        _ name: String, _ category: DeviceCategory, _ properties: @escaping @autoclosure () -> [DeviceProperty],
        _ make: @escaping (DeviceFactory, DeviceOptions, _ busType: String) throws(VMMError) -> Void
    ) -> [DeviceModel] {
        let variants: [(bus: String, suffix: String, more: () -> [DeviceProperty])] = [
            (VirtioMMIO.busType, "device", { [] }), (PCIBus.busType, "pci", { DeviceProperty.virtioPCI }),
        ]
        return variants.map { bus, suffix, more in
            DeviceModel(
                name: "\(name)-\(suffix)", bus: bus, category: category,
                isHotPluggable: bus == PCIBus.busType, properties: properties() + more(),
                make: { factory, options throws(VMMError) in try make(factory, options, bus) })
        }
    }

    /// The text of `-device help`: built-in types and those of modules.
    public static func help(_ types: [any DeviceType]) -> String {
        var text = ""
        for category in DeviceCategory.allCases {
            let lines = types.filter { $0.category == category }.sorted { $0.name < $1.name }.map(\.helpLine)
            guard !lines.isEmpty else { continue }
            text += (text.isEmpty ? "" : "\n") + "\(category.rawValue) devices:\n" + lines.joined()
        }
        return text
    }

    /// What the argument of `-device` asks to explain: `help` everything,
    /// `NAME,help` one type; nil when it asks for nothing.
    public static func helpRequest(_ argument: String) -> HelpRequest? {
        if argument == "help" || argument == "?" { return .all }
        let words = argument.split(separator: "," as Character)
        guard words.count >= 2, words.dropFirst().contains(where: { $0 == "help" || $0 == "?" }) else { return nil }
        return .type(String(words[0]))
    }

    public enum HelpRequest: Equatable {
        case all
        case type(String)
    }
}
