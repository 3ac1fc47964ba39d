import BatonRuntime

/// One name of `-device`.
public struct DeviceModel {
    public let name: String
    /// The type of bus that it plugs into, as `-device help` shows it.
    public let bus: String
    public let category: String
    /// Keys that it takes besides `driver`, `id` and `bus`.
    public let properties: [String]
    /// Makes the device and plugs it.
    let make: (DeviceFactory, DeviceOptions) throws(VMMError) -> Void

    public static let all: [DeviceModel] = [
        DeviceModel(
            name: "virtconsole", bus: "virtio-serial-bus", category: "Input", properties: ["chardev"],
            make: { factory, options throws(VMMError) in try factory.addConsolePort(options) }),
        DeviceModel(
            name: "virtio-blk-device", bus: "virtio-bus", category: "Storage", properties: ["drive", "serial"],
            make: { factory, options throws(VMMError) in try factory.addBlock(options) }),
        DeviceModel(
            name: "virtio-net-device", bus: "virtio-bus", category: "Network", properties: ["netdev", "mac"],
            make: { factory, options throws(VMMError) in try factory.addNet(options) }),
        DeviceModel(
            name: "virtio-rng-device", bus: "virtio-bus", category: "Misc", properties: [],
            make: { factory, options throws(VMMError) in try factory.addEntropy(options) }),
        DeviceModel(
            name: "virtio-serial-device", bus: "virtio-bus", category: "Input", properties: [],
            make: { factory, options throws(VMMError) in try factory.addSerial(options) }),
    ]

    /// The text of `-device help`.
    public static var help: String {
        var text = ""
        for category in ["Storage", "Network", "Input", "Misc"] {
            let models = all.filter { $0.category == category }
            guard !models.isEmpty else { continue }
            text += (text.isEmpty ? "" : "\n") + "\(category) devices:\n"
            for model in models { text += "name \"\(model.name)\", bus \(model.bus)\n" }
        }
        return text
    }

    /// The text that the argument of `-device` asks for: `help`, or
    /// `NAME,help`; nil when it asks for none.
    public static func help(for argument: String) -> String? {
        if argument == "help" || argument == "?" { return help }
        let words = argument.split(separator: "," as Character)
        guard words.count >= 2, words.dropFirst().contains(where: { $0 == "help" || $0 == "?" }) else { return nil }
        return all.first { $0.name == words[0] }?.help
    }

    /// The text of `-device NAME,help`.
    public var help: String {
        guard !properties.isEmpty else { return "There are no options for \(name).\n" }
        return "\(name) options:\n" + properties.map { "  \($0)=<str>\n" }.joined()
    }
}

/// The options of one `-device`, with QEMU's errors for properties.
struct DeviceOptions {
    let model: String
    let id: String?
    let bus: String?
    let options: KeyValueOptions

    func text(_ property: String) throws(VMMError) -> String? { try options.string(property) }

    func notFound(_ property: String, _ value: String) -> VMMError {
        VMMError("Property '\(model).\(property)' can't find value '\(value)'")
    }
    func inUse(_ property: String, _ value: String) -> VMMError {
        VMMError("Property '\(model).\(property)' can't take value '\(value)', it's in use")
    }
    func badValue(_ property: String, _ value: String) -> VMMError {
        VMMError("Property '\(model).\(property)' doesn't take value '\(value)'")
    }
}
