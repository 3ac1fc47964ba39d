import Foundation

/// A VMM with the bare-metal guest of `CountingDevice`, and whoever has its
/// devices: the files `serial`, what the guest prints, and `log`, what is noted
/// of the devices, are in its directory.
public protocol CountingDeviceGuest {
    var directory: TemporaryDirectory { get }
    var process: ChildProcess { get }
    var qmp: QMPClient { get }
    var arguments: [String] { get }
    /// How many devices the guest has.
    var deviceCount: Int { get }
    /// What the process that has the devices has to say, for messages.
    var deviceErrors: String { get }
}

extension CountingDeviceGuest {
    public var deviceErrors: String { "" }

    /// What the guest has printed.
    public var serial: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

    /// How many interrupts of a device the guest has had, and how far the
    /// device has counted in its memory.
    public func progress(_ device: Int = 0) throws -> (interrupts: Int, count: Int) {
        try CountingDevice.progress(serial, of: device)
    }

    /// Waits until the guest has had at least 128 more interrupts of each device.
    public func waitForProgress() throws {
        let before = try (0..<deviceCount).map { try progress($0) }
        func now() -> String {
            "it said \(serial.suffix(200)); \(process.report) \(deviceErrors.suffix(2000)) \(log.suffix(12))"
        }
        try eventually("the guest's interrupts go on past \(before); \(now())") {
            try before.indices.allSatisfy { device in
                let now = try progress(device)
                return now.interrupts >= before[device].interrupts + 128 && now.count > before[device].count
            }
        }
    }

    public func update(_ argv: [String]? = nil, _ options: [String: Any] = [:]) throws {
        try qmp.execute("cpr-update", options.merging(["argv": argv ?? arguments]) { $1 })
    }

    /// Ends the VMM, which must be content.
    public func end() throws {
        try qmp.execute("quit")
        let exit = try process.waitForExit()
        guard exit == .status(0) else { throw TestError("the VMM ended with \(exit): \(process.errors)") }
    }

    /// What is noted of the devices, a line each.
    public var log: [String] { Self.log(directory) }

    public static func log(_ directory: TemporaryDirectory) -> [String] {
        ((try? String(contentsOfFile: directory.file("log"), encoding: .utf8)) ?? "")
            .split(separator: "\n").map(String.init)
    }
}
