import BatonBase
import Glibc

/// How long a process that starts may take. The guest runs meanwhile, so the time in which
/// the machine had no processor for it does not count, up to twice the limit: what the
/// kernel says that it has waited for one, and times in which the whole machine stood still,
/// which show as looks that come too late.
struct StartLimit {
    /// Nanoseconds that it may take where it always has a processor.
    let limit: Int64
    private let start: Int64
    /// When somebody is to look next, as of CLOCK_MONOTONIC in nanoseconds.
    private(set) var nextLook: Int64
    /// Nanoseconds by which looks have come too late.
    private var missed: Int64 = 0
    /// What the process had waited for a processor before.
    private var waitedBefore: Int64 = 0
    private static let looks: Int64 = 8
    /// By as much each look may be late on any machine.
    private static let tolerance: Int64 = 50_000_000

    init(_ limit: Int64, from start: Int64) {
        self.limit = limit
        self.start = start
        nextLook = start + limit / StartLimit.looks
    }

    /// Says that a process starts now which has existed before.
    mutating func begins(in process: pid_t) { waitedBefore = ProcessFiles.waitedForProcessor(process) ?? 0 }

    /// Looks.
    /// - Parameters:
    ///   - process: that starts; nil when there is none yet.
    ///   - now: as of CLOCK_MONOTONIC in nanoseconds.
    /// - Returns: true when its time is over, false when there is another look.
    mutating func isOver(for process: pid_t?, now: Int64 = EventLoop.now) -> Bool {
        let late = now - nextLook
        if late > StartLimit.tolerance { missed += late }
        nextLook = now + max(limit / StartLimit.looks, 1)
        guard now - start >= limit else {
            nextLook = min(nextLook, start + limit)
            return false
        }
        let waited = max(0, (process.flatMap(ProcessFiles.waitedForProcessor) ?? 0) - waitedBefore)
        let end = start + limit + min(waited + missed, 2 * limit)
        nextLook = min(nextLook, end)
        return now >= end
    }
}
