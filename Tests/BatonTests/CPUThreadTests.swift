import Foundation
import TestSupport
import Testing

/// Threads of CPUs on KVM, as an operator sees and places them: by their ids in `query-cpus-fast`.
@Suite(.serialized, .enabled(if: MicroVMROM.isUsable, MicroVMROM.usable))
struct CPUThreadTests {
    private static let group = "/sys/fs/cgroup/cpu/baton-cpu-threads-\(getpid())"
    private static var hasGroups: Bool { access("/sys/fs/cgroup/cpu/tasks", W_OK) == 0 }

    /// Affinity, policy, priority, niceness and control groups of a thread, as text.
    private static func place(_ thread: Int) throws -> String {
        let tools =
            try ChildProcess.run(["taskset", "-p", "\(thread)"]) + ChildProcess.run(["chrt", "-p", "\(thread)"])
        let values = tools.split(separator: "\n").compactMap { $0.split(separator: ": ").last }
        let stat = try String(contentsOfFile: "/proc/\(thread)/stat", encoding: .utf8)
        // Behind the name, which may have blanks, the 17th.
        let fields = stat[(stat.lastIndex(of: ")") ?? stat.startIndex)...].split(separator: " ")
        let groups = try String(contentsOfFile: "/proc/\(thread)/cgroup", encoding: .utf8)
        return values.joined(separator: " ") + " nice=\(fields[17])\n" + groups
    }

    private static func ids(_ value: Any?) throws -> [Int] {
        let cpus = try #require(value as? [[String: Any]])
        return try cpus.enumerated().map { index, cpu in
            #expect(cpu["cpu-index"] as? Int == index)
            return try #require(cpu["thread-id"] as? Int)
        }
    }

    /// Control groups are files of the host's, which a sandbox has if it is said.
    @Test(
        "An event has the new ids, and the threads are where the old ones were",
        .enabled(if: hasGroups, "needs cgroups that can be changed"), arguments: [true, false])
    func places(succeeds: Bool) throws {
        let rom = try MicroVMROM(MicroVMROM.letters), words = ["-smp", "2", "-sandbox", "paths=/sys/fs/cgroup/cpu"]
        let process = try ChildProcess(rom.arguments(extra: words))
        let qmp = try QMPClient(path: rom.socket, of: process)
        try rom.awaitOutput()
        func current() throws -> [Int] { try Self.ids(try qmp.execute("query-cpus-fast")) }
        let before = try current()
        try FileManager.default.createDirectory(atPath: Self.group, withIntermediateDirectories: false)
        defer { rmdir(Self.group) }
        try ChildProcess.run(["taskset", "-cp", "0", "\(before[1])"])
        try ChildProcess.run(["chrt", "-b", "-p", "0", "\(before[1])"])
        try ChildProcess.run(["renice", "-n", "7", "-p", "\(before[1])"])
        try "\(before[1])".write(toFile: "\(Self.group)/tasks", atomically: false, encoding: .utf8)
        let places = try before.map(Self.place)
        #expect(places[1].contains("SCHED_BATCH 0 nice=7") && places[1].contains("baton-cpu-threads"), "\(places)")
        #expect(places[0] != places[1])
        for _ in 0..<2 {
            let old = try current()
            qmp.discardEvents()
            let argv = rom.arguments(cpu: succeeds ? "host" : "x86-64-v2", extra: words)
            let text = refusal { try qmp.execute("cpr-update", ["argv": argv, "preflight": false]) }
            #expect((text == "accepted") == succeeds, "\(text)")
            let event = try qmp.waitForEvent("CPU_THREADS_CHANGED")
            let new = try current()
            #expect(try Self.ids(event["cpus"]) == new)
            #expect(Set(new).isDisjoint(with: old) && Set(new).count == 2)
            #expect(try new.map(Self.place) == places)
            try rom.awaitOutput()
        }
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0), "\(process.report)")
    }
}
