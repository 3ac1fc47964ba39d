import BatonRuntime
import Foundation

/// What a VM says of itself.
struct MachineStatus {
    var pid: Int64
    /// As query-status has it.
    var state: String
    var cpus: Int
    /// Bytes.
    var memory: Int64
    var isKVM: Bool
    /// The VMM's version, such as `0.9.0+g0123456789ab`.
    var version: String
    /// Updates that the guest has been through.
    var updates: Int64
    /// Microseconds of the last one; nil before there was one.
    var pause: Int64?
    /// Why the last update led back; nil if it did not.
    var failure: String?
    /// Whether another file has taken the place of the one that the VMM was started from: there is a version to update
    /// to. Nil where that cannot be seen: another host's or user's process.
    var isOutdated: Bool?

    init(_ monitor: MonitorConnection) throws {
        func object(_ command: String) throws -> JSONObject {
            guard let object = try monitor.execute(command).objectValue else {
                throw VMMError("no answer to \(command)")
            }
            return object
        }
        let cpr = try object("query-cpr")
        pid = cpr["pid"]?.intValue ?? 0
        updates = cpr["generation"]?.intValue ?? 0
        pause = cpr["last-update"]?.objectValue?["pause-us"]?.intValue
        failure = cpr["history"]?.arrayValue?.last?.objectValue?["failure"]?.stringValue
        state = try object("query-status")["status"]?.stringValue ?? "unknown"
        cpus = try monitor.execute("query-cpus-fast").arrayValue?.count ?? 0
        memory = try object("query-memory-size-summary")["base-memory"]?.intValue ?? 0
        isKVM = try object("query-kvm")["enabled"]?.boolValue ?? false
        let package = try object("query-version")["package"]?.stringValue ?? ""
        version = package.hasPrefix("baton-") ? String(package.dropFirst("baton-".count)) : package
        isOutdated = Self.isReplaced(pid)
    }

    private static func isReplaced(_ pid: Int64) -> Bool? {
        guard let path = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/exe") else {
            return nil
        }
        return path.hasSuffix(" (deleted)")
    }

    var json: JSONObject {
        var object: JSONObject = [
            "pid": .int(pid), "state": .string(state), "cpus": JSON(cpus), "memory": .int(memory),
            "accelerator": .string(accelerator), "version": .string(version), "updates": .int(updates),
        ]
        if let pause { object["pause-us"] = .int(pause) }
        if let failure { object["failure"] = .string(failure) }
        if let isOutdated { object["outdated"] = .bool(isOutdated) }
        return object
    }

    var accelerator: String { isKVM ? "kvm" : "tcg" }
}
