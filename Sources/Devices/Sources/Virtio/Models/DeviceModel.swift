import BatonRuntime

/// A device type that is built in.
public final class DeviceModel: DeviceType {
    public let name: String
    public let bus: String
    public let category: DeviceCategory
    /// Made when somebody asks: most types are not used in any one machine.
    public private(set) lazy var properties = makeProperties()
    /// Those on PCI with nothing that another process serves.
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
                name: "virtconsole", bus: "virtio-serial-bus", category: .input,
                properties: [DeviceProperty("chardev", "str", "where the console's bytes go and come from")],
                make: { factory, options throws(VMMError) in try factory.addConsolePort(options) })
        ]
        + onBothBuses("virtio-blk", .storage, disk) { factory, options, bus throws(VMMError) in
            try factory.addBlock(options, bus)
        }
        + onBothBuses("virtio-net", .network, card) { factory, options, bus throws(VMMError) in
            try factory.addNet(options, bus)
        }
        + onBothBuses("virtio-rng", .misc, [DeviceProperty("rng", "str", "id of the -object behind it")]) {
            factory, options, bus throws(VMMError) in
            try factory.addEntropy(options, bus)
        }
        + onBothBuses("virtio-serial", .input, []) { factory, options, bus throws(VMMError) in
            try factory.addSerial(options, bus)
        }

    private static let disk = [
        DeviceProperty("drive", "str", "id of the -drive or -blockdev behind it"),
        DeviceProperty("serial", "str", "serial number, at most 20 bytes of which the guest sees"),
        DeviceProperty("share-rw", "bool", "whether others may write to the image at the same time"),
        DeviceProperty("num-queues", "uint16", "queues, 1 to 64 (default 1)"),
        DeviceProperty("queue-size", "uint16", "requests in a queue: a power of 2 from 4 to 1024 (default 256)"),
        DeviceProperty("write-cache", "OnOffAuto", "whether a flush is what makes data durable"),
        DeviceProperty("config-wce", "bool", "whether the guest may change that (default on)"),
        DeviceProperty("werror", "BlockdevOnError", "report, ignore, enospc (default) or stop"),
        DeviceProperty("rerror", "BlockdevOnError", "report (default), ignore, enospc or stop"),
        DeviceProperty("iothread", "str", "id of an -object iothread"),
        DeviceProperty("bootindex", "int32", "accepted for QEMU's sake"),
    ]
    private static let card =
        [
            DeviceProperty("netdev", "str", "id of the -netdev behind it"),
            DeviceProperty("mac", "str", "Ethernet address, as 52:54:00:12:34:56"),
            DeviceProperty("bootindex", "int32", "accepted for QEMU's sake"),
        ] + VirtioNetFeature.properties

    private static let hotPluggable = ["virtio-blk", "virtio-net", "virtio-rng"]

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
                isHotPluggable: bus == PCIBus.busType && hotPluggable.contains(name), properties: properties() + more(),
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
