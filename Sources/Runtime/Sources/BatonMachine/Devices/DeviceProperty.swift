/// A property of a device type, for help and for checks of names.
public struct DeviceProperty {
    public let name: String
    /// QEMU's name of the value's type: `str`, `bool`, `uint32`, `size`.
    public let type: String
    /// What it means, in a few words; empty for none.
    public let summary: String

    public init(_ name: String, _ type: String = "str", _ summary: String = "") {
        self.name = name
        self.type = type
        self.summary = summary
    }

    var help: String { "  \(name)=<\(type)>" + (summary.isEmpty ? "" : " - \(summary)") + "\n" }

    /// What `NAME,help` prints.
    public static func help(_ properties: [DeviceProperty], of name: String) -> String {
        guard !properties.isEmpty else { return "There are no options for \(name).\n" }
        return "\(name) options:\n" + properties.map(\.help).joined()
    }
}
