import BatonRuntime
import CKVM
import Glibc

/// Where the main thread runs: its scheduling and, as text, its control groups.
struct ProcessPlace {
    let groups: String
    private let scheduling: ckvm_scheduling?

    /// Of the calling thread.
    init() {
        let thread = Int32(ckvm_thread_id())
        groups = ThreadGroups.text(thread)
        var found = ckvm_scheduling()
        scheduling = ckvm_get_scheduling(thread, &found) == 0 ? found : nil
    }

    /// Whether a new thread is scheduled so without being told.
    func gives(_ other: UnsafePointer<ckvm_scheduling>) -> Bool {
        guard var scheduling else { return false }
        return ckvm_is_same_scheduling(&scheduling, other) != 0
    }
}

/// Where a CPU's thread runs, which is kept when another thread takes its work up: affinity, policy, priority, niceness
/// and control groups. What is the main thread's is not kept: a new thread has it from the one that makes it, also where a new
/// command line (`taskset`, `chrt`) or another host gives the VMM another place.
final class ThreadPlace {
    private let scheduling = UnsafeMutablePointer<ckvm_scheduling>.allocate(capacity: 1)
    private var hasScheduling = false
    /// Nil for those of the main thread.
    private var groups: String?
    /// Whether the place must be had: it was that of a thread of this process before an exec, and the guest can go back there.
    /// Else it is given up rather than the guest: groups, processors and rights may not be here what they were there.
    private var mustBeHad = false
    /// When it was looked at last, CLOCK_MONOTONIC in nanoseconds.
    private var noted: Int64 = .min
    /// A guest waits for it: not twice within an update.
    var isFresh: Bool { EventLoop.now &- ThreadPlace.freshness < noted }
    private static let freshness: Int64 = 1_000_000_000

    init() { scheduling.initialize(to: ckvm_scheduling()) }
    deinit { scheduling.deallocate() }

    /// Keeps where a thread is.
    func note(_ thread: Int32, process: ProcessPlace) {
        (mustBeHad, noted) = (false, EventLoop.now)
        hasScheduling = ckvm_get_scheduling(thread, scheduling) == 0 && !process.gives(scheduling)
        let text = ThreadGroups.text(thread)
        groups = text.isEmpty || text == process.groups ? nil : text
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
            guard !mustBeHad else { throw error }
            Report.warning("a CPU's thread does not run where it did (query-cpus-fast has its id): \(error.message)")
        }
    }

    // MARK: State

    private static let affinity = "thread-affinity"
    private static let values = "thread-scheduling"
    private static let cgroup = "thread-cgroup"
    private static let process = "thread-process"

    func save(to writer: inout StateWriter) {
        if let groups { writer.put(ThreadPlace.cgroup, groups, optional: true) }
        guard hasScheduling || groups != nil else { return }
        writer.put(ThreadPlace.process, UInt64(getpid()), optional: true)
        guard hasScheduling else { return }
        let length = Int(scheduling.pointee.affinity_length)
        let affinity = withUnsafeBytes(of: &scheduling.pointee.affinity) { Array($0.prefix(length)) }
        writer.put(ThreadPlace.affinity, bytes: affinity, optional: true)
        let values = [scheduling.pointee.policy, scheduling.pointee.priority, scheduling.pointee.nice]
        let times = [scheduling.pointee.runtime, scheduling.pointee.deadline, scheduling.pointee.period]
        writer.put(ThreadPlace.values, values.map { UInt64(bitPattern: Int64($0)) } + times, optional: true)
    }

    /// - Parameter isSameBoot: whether the state was saved since this host has booted.
    /// - Returns: what takes the place over, for threads to come.
    func loader(_ reader: StateReader, isSameBoot: Bool) throws(VMMError) -> () -> Void {
        let new = try savedScheduling(reader)
        let groups = reader.has(ThreadPlace.cgroup) ? try reader.string(ThreadPlace.cgroup) : nil
        guard groups.map(ThreadGroups.areGroups) ?? true else {
            throw VMMError(
                "field '\(ThreadPlace.cgroup)' of section '\(reader.section)' has a line that is no control group")
        }
        let process = reader.has(ThreadPlace.process) ? try reader.unsigned(ThreadPlace.process) : nil
        let isOwn = isSameBoot && process == UInt64(getpid())
        return { [self] in
            if let new { scheduling.pointee = new }
            (hasScheduling, mustBeHad, self.groups) = (new != nil, isOwn, groups)
        }
    }

    private func savedScheduling(_ reader: StateReader) throws(VMMError) -> ckvm_scheduling? {
        guard reader.has(ThreadPlace.affinity), reader.has(ThreadPlace.values) else { return nil }
        let affinity = try reader.bytes(ThreadPlace.affinity, count: 1...1024)
        let numbers = try reader.array(ThreadPlace.values, count: 6...6)
        let values = numbers.prefix(3).compactMap { Int32(exactly: Int64(bitPattern: $0)) }
        guard values.count == 3 else {
            throw VMMError("field '\(ThreadPlace.values)' of section '\(reader.section)' is out of range")
        }
        var saved = ckvm_scheduling()
        (saved.policy, saved.priority, saved.nice) = (values[0], values[1], values[2])
        (saved.runtime, saved.deadline, saved.period) = (numbers[3], numbers[4], numbers[5])
        saved.affinity_length = UInt32(affinity.count)
        withUnsafeMutableBytes(of: &saved.affinity) { $0.copyBytes(from: affinity) }
        return saved
    }
}
