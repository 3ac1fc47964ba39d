import BatonRuntime
import CKVM

/// Where a CPU's thread runs, which is kept when another thread takes its work up: affinity, policy, priority, niceness
/// and control groups.
final class ThreadPlace {
    private let scheduling = UnsafeMutablePointer<ckvm_scheduling>.allocate(capacity: 1)
    private var hasScheduling = false
    /// Nil for those of the main thread.
    private var groups: String?
    /// Whether that was the place of a thread of this process: one that was allowed, and cannot be had again, is given
    /// up rather than the guest.
    private var isOwn = false
    /// When it was looked at last, CLOCK_MONOTONIC in nanoseconds.
    private var noted: Int64 = .min
    /// A guest waits for it: not twice within an update.
    var isFresh: Bool { EventLoop.now &- ThreadPlace.freshness < noted }
    private static let freshness: Int64 = 1_000_000_000

    init() { scheduling.initialize(to: ckvm_scheduling()) }
    deinit { scheduling.deallocate() }

    /// Keeps where a thread is.
    /// - Parameter processGroups: the control groups of the main thread.
    func note(_ thread: Int32, processGroups: String) {
        (isOwn, noted) = (true, EventLoop.now)
        hasScheduling = ckvm_get_scheduling(thread, scheduling) == 0
        let text = ThreadGroups.text(thread)
        groups = text.isEmpty || text == processGroups ? nil : text
    }

    /// Puts a thread there.
    func take(_ thread: Int32) throws(VMMError) {
        do throws(VMMError) {
            if let groups { try ThreadGroups.move(thread, to: groups) }
            let code = hasScheduling ? ckvm_set_scheduling(thread, scheduling) : 0
            guard code == 0 else {
                throw .system(
                    "Could not set affinity and priority of a CPU's thread", errno: code,
                    hint: "The processors or priorities that it had are not allowed any more.")
            }
        } catch {
            guard isOwn else { throw error }
            Report.warning(error.message)
        }
    }

    // MARK: State

    private static let affinity = "thread-affinity"
    private static let values = "thread-scheduling"
    private static let cgroup = "thread-cgroup"

    func save(to writer: inout StateWriter) {
        guard hasScheduling else { return }
        let length = Int(scheduling.pointee.affinity_length)
        let affinity = withUnsafeBytes(of: &scheduling.pointee.affinity) { Array($0.prefix(length)) }
        writer.put(ThreadPlace.affinity, bytes: affinity, optional: true)
        let values = [scheduling.pointee.policy, scheduling.pointee.priority, scheduling.pointee.nice]
        let times = [scheduling.pointee.runtime, scheduling.pointee.deadline, scheduling.pointee.period]
        writer.put(ThreadPlace.values, values.map { UInt64(bitPattern: Int64($0)) } + times, optional: true)
        if let groups { writer.put(ThreadPlace.cgroup, groups, optional: true) }
    }

    /// - Returns: what takes the place over, for threads to come.
    func loader(_ reader: StateReader) throws(VMMError) -> () -> Void {
        guard reader.has(ThreadPlace.affinity), reader.has(ThreadPlace.values) else { return {} }
        let affinity = try reader.bytes(ThreadPlace.affinity, count: 1...1024)
        let numbers = try reader.array(ThreadPlace.values, count: 6...6)
        let values = numbers.prefix(3).compactMap { Int32(exactly: Int64(bitPattern: $0)) }
        guard values.count == 3 else {
            throw VMMError("field '\(ThreadPlace.values)' of section '\(reader.section)' is out of range")
        }
        let groups = reader.has(ThreadPlace.cgroup) ? try reader.string(ThreadPlace.cgroup) : nil
        guard groups.map(ThreadGroups.areGroups) ?? true else {
            throw VMMError(
                "field '\(ThreadPlace.cgroup)' of section '\(reader.section)' has a line that is no control group")
        }
        return { [self] in
            var new = ckvm_scheduling()
            (new.policy, new.priority, new.nice) = (values[0], values[1], values[2])
            (new.runtime, new.deadline, new.period) = (numbers[3], numbers[4], numbers[5])
            new.affinity_length = UInt32(affinity.count)
            withUnsafeMutableBytes(of: &new.affinity) { $0.copyBytes(from: affinity) }
            scheduling.pointee = new
            (hasScheduling, isOwn, self.groups) = (true, false, groups)
        }
    }
}
