import Foundation
import TestSupport
import Testing

/// `cpr-update`: one command that ends either in the new VMM or back in the
/// old one, whatever goes wrong in between. Each failure is really made to
/// happen, and the guest must go on from where it stopped.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct UpdateTests {
    private func update(_ guest: CountingGuest, _ argv: [String], timeout: Int = 10_000) throws -> String {
        let answer = guest.update(argv, timeout: timeout)
        return answer == "accepted" ? "updated" : answer
    }

    /// The guest must be running here, in order, and be able to try again.
    private func expectTakenBack(
        _ guest: CountingGuest, _ argv: [String], timeout: Int = 10_000, _ reason: String
    ) throws {
        let before = guest.count
        let text = try update(guest, argv, timeout: timeout)
        #expect(text.contains(reason), "\(text)")
        #expect(try guest.qmp.status() == "running")
        try guest.waitForProgress(past: max(before, guest.count))
        try guest.qmp.execute("stop")
        #expect(guest.checksum == CountingGuest.expectedChecksum(after: guest.count))
        try guest.qmp.execute("cont")
    }

    @Test(arguments: [
        ["/bin/false"], ["sh", "-c", "exit 1"], ["sh", "-c", "kill -SEGV $$"], ["true"],
    ])
    func aSuccessorThatEndsGivesTheGuestBack(_ argv: [String]) throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        try expectTakenBack(guest, argv, "the new VMM ended during its start")
    }

    @Test(
        "The error tells how a command has ended",
        .enabled(if: KernelFeatures.tellsHowProcessesEnded, "needs Linux 6.15"),
        arguments: [
            (["sh", "-c", "exit 3"], "during its start, with status 3"),
            (["sh", "-c", "kill -SEGV $$"], "during its start, by signal 11 (Segmentation fault)"),
        ])
    func howTheCommandEnded(_ argv: [String], _ reason: String) throws {
        let guest = try CountingGuest()
        try expectTakenBack(guest, argv, reason)
    }

    @Test(arguments: ["/nonexistent/baton", "/etc/passwd"])
    func aSuccessorThatCannotBeExecutedLeavesTheGuestRunning(_ program: String) throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        try expectTakenBack(guest, [program], "execvp '\(program)' failed")
        // No other process was needed: it is still the same.
        #expect(guest.process.isRunning)
    }

    @Test func aSuccessorThatHangsIsEndedAtItsLimit() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        try expectTakenBack(guest, ["sleep", "1000"], timeout: 300, "did not start within 300 ms")
    }

    @Test func aSuccessorThatRefusesSaysWhyToTheClient() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        try expectTakenBack(guest, guest.arguments + ["-bogus"], "the new VMM refused: -bogus: invalid option")
        try expectTakenBack(
            guest, guest.arguments.map { $0.replacingOccurrences(of: "16M", with: "32M") },
            "RAM block 'ram' has length 16777216 in the CPR state, but 33554432 on the command line")
        try expectTakenBack(
            guest, guest.arguments.filter { $0 != "-cpr-enable" && $0 != "restart" }, "which is not enabled")
        try expectTakenBack(guest, guest.arguments + ["-smp", "2"], "the checkpoint has no section 'cpu1'")
        try expectTakenBack(
            guest, guest.arguments + ["-module", "/nonexistent.so"], "'/nonexistent.so' cannot be opened")
        // After all of that a good one still works.
        let stopped = guest.count
        #expect(try update(guest, guest.arguments) == "updated")
        try guest.waitForProgress(past: stopped)
    }

    @Test func thePIDFileNamesTheVMMThatHasTheGuest() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("pid")
        func pid() throws -> Int32? {
            Int32(try String(contentsOfFile: file, encoding: .utf8).trimmingCharacters(in: .whitespacesAndNewlines))
        }
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-pidfile", file])
        #expect(try pid() == guest.process.pid)
        #expect(try update(guest, guest.arguments) == "updated")
        #expect(try pid() == guest.process.pid)
        #expect(try update(guest, ["false"]).contains("taken back"))
        let event = try guest.qmp.waitForEvent("CPR_ROLLED_BACK")
        let other = try #require(event["pid"] as? Int)
        #expect(other != Int(guest.process.pid))
        #expect(try pid().map(Int.init) == other)
        try guest.qmp.execute("quit")
        try eventually("the file is removed") { !FileManager.default.fileExists(atPath: file) }
    }

    @Test func aPausedGuestIsTakenBackPaused() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        try guest.qmp.execute("stop")
        let count = guest.count
        #expect(try update(guest, ["false"]).contains("taken back"))
        #expect(try guest.qmp.status() == "paused")
        #expect(guest.count == count)
    }

    @Test func aSuccessorThatIsToldToEndEndsTheGuest() throws {
        let guest = try CountingGuest()
        try guest.save()
        try guest.exec()
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
        // Nobody has taken the guest back: the monitor does not answer.
        #expect(throws: (any Error).self) { try QMPClient(path: guest.directory.file("qmp"), by: .seconds(1)) }
        let count = guest.count
        #expect(throws: (any Error).self) {
            try eventually("the guest counts", by: .seconds(1)) { guest.count > count }
        }
    }

    @Test func badArgumentsAreRefusedBeforeTheGuestStops() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        #expect(try update(guest, []).contains("non-empty argv"))
        #expect(try update(guest, guest.arguments, timeout: 0).contains("'timeout-ms' expects a number from 1"))
        #expect(guest.qmp.events.isEmpty)
    }

    /// The descriptors of a VMM that has nothing of an update left in hand: it
    /// has answered a command since.
    private func settledDescriptors(_ guest: CountingGuest) throws -> [String] {
        _ = try guest.qmp.status()
        return try guest.openDescriptors()
    }

    /// The VMM's own memory, without the guest's, and its threads.
    private func memoryAndThreads(_ guest: CountingGuest) throws -> (kilobytes: Int, threads: Int) {
        let status = try String(contentsOfFile: "/proc/\(guest.process.pid)/status", encoding: .utf8)
        func number(_ key: String) -> Int {
            let line = status.split(separator: "\n").first { $0.hasPrefix(key) } ?? ""
            return Int(line.drop { !$0.isNumber }.prefix { $0.isNumber }) ?? -1
        }
        return (number("RssAnon:"), number("Threads:"))
    }

    @Test func nothingIsLostOrLeaksOverAThousandUpdates() throws {
        let guest = try CountingGuest()
        // Other tests of this process may have given the first VMM descriptors
        // of theirs, which the first update leaves behind.
        var descriptors: [String]?
        var early = (kilobytes: 0, threads: 0)
        var last: UInt64 = 0
        for round in 1...1000 {
            try guest.waitForProgress(past: last)
            last = guest.count
            #expect(try update(guest, guest.arguments) == "updated", "round \(round)")
            #expect(guest.count >= last, "round \(round)")
            // The answer comes while the checkpoint is still being put away.
            let settled = try descriptors ?? settledDescriptors(guest)
            try eventually("no descriptor too many or too few in round \(round)") {
                try guest.openDescriptors() == settled
            }
            descriptors = settled
            if round == 10 { early = try memoryAndThreads(guest) }
        }
        let late = try memoryAndThreads(guest)
        #expect(late.threads == early.threads && late.kilobytes < early.kilobytes + 512, "\(early) \(late)")
        try guest.waitForProgress(past: last)
        let report = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(report["generation"] as? Int == 1000)
        // Each update told its pause, in order of its phases.
        let pauses = guest.qmp.events.filter { $0["event"] as? String == "CPR_UPDATED" }
        #expect(pauses.count == 1000)
        for event in pauses {
            let times = try #require(event["data"] as? [String: Int])
            // The others are of the time in which the guest ran.
            let names = ["stop", "drain", "save", "wait-load", "load", "resume"]
            let parts = names.reduce(0) { $0 + (times["\($1)-us"] ?? 0) }
            let pause = try #require(times["pause-us"])
            #expect(pause > 0 && (pause - 10...pause).contains(parts), "\(times)")
        }
        // The old VMMs end by themselves, and leave no zombies.
        let pid = guest.process.pid
        try eventually("the old VMMs end") {
            try String(contentsOfFile: "/proc/\(pid)/task/\(pid)/children", encoding: .utf8) == ""
        }
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }
}
