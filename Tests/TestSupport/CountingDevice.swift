import Foundation

/// The bare-metal guest of Tests/Guests/vfio, which drives devices that count
/// into its memory and interrupt it for ever.
public enum CountingDevice {
    /// How the guest wants to be interrupted.
    public enum Interrupts: String, CaseIterable, Sendable {
        case msix = "MSIX"
        case msi = "MSI"
        case intx = "INTX"

        public var machine: String { self == .intx ? "virt" : "virt,aia=aplic-imsic" }
        /// VFIO's number of the kind.
        public var index: Int { self == .intx ? 0 : self == .msi ? 1 : 2 }
        public var count: Int { self == .intx ? 1 : 4 }
    }

    public static func image(_ interrupts: Interrupts) throws -> String {
        try GuestBuilder.flat("vfio/vfio.c", flags: ["-D\(interrupts.rawValue)"])
    }

    /// From what the guest has printed: how many interrupts of a device it has
    /// had, and how far that has counted.
    public static func progress(_ serial: String, of device: Int = 0) throws -> (interrupts: Int, count: Int) {
        let name = device == 0 ? "vfio: " : "vfio\(device): "
        guard !serial.contains("FAIL") else { throw TestError("the guest says \(serial.suffix(200))") }
        let complete = serial.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
        guard let line = complete.last(where: { $0.hasPrefix(name) }) else { return (0, 0) }
        let numbers = line.split(separator: " ").dropFirst().compactMap { Int($0) }
        guard numbers.count == 2 else { throw TestError("the guest says \(line)") }
        return (numbers[0], numbers[1])
    }

    /// What the guest has found out about its first device: a complete line that begins so.
    public static func finding(_ name: String, _ serial: String) -> String? {
        serial.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
            .first { $0.hasPrefix("\(name):") }?
            .dropFirst(name.utf8.count + 1).trimmingCharacters(in: .whitespaces)
    }
}
