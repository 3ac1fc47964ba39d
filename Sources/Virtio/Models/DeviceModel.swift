import BatonRuntime

/// A device type that is built in.
public final class DeviceModel: DeviceType {
    public let name: String
    public let bus: String
    public let category: DeviceCategory
    public let properties: [DeviceProperty]
    private let build: (DeviceFactory, DeviceOptions) throws(VMMError) -> Void

    init(
        name: String, bus: String, category: DeviceCategory, properties: [String],
        make: @escaping (DeviceFactory, DeviceOptions) throws(VMMError) -> Void
    ) {
        self.name = name
        self.bus = bus
        self.category = category
        self.properties = properties.map { DeviceProperty($0) }
        build = make
    }

    public func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        guard let factory = context as? DeviceFactory else {
            throw VMMError("Device '\(name)' can't be made for this machine")
        }
        try build(factory, options)
    }

    public static let all: [DeviceModel] = [
        DeviceModel(
            name: "virtconsole", bus: "virtio-serial-bus", category: .input, properties: ["chardev"],
            make: { factory, options throws(VMMError) in try factory.addConsolePort(options) }),
        DeviceModel(
            name: "virtio-blk-device", bus: "virtio-bus", category: .storage, properties: ["drive", "serial"],
            make: { factory, options throws(VMMError) in try factory.addBlock(options) }),
        DeviceModel(
            name: "virtio-net-device", bus: "virtio-bus", category: .network, properties: ["netdev", "mac"],
            make: { factory, options throws(VMMError) in try factory.addNet(options) }),
        DeviceModel(
            name: "virtio-rng-device", bus: "virtio-bus", category: .misc, properties: [],
            make: { factory, options throws(VMMError) in try factory.addEntropy(options) }),
        DeviceModel(
            name: "virtio-serial-device", bus: "virtio-bus", category: .input, properties: [],
            make: { factory, options throws(VMMError) in try factory.addSerial(options) }),
    ]

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
