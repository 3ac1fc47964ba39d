import Foundation
import Harness
import TestSupport
import Testing

/// The harness finds what is wrong with a mode: each way in which the broken
/// mode can be broken is caught by the rows that are there for it.
struct BrokenModeTests {
    /// The broken module under a name that the loader takes, and the file that says how it is broken.
    final class Module: Sendable {
        let directory: TemporaryDirectory
        let configuration: HarnessConfiguration

        /// - Parameter timeout: how long a row waits for what is not to come, in seconds.
        init(_ way: String, timeout: Double, _ machine: HarnessMachine = .tcg) throws {
            directory = try TemporaryDirectory()
            let module = directory.file("libmode-broken.so")
            try FileManager.default.copyItem(atPath: Products.module("broken-mode"), toPath: module)
            var configuration = HarnessTests.configuration("broken", machine)
            configuration.modules = [module]
            configuration.preservers = ["broken"]
            configuration.environment = ["BATON_BROKEN_MODE": try directory.write("way", way)]
            configuration.timeout = timeout
            configuration.repetitions = 10
            self.configuration = configuration
        }
    }

    /// How the mode is broken, the row that finds it, and what that says.
    private static let ways: [(way: String, row: String, finding: String)] = [
        ("register", "registers", "' became '"),
        ("float-register", "registers", "the guest found changed: its floating-point registers"),
        ("ram", "ram", "1 page(s) of RAM block 'ram' changed, the first at 0x600000"),
        ("device", "devices", "section 'serial0' changed, the first field 'scr'"),
        // Either the guest waits for its time to come again, or that is before the VM's first moment.
        (
            "clock", "guest-time",
            "gave up waiting for: the guest writes two more lines|field 'now-ns' of section 'clock'"
        ),
        ("no-stop", "running-three-steps", "after cpr-save the run state is 'running' and not 'save-vm'"),
        ("resumes", "paused-one-step", "the run state is 'running' and not 'paused'"),
        ("resumes", "paused-three-steps", "the run state is 'running' and not 'paused'"),
        ("stays-stopped", "running-one-step", "the run state is 'paused' and not 'running'"),
        ("blocks", "running-one-step", "'save' did not come back within 500 ms"),
        ("returns", "running-three-steps", "mode 'broken' returned from cpr-exec without an error"),
        ("forgets-listener", "listening-socket", "gave up waiting for: '(baton) '"),
        ("forgets-connection", "qmp-connection", "'cpr-update': no answer from the QMP server"),
        ("forgets-connection", "accepted-connection", "'cpr-update': no answer from the QMP server"),
        ("forgets-connection", "monitor-connection", "'cpr-update': no answer from the QMP server"),
        ("forgets-file", "open-files", "chardev 'log': the inherited descriptor is not there"),
        ("forgets-pty", "terminal", "chardev 'pty': the inherited descriptor is not there"),
        ("leaks-fd", "repeated", "too many of [\"/dev/zero\"]"),
        ("other-pid", "pid", "the QMP server closed the connection during 'cpr-update'"),
        ("no-blockers", "refuses-volatile-ram", "attempt 1 of 2 was not refused"),
        ("promises-reboot", "survives-volatile-ram", "Memory region ram is volatile."),
        ("preserver-leaks", "preserver-after-failed-exec", "too many of [\"/dev/zero\"]"),
        ("preserver-loses", "preserver-descriptors", "broken"),
        // The terminal's number is another file's by the next update.
        ("preserver-closes", "preserver-leaks", "occurs twice|is not the master of"),
    ]

    @Test("A broken mode is caught, and what is wrong with it is said", arguments: ways)
    func caught(way: String, row: String, finding: String) throws {
        let module = try Module(way, timeout: 4)
        let (_, verdict) = try HarnessTests.run(row, try Harness(module.configuration))
        guard case .failed(let text) = verdict else {
            Issue.record("'\(way)' was not caught by \(row): \(verdict)")
            return
        }
        #expect(finding.split(separator: "|").contains { text.contains($0) }, "\(text)")
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
        let accelerator = try ChildProcess([tool, "--mode", "restart", "--accel", "hvf"])
        #expect(try accelerator.waitForExit() == .status(64))
        #expect(accelerator.errors.contains("there is no accelerator 'hvf'"), "\(accelerator.errors)")
        let list = try ChildProcess.run([tool, "--mode", "restart", "--list"])
        #expect(list.contains("kill-load") && list.contains("SIGKILL"))
    }
}
