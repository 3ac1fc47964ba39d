import CBaton
import Foundation
import ProcessSupport
import Testing

/// Work beside the guest, at a low priority, of which the new VMM waits for the end.
@Suite("Work at a lower priority", .serialized) struct NiceWorkTests {
    /// What the work has seen, by its own clock.
    private final class Seen {
        var policy: Int32 = -1
        /// Nanoseconds that it took, and that it had a processor.
        var span: Int64 = 0
        var had: Int64 = 0
    }

    private static func nanoseconds(_ clock: clockid_t) -> Int64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }

    @Test("It gets a share of a processor that others keep busy") func share() throws {
        let thread = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/thread-self")
        let status = try String(contentsOfFile: "/proc/\(thread)/status", encoding: .utf8).split(separator: "\n")
        let allowed = try #require(status.first { $0.hasPrefix("Cpus_allowed_list:") }?.split(separator: "\t").last)
        let cpu = try #require(allowed.split { $0 == "-" || $0 == "," }.first)
        func use(_ processors: Substring) throws {
            let id = thread.split(separator: "/").last ?? ""
            #expect(try ChildProcess(["taskset", "-cp", "\(processors)", "\(id)"]).waitForExit() == .status(0))
        }
        defer { try? use(allowed) }
        let others = try (0..<3).map { _ in
            try ChildProcess(["taskset", "-c", "\(cpu)", "sh", "-c", "echo busy; while :; do :; done"])
        }
        defer { for other in others { other.signal(SIGKILL) } }
        for other in others { try other.waitForOutput("busy") }
        // This thread waits, and what it starts may use the same processor only.
        try use(cpu)

        let seen = Seen()
        cbaton_run_nicely(
            10,
            { context in
                let seen = Unmanaged<Seen>.fromOpaque(context!).takeUnretainedValue()
                let start = NiceWorkTests.nanoseconds(CLOCK_MONOTONIC)
                repeat {
                    seen.policy = sched_getscheduler(0)
                    seen.had = NiceWorkTests.nanoseconds(CLOCK_THREAD_CPUTIME_ID)
                } while seen.policy != SCHED_OTHER && seen.had < 50_000_000
                seen.span = NiceWorkTests.nanoseconds(CLOCK_MONOTONIC) - start
            }, Unmanaged.passUnretained(seen).toOpaque())
        // Where it had its share anyway, nothing had to be done.
        #expect(
            seen.policy == SCHED_OTHER || seen.span < 2 * seen.had + 1_000_000_000,
            "\(seen.span / 1_000_000) ms for \(seen.had / 1_000_000)")
    }
}
