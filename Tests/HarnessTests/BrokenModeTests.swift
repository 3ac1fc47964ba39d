import Foundation
import Harness
import TestSupport
import Testing

/// The harness finds what is wrong with a mode: each way in which the broken
/// mode can be broken is caught by the rows that are there for it.
struct BrokenModeTests {
    /// The broken module under a name that the loader takes, and the file that says how it is broken.
    private final class Module: Sendable {
        let directory: TemporaryDirectory
        let configuration: HarnessConfiguration

        /// - Parameter timeout: how long a row waits for what is not to come, in seconds.
        init(_ way: String, timeout: Double) throws {
            directory = try TemporaryDirectory()
            let module = directory.file("libmode-broken.so")
            try FileManager.default.copyItem(atPath: Products.module("broken-mode"), toPath: module)
            var configuration = HarnessTests.configuration("broken")
            configuration.modules = [module]
            configuration.preservers = ["broken"]
            configuration.environment = ["BATON_BROKEN_MODE": try directory.write("way", way)]
            configuration.timeout = timeout
            configuration.repetitions = 10
            self.configuration = configuration
        }
    }

    private static let ways: [(way: String, row: String)] = [
        ("register", "registers"), ("float-register", "registers"), ("ram", "ram"), ("device", "devices"),
        ("clock", "guest-time"), ("no-stop", "running-three-steps"), ("resumes", "paused-one-step"),
        ("resumes", "paused-three-steps"), ("stays-stopped", "running-one-step"), ("blocks", "running-one-step"),
        ("returns", "running-three-steps"), ("forgets-listener", "listening-socket"),
        ("forgets-connection", "qmp-connection"), ("forgets-connection", "accepted-connection"),
        ("forgets-connection", "monitor-connection"), ("forgets-file", "open-files"), ("forgets-pty", "terminal"),
        ("leaks-fd", "repeated"), ("other-pid", "pid"),
        ("no-blockers", "refuses-volatile-ram"),
        ("promises-reboot", "survives-volatile-ram"), ("preserver-leaks", "preserver-after-failed-exec"),
        ("preserver-loses", "preserver-descriptors"), ("preserver-closes", "preserver-leaks"),
    ]

    @Test("A broken mode is caught", arguments: ways)
    func caught(way: String, row: String) throws {
        let module = try Module(way, timeout: 4)
        let (_, verdict) = try HarnessTests.run(row, try Harness(module.configuration))
        guard case .failed = verdict else {
            Issue.record("'\(way)' was not caught by \(row): \(verdict)")
            return
        }
    }

    @Test("The same rows pass when nothing is broken", arguments: Set(ways.map(\.row)).sorted())
    func passes(row: String) throws {
        let module = try Module("", timeout: 120)
        let (definition, verdict) = try HarnessTests.run(row, try Harness(module.configuration))
        if definition.promises.contains(.survivesHostReboot) {
            #expect(verdict == .notPromised)
        } else if case .failed(let text) = verdict {
            Issue.record("\(row): \(text)")
        } else {
            #expect(verdict != .notPromised)
        }
    }

    @Test func theCommandPrintsATableAndFailsWhenARowDoes() throws {
        let tool = HarnessTests.configuration("broken").tool
        let module = try Module("other-pid", timeout: 4)
        let command = [tool, "--mode", "broken", "--module"] + module.configuration.modules
        let only = ["--only", "pid", "--only", "survives-file-mode"]
        let bad = try ChildProcess(command + only + ["--timeout", "4"], environment: module.configuration.environment)
        #expect(try bad.waitForExit() == .status(1))
        #expect(bad.output.contains("FAIL") && bad.output.contains("not promised"))
        #expect(bad.output.contains("2 rows, 1 failed"), "\(bad.output)\(bad.errors)")
        let good = try ChildProcess(command + only + ["--json"])
        #expect(try good.waitForExit() == .status(0))
        let rows = try good.output.split(separator: "\n").map {
            try #require(try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: String])
        }
        #expect(rows.map { $0["result"] } == ["pass", "not promised"])
        #expect(rows.map { $0["row"] } == ["pid", "survives-file-mode"])
    }

    @Test func theCommandRefusesWhatItDoesNotKnow() throws {
        let tool = HarnessTests.configuration("broken").tool
        let row = try ChildProcess([tool, "--mode", "restart", "--only", "no-such-row"])
        #expect(try row.waitForExit() == .status(64))
        #expect(row.errors.contains("there is no row 'no-such-row'"))
        let mode = try ChildProcess([tool, "--mode", "no-such-mode"])
        #expect(try mode.waitForExit() == .status(1))
        #expect(mode.errors.contains("there is no mode module 'no-such-mode'"), "\(mode.errors)")
        let list = try ChildProcess.run([tool, "--mode", "restart", "--list"])
        #expect(list.contains("kill-load") && list.contains("SIGKILL"))
    }
}
