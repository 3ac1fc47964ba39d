import BatonBase
import BatonMachine
import CBaton
import Glibc

/// How one update of the guest ended.
public struct UpdateRecord {
    /// CLOCK_REALTIME in nanoseconds when it ended.
    public var endedAt: Int64
    public var mode: String
    /// The process that had the guest afterwards.
    public var pid: Int64
    /// Why the guest was taken back; nil for an update that took place.
    public var failure: String?
    /// The pause and its phases in microseconds, see `UpdateTimes.report`.
    /// Empty for an update that was taken back.
    public var phases: [(name: String, microseconds: Int64)]
    /// The version of the VMM that had the guest before; nil when it did not say.
    public var fromVersion: String?
    /// The version that has it since; nil when the guest was taken back.
    public var toVersion: String?
}

/// The last updates of the guest, which the CPR state carries from process to
/// process.
public struct UpdateHistory {
    /// Older ones are forgotten.
    public static let limit = 16
    public private(set) var records: [UpdateRecord] = []
    static let sectionName = "history"

    init() {}

    mutating func append(_ record: UpdateRecord) {
        records.append(record)
        if records.count > UpdateHistory.limit { records.removeFirst() }
    }

    /// Notes an update that has just ended, in this process' favour.
    /// - Parameter version: of the process before.
    mutating func append(mode: String, times: UpdateTimes, from version: String?) {
        let phases = times.report?.objectValue?.members.map { (name: $0.key, microseconds: $0.value.intValue ?? 0) }
        append(
            UpdateRecord(
                endedAt: cbaton_realtime_ns(), mode: mode, pid: Int64(getpid()), failure: nil, phases: phases ?? [],
                fromVersion: version, toVersion: BatonVersion.text))
    }

    /// Notes an update after which the guest was taken back.
    mutating func append(mode: String, failure: String) {
        append(
            UpdateRecord(
                endedAt: cbaton_realtime_ns(), mode: mode, pid: Int64(getpid()), failure: failure, phases: [],
                fromVersion: BatonVersion.text))
    }

    /// As `query-cpr` shows it, oldest first.
    var json: JSON {
        .array(
            records.map { record in
                var object = JSONObject()
                object["ended-at"] = .int(record.endedAt / 1_000_000_000)
                object["mode"] = .string(record.mode)
                object["pid"] = .int(record.pid)
                if let failure = record.failure { object["failure"] = .string(failure) }
                if let version = record.fromVersion { object["from-version"] = .string(version) }
                if let version = record.toVersion { object["to-version"] = .string(version) }
                if !record.phases.isEmpty {
                    var times = JSONObject()
                    for phase in record.phases { times[phase.name] = .int(phase.microseconds) }
                    object["times"] = .object(times)
                }
                return .object(object)
            })
    }

    // MARK: In the CPR state

    func put(into writer: inout StateWriter) {
        writer.put("count", UInt64(records.count))
        for (index, record) in records.enumerated() {
            writer.put("\(index).ended-at-ns", UInt64(bitPattern: record.endedAt))
            writer.put("\(index).mode", record.mode)
            writer.put("\(index).pid", UInt64(bitPattern: record.pid))
            if let failure = record.failure { writer.put("\(index).failure", failure) }
            if let version = record.fromVersion { writer.put("\(index).from-version", version, optional: true) }
            if let version = record.toVersion { writer.put("\(index).to-version", version, optional: true) }
            writer.put("\(index).phases", UInt64(record.phases.count))
            for (number, phase) in record.phases.enumerated() {
                writer.put("\(index).\(number).name", phase.name)
                writer.put("\(index).\(number).us", UInt64(bitPattern: phase.microseconds))
            }
        }
    }

    init(from reader: StateReader) throws(VMMError) {
        func text(_ field: String) throws(VMMError) -> String? {
            reader.has(field) ? try reader.string(field) : nil
        }
        for index in 0..<(try reader.unsigned("count", in: 0...UInt64(UpdateHistory.limit))) {
            var phases: [(name: String, microseconds: Int64)] = []
            for number in 0..<(try reader.unsigned("\(index).phases", in: 0...64)) {
                phases.append(
                    (
                        try reader.string("\(index).\(number).name"),
                        Int64(bitPattern: try reader.unsigned("\(index).\(number).us"))
                    ))
            }
            append(
                UpdateRecord(
                    endedAt: Int64(bitPattern: try reader.unsigned("\(index).ended-at-ns")),
                    mode: try reader.string("\(index).mode"),
                    pid: Int64(bitPattern: try reader.unsigned("\(index).pid")),
                    failure: try text("\(index).failure"), phases: phases,
                    fromVersion: try text("\(index).from-version"), toVersion: try text("\(index).to-version")))
        }
        try reader.finish()
    }
}
