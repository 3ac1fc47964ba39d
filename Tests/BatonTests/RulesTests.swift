import Foundation
import TestSupport
import Testing

/// What keeps a VM from being updated is said at start, in `query-cpr`, and by
/// `cpr-save` before the guest stops.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct RulesTests {
    private func start(_ arguments: [String]) throws -> (exit: ChildProcess.Exit, errors: String) {
        let process = try ChildProcess(
            [Products.baton, "-machine", "virt", "-nodefaults", "-display", "none"] + arguments)
        return (try process.waitForExit(), process.errors)
    }

    @Test(arguments: [
        ([], "-only-cpr-capable requires -cpr-enable"),
        (
            [
                "-cpr-enable", "restart", "-m", "16M", "-object", "memory-backend-ram,id=ram,size=16M", "-machine",
                "memory-backend=ram",
            ],
            "-only-cpr-capable specified, but: Memory region ram is volatile. "
                + "A memory-backend-memfd or memory-backend-file with share=on is required."
        ),
    ])
    func onlyCprCapableRefusesAtStart(_ arguments: [String], _ reason: String) throws {
        let (exit, errors) = try start(arguments + ["-only-cpr-capable"])
        #expect(exit == .status(1))
        #expect(errors.contains(reason), "\(errors)")
    }

    @Test func aCapableVMStartsAndIsUpdated() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart,reboot", "-only-cpr-capable"])
        defer { _ = try? guest.qmp.execute("quit") }
        let count = guest.count
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: count)
        let info = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(info["only-cpr-capable"] as? Bool == true)
    }

    @Test func queryCprTellsWhatBlocksAModeAndCprSaveSaysTheSame() throws {
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart,reboot", "-object", "memory-backend-ram,id=other,size=1M",
        ])
        defer { _ = try? guest.qmp.execute("quit") }
        let info = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        let modes = try #require(info["modes"] as? [[String: Any]])
        let text =
            "Memory region other is volatile. A memory-backend-memfd or memory-backend-file with share=on is required."
        #expect(modes.map { $0["name"] as? String } == ["restart", "reboot"])
        #expect(modes.map { $0["blockers"] as? [String] } == [[text], []])
        #expect(modes.map { $0["same-pid"] as? Bool } == [true, false])
        #expect(modes.map { $0["survives-host-reboot"] as? Bool } == [false, true])
        #expect(refusal { try guest.save() }.contains(text))
        #expect(refusal { try guest.qmp.execute("cpr-update", ["argv": guest.arguments]) }.contains(text))
        #expect(try guest.qmp.status() == "running")
        #expect(!guest.qmp.events.contains { $0["event"] as? String == "STOP" })
        let human = try #require(
            try guest.qmp.execute("human-monitor-command", ["command-line": "info cpr"]) as? String)
        #expect(human.contains("restart is blocked: \(text)"))
    }

    @Test func queryCprTellsWhatIsPreserved() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        let info = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(info["pid"] as? Int == Int(guest.process.pid))
        #expect(info["argv"] as? [String] == guest.arguments)
        let fds = try #require(info["fds"] as? [[String: Any]])
        let names = Set(fds.compactMap { $0["name"] as? String })
        #expect(
            names.isSuperset(of: [
                "chardev-serial0-file", "chardev-compat_monitor0-listener", "chardev-compat_monitor0-connection",
            ]))
        // They are open in that process, under that number.
        for fd in fds {
            let number = try #require(fd["fd"] as? Int)
            #expect(FileManager.default.fileExists(atPath: "/proc/\(guest.process.pid)/fdinfo/\(number)"))
        }
        let ram = try #require(info["ram"] as? [[String: Any]])
        #expect(ram.contains { $0["name"] as? String == "ram" && $0["used-length"] as? Int == 16 << 20 })
        // Asking changes nothing: it can be asked again, and updated.
        #expect(
            (try guest.qmp.execute("query-cpr") as? [String: Any])?["fds"] as? [NSDictionary] == fds as [NSDictionary])
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
    }

    @Test func theHistoryOfUpdatesSurvivesThem() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        func history() throws -> [[String: Any]] {
            let info = try guest.qmp.execute("query-cpr") as? [String: Any]
            return try #require(info?["history"] as? [[String: Any]])
        }
        #expect(try history().isEmpty)
        for _ in 1...2 { try guest.qmp.execute("cpr-update", ["argv": guest.arguments]) }
        #expect(
            refusal { try guest.qmp.execute("cpr-update", ["argv": ["false"], "preflight": false]) }.contains(
                "taken back"))
        let records = try history()
        #expect(records.count == 3)
        #expect(records.map { $0["failure"] != nil } == [false, false, true])
        #expect((records[2]["failure"] as? String)?.contains("ended during its start") == true)
        #expect(records[2]["pid"] as? Int != records[1]["pid"] as? Int)
        let about = try guest.qmp.execute("query-version") as? [String: Any]
        let package = try #require(about?["package"] as? String)
        #expect(package.wholeMatch(of: #/baton-\d+\.\d+\.\d+(\+g[0-9a-f]{12})?/#) != nil, "\(package)")
        let version = String(package.dropFirst("baton-".count))
        #expect(records.map { $0["from-version"] as? String } == [version, version, version])
        #expect(records.map { $0["to-version"] as? String } == [version, version, nil])
        let times = try #require(records[0]["times"] as? [String: Int])
        #expect(try #require(times["pause-us"]) > 0)
        for _ in 1...20 { try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": false]) }
        // The oldest are forgotten.
        #expect(try history().count == 16)
    }
}
