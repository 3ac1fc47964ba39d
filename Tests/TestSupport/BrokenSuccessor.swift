import Foundation

/// New VMMs that cannot go on with the guest of another, which has 16 MiB of
/// memory and a device.
public enum BrokenSuccessor: String, CaseIterable, Sendable {
    case doesNotExist = "does not exist"
    case endsAtOnce = "ends at once"
    case hangs = "hangs"
    case lacksTheDevice = "lacks the device"
    case hasAnotherDevice = "has another device in its place"
    case hasLessMemory = "has less memory"
    case hasOneDeviceMore = "has one device more"

    /// How long an update may take to find out: for what hangs just what its other steps may need, else as long as a
    /// busy machine wants.
    public var milliseconds: Int { self == .hangs ? 2500 : 30_000 }

    /// The command of one for the guest of a VMM with these arguments.
    public func arguments(_ arguments: [String]) -> [String] {
        switch self {
        case .doesNotExist: ["/nonexistent"]
        case .endsAtOnce: ["/bin/false"]
        case .hangs: ["/bin/sleep", "600"]
        case .lacksTheDevice: Self.without("-device", arguments)
        case .hasAnotherDevice: Self.without("-device", arguments) + ["-device", "virtio-rng-pci"]
        case .hasLessMemory:
            arguments.map { $0 == "16M" ? "8M" : $0.replacingOccurrences(of: "size=16M", with: "size=8M") }
        case .hasOneDeviceMore: arguments + ["-device", "virtio-rng-device"]
        }
    }

    /// Without the first option of this name and its value.
    private static func without(_ option: String, _ arguments: [String]) -> [String] {
        guard let at = arguments.firstIndex(of: option) else { return arguments }
        return Array(arguments[..<at] + arguments[(at + 2)...])
    }
}
