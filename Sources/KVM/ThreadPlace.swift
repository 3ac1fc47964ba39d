import BatonRuntime
import CKVM

/// Which processors a thread may run on, how it is scheduled, and the cgroups that it is in where these are not those of
/// the main thread.
final class ThreadPlace {
    private var scheduling = ckvm_scheduling()
    private let groups: [String]
    /// When `groups` were looked up, which takes longer than all else.
    private let time: Int64

    /// Nanoseconds for which a look at cgroups counts: longer than an update takes.
    private static let groupTime: Int64 = 30_000_000_000

    /// Of a thread of this process.
    /// - Parameter before: what was found last.
    init?(thread: Int32, before: ThreadPlace?) {
        if let before, EventLoop.now - before.time < ThreadPlace.groupTime {
            (groups, time) = (before.groups, before.time)
        } else {
            (groups, time) = (ThreadGroup.groups(ofThread: thread), EventLoop.now)
        }
        guard ckvm_get_scheduling(thread, &scheduling) == 0 else { return nil }
    }

    /// Moves a thread there. A cgroup that cannot be had is reported, no more: it is for its owner to allow it.
    func apply(thread: Int32, cpu: Int) -> VMMError? {
        for group in groups {
            guard let error = ThreadGroup.move(thread: thread, to: group) else { continue }
            Report.warning("Could not move the thread of CPU \(cpu) to cgroup '\(group)': \(error.message)")
        }
        let code = ckvm_set_scheduling(thread, &scheduling)
        guard code != 0 else { return nil }
        return VMMError.system(
            "Could not set affinity and priority of the thread of CPU \(cpu)", errno: code,
            hint: "The processors or priorities that it had are not allowed any more.")
    }

    // MARK: State

    /// As fields: affinity; policy, priority, niceness and the times of SCHED_DEADLINE; cgroups.
    func save(to writer: inout StateWriter) {
        let length = Int(scheduling.affinity_length)
        let affinity = withUnsafeBytes(of: &scheduling.affinity) { Array($0.prefix(length)) }
        writer.put("thread-affinity", bytes: affinity, optional: true)
        let values = [scheduling.policy, scheduling.priority, scheduling.nice]
        writer.put(
            "thread-scheduling",
            values.map { UInt64(bitPattern: Int64($0)) } + [
                scheduling.runtime, scheduling.deadline, scheduling.period,
            ],
            optional: true)
        if !groups.isEmpty { writer.put("thread-cgroups", groups, optional: true) }
    }

    /// - Returns: nil when a state says nothing of it.
    init?(_ reader: StateReader) throws(VMMError) {
        guard reader.has("thread-affinity"), reader.has("thread-scheduling") else { return nil }
        let affinity = try reader.bytes("thread-affinity", count: 1...1024)
        let fields = try reader.array("thread-scheduling", count: 3...6)
        let values = fields.prefix(3).compactMap { Int32(exactly: Int64(bitPattern: $0)) }
        guard values.count == 3 else {
            throw VMMError("field 'thread-scheduling' of section '\(reader.section)' is out of range")
        }
        (scheduling.policy, scheduling.priority, scheduling.nice) = (values[0], values[1], values[2])
        let times = Array(fields.dropFirst(3)) + [0, 0, 0]
        (scheduling.runtime, scheduling.deadline, scheduling.period) = (times[0], times[1], times[2])
        scheduling.affinity_length = UInt32(affinity.count)
        withUnsafeMutableBytes(of: &scheduling.affinity) { $0.copyBytes(from: affinity) }
        groups =
            reader.has("thread-cgroups") ? try reader.strings("thread-cgroups", count: 0...ThreadGroup.most) : []
        time = EventLoop.now
        guard groups.allSatisfy(ThreadGroup.isValid) else {
            throw VMMError("field 'thread-cgroups' of section '\(reader.section)' has what is no cgroup")
        }
    }
}
