import Foundation
import TestSupport
import Testing

/// A new VMM starts when nothing else wants to run, not for long, and has the old one's policy and
/// nice value again when it has the guest.
@Suite(
    "Priority of a new VMM",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: geteuid() == 0, "needs the right to come back from SCHED_IDLE: root"))
struct BackgroundTests {
    /// Executes the rest after a second, as soon as its own policy is the normal one; gives up after 20 s.
    private static func late(_ argv: [String]) -> [String] {
        let script = """
            sleep 1
            left=2000
            while read -r line </proc/$$/stat; set -- $line; [ "${41}" != 0 ]; do
                left=$((left - 1))
                [ $left -gt 0 ] || exit 1
                sleep 0.01
            done
            exec env -- \(argv.map { "'\($0)'" }.joined(separator: " "))
            """
        return ["sh", "-c", script]
    }

    private static let normal = 0

    /// The policy and nice value of each of a process' threads.
    private func scheduling(_ pid: pid_t) throws -> Set<[Int]> {
        let tasks = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")
        return Set(
            try tasks.map { task in
                let stat = try String(contentsOfFile: "/proc/\(pid)/task/\(task)/stat", encoding: .utf8)
                let fields = stat.split(separator: ")").last?.split(separator: " ") ?? []
                // Fields 41 and 19 of proc_pid_stat(5), of which two have gone.
                return [Int(fields[38]) ?? -1, Int(fields[16]) ?? -1]
            })
    }

    @Test("The policy and nice value are what they were", arguments: [true, false])
    func restored(_ preflight: Bool) throws {
        let guest = try CountingGuest(prefix: ["nice", "-n", "5"])
        let before = try scheduling(guest.process.pid)
        #expect(before == [[Self.normal, 5]])
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": preflight])
        #expect(try scheduling(guest.process.pid) == before)
    }

    @Test("A new VMM and a trial do not stay there for ever", arguments: [true, false])
    func foreground(_ preflight: Bool) throws {
        let guest = try CountingGuest()
        let argv = Self.late(guest.arguments)
        try guest.qmp.execute("cpr-update", ["argv": argv, "preflight": preflight, "timeout-ms": 30_000])
        #expect(try scheduling(guest.process.pid) == [[Self.normal, 0]])
    }

    @Test("A policy of the operator's is left alone", arguments: [["-b", "0"], ["-i", "0"], ["-r", "1"]])
    func others(_ options: [String]) throws {
        let guest = try CountingGuest(prefix: ["chrt"] + options)
        let before = try scheduling(guest.process.pid)
        #expect(before != [[Self.normal, 0]])
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "timeout-ms": 30_000])
        #expect(try scheduling(guest.process.pid) == before)
    }
}
