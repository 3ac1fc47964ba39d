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
    mutating func append(mode: String, times: UpdateTimes) {
        let phases = times.report?.objectValue?.members.map { (name: $0.key, microseconds: $0.value.intValue ?? 0) }
        append(
            UpdateRecord(
                endedAt: cbaton_realtime_ns(), mode: mode, pid: Int64(getpid()), failure: nil, phases: phases ?? []))
    }

    /// Notes an update after which the guest was taken back.
    mutating func append(mode: String, failure: String) {
        append(
            UpdateRecord(
                endedAt: cbaton_realtime_ns(), mode: mode, pid: Int64(getpid()), failure: failure, phases: []))
    }

    /// As `query-cpr` shows it, oldest first.
    var json: JSON {
        .array(records.map { record in
            var object = JSONObject()
            object["ended-at"] = .int(record.endedAt / 1_000_000_000)
            object["mode"] = .string(record.mode)
            object["pid"] = .int(record.pid)
            if let failure = record.failure { object["failure"] = .string(failure) }
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
            writer.put("\(index).phases", UInt64(record.phases.count))
            for (number, phase) in record.phases.enumerated() {
                writer.put("\(index).\(number).name", phase.name)
                writer.put("\(index).\(number).us", UInt64(bitPattern: phase.microseconds))
            }
        }
    }

    init(from reader: StateReader) throws(VMMError) {
        for index in 0..<(try reader.unsigned("count", in: 0...UInt64(UpdateHistory.limit))) {
            var phases: [(name: String, microseconds: Int64)] = []
            for number in 0..<(try reader.unsigned("\(index).phases", in: 0...64)) {
                phases.append(
                    (try reader.string("\(index).\(number).name"),
                     Int64(bitPattern: try reader.unsigned("\(index).\(number).us"))))
            }
            append(
                UpdateRecord(
                    endedAt: Int64(bitPattern: try reader.unsigned("\(index).ended-at-ns")),
                    mode: try reader.string("\(index).mode"),
                    pid: Int64(bitPattern: try reader.unsigned("\(index).pid")),
                    failure: reader.has("\(index).failure") ? try reader.string("\(index).failure") : nil,
                    phases: phases))
        }
        try reader.finish()
    }
}
