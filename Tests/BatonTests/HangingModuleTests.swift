import Foundation
import TestSupport
import Testing

/// A preserver in C that misbehaves in a step of the tester's choice: the
/// update ends, and never the guest.
@Suite(
    "Misbehaving preserver",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct HangingModuleTests {
    private let directory: TemporaryDirectory
    private let module: String

    init() throws {
        directory = try TemporaryDirectory()
        // "STEP WHAT" in the file says what the preserver does in a step.
        let source = """
            #include <signal.h>
            #include <stdio.h>
            #include <stdlib.h>
            #include <string.h>
            #include <unistd.h>
            static int32_t act(struct baton_host *host, const char *step) {
                char line[64] = "", want[64];
                FILE *file = fopen("\(directory.file("orders"))", "re");
                if (file) { if (!fgets(line, sizeof line, file)) line[0] = 0; fclose(file); }
                snprintf(want, sizeof want, "%s hang", step);
                if (strcmp(line, want) == 0) for (;;) pause();
                snprintf(want, sizeof want, "%s spin", step);
                if (strcmp(line, want) == 0) for (volatile int turn = 0;; turn++) {}
                snprintf(want, sizeof want, "%s dawdle", step);
                if (strcmp(line, want) == 0) usleep(50000);
                snprintf(want, sizeof want, "%s crash", step);
                if (strcmp(line, want) == 0) abort();
                snprintf(want, sizeof want, "%s kill", step);
                if (strcmp(line, want) == 0) {
                    FILE *note = fopen("\(directory.file("killed"))", "we");
                    if (note) { fprintf(note, "%d", getpid()); fclose(note); }
                    kill(getpid(), SIGKILL);
                }
                snprintf(want, sizeof want, "%s fail", step);
                if (strcmp(line, want) == 0) return baton_fail(host, "as ordered");
                return 0;
            }
            static int32_t check(struct baton_host *host, const char *mode, uint32_t promises) {
                return act(host, "check");
            }
            static int32_t survey(struct baton_host *host) { return act(host, "survey"); }
            static void commit(struct baton_host *host) { act(host, "commit"); }
            static void save_failed(struct baton_host *host) { act(host, "save-failed"); }
            static int32_t init(struct baton_host *host) { return act(host, "init"); }
            static int32_t save(struct baton_host *host) { return act(host, "save"); }
            static int32_t exec(struct baton_host *host) { return act(host, "exec"); }
            static int32_t load(struct baton_host *host) { return act(host, "load"); }
            static int32_t ping(struct baton_host *host) { (void)host; return 0; }
            static const struct baton_command commands[] = { BATON_COMMAND("rogue-ping", "i(h)", ping, NULL) };
            static const struct baton_method methods[] = {
                BATON_METHOD("init", "i(h)", init), BATON_METHOD("save", "i(h)", save),
                BATON_METHOD("exec", "i(h)", exec), BATON_METHOD("load", "i(h)", load),
                BATON_METHOD("check", "i(hsI)", check), BATON_METHOD("survey", "i(h)", survey),
                BATON_METHOD("commit", "v(h)", commit), BATON_METHOD("save-failed", "v(h)", save_failed),
            };
            """
        module = try CModule.build(kind: "preserver", name: "rogue", source, tables: ["commands"], in: directory)
    }

    @Test(
        "What a step does leaves the guest running, and the next update works",
        arguments: ["save", "exec", "init", "load"], ["hang", "crash", "fail"])
    func endsTheUpdate(_ step: String, _ deed: String) throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
        try directory.write("orders", "\(step) \(deed)")
        let before = guest.count
        let text = refusal {
            try guest.qmp.execute(
                "cpr-update",
                [
                    "argv": guest.arguments, "preflight": false, "timeout-ms": deed == "hang" ? 700 : 20_000,
                    "downtime-ms": deed == "hang" ? 700 : 20_000,
                ])
        }
        #expect(text.contains(Self.reason(step, deed)), "\(text)")
        #expect(try guest.qmp.status() == "running")
        try guest.waitForProgress(past: before)
        // The same client, with a preserver that behaves again.
        try directory.write("orders", "")
        if ["save", "exec"].contains(step), deed != "fail" {
            // What happened is in the VMM that has the guest, and stays there.
            #expect(refusal { try guest.qmp.execute("cpr-update", ["argv": guest.arguments]) }.contains("rogue: "))
        } else {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": false])
        }
        try guest.waitForProgress(past: guest.count)
    }

    /// What the update's error says of a step's deed: who was in the way, and how.
    private static func reason(_ step: String, _ deed: String) -> String {
        switch (step, deed) {
        case (_, "fail"): "as ordered"
        case ("init", "hang"): "the new VMM did not start within 700 ms"
        case ("init", _): "the new VMM ended during its start"
        case ("load", "hang"): "the new VMM refused: rogue: 'load' did not come back within 525 ms"
        case ("load", _): "the new VMM refused: rogue: 'load' crashed by signal"
        case (_, "hang"): "rogue: '\(step)' did not come back within 700 ms"
        default: "rogue: '\(step)' crashed by signal"
        }
    }

    /// The new VMM has taken the guest and has not resumed it: `commit` is what modules are called with then.
    @Test("A new VMM that is killed between its commit and the guest's resume does not lose the guest")
    func isKilledAfterTheCommit() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
        try directory.write("orders", "commit kill")
        let before = guest.count
        let text = refusal { try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": false]) }
        // It was the new VMM, which has the old one's PID, that was killed, and at that point.
        #expect(try String(contentsOfFile: directory.file("killed"), encoding: .utf8) == "\(guest.process.pid)")
        #expect(text != "accepted")
        try directory.write("orders", "")
        #expect(try guest.qmp.status() == "running")
        try guest.waitForProgress(past: before)
    }

    // MARK: While the guest runs, and after the commit

    @Test(
        "A step before the update that does not come back refuses it, and the guest goes on",
        arguments: ["check", "survey"], ["hang", "spin"])
    func refusesTheUpdate(_ step: String, _ deed: String) throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
        try guest.qmp.execute("rogue-ping")
        try directory.write("orders", "\(step) \(deed)")
        let text = refusal { try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "timeout-ms": 700]) }
        #expect(text.contains("rogue: '\(step)' did not come back within 700 ms"), "\(text)")
        try expectLeftBehind(guest, step)
    }

    @Test("A short time limit leaves no module behind that is only slow", arguments: ["check", "survey"])
    func isPatientWithWhatHasNoEnd(_ step: String) throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
        try directory.write("orders", "\(step) dawdle")
        let text = refusal { try guest.qmp.execute("cpr-preflight", ["argv": guest.arguments, "timeout-ms": 1]) }
        // On a busy machine the trial can have passed before anybody looks at the time.
        #expect(text.contains("did not start within 1 ms") || text == "accepted", "\(text)")
        try directory.write("orders", "")
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: guest.count)
    }

    @Test("A commit that does not come back costs the guest no more than the time limit", arguments: ["hang", "spin"])
    func goesOnWithoutTheCommit(_ deed: String) throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
        try directory.write("orders", "commit \(deed)")
        let before = guest.count
        // The new VMM gives each module three quarters of what it has itself, and must not be late for it.
        try guest.qmp.execute(
            "cpr-update", ["argv": guest.arguments, "preflight": false, "timeout-ms": 700, "downtime-ms": 5000])
        try guest.waitForProgress(past: before)
        try expectLeftBehind(guest, "commit", within: 525)
    }

    @Test("A step back that does not come back leaves the guest running", arguments: ["hang", "spin"])
    func goesOnWithoutTheStepBack(_ deed: String) throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
        try directory.write("orders", "save-failed \(deed)")
        let before = guest.count
        let text = refusal {
            try guest.qmp.execute("cpr-update", ["argv": ["false"], "preflight": false, "timeout-ms": 700])
        }
        #expect(text.contains("the new VMM ended during its start"), "\(text)")
        try guest.waitForProgress(past: before)
        try expectLeftBehind(guest, "save-failed")
    }

    /// The guest runs; nothing of the module is called or uses the CPU any
    /// more, although it would behave now; updates are refused, and say why.
    private func expectLeftBehind(_ guest: CountingGuest, _ step: String, within limit: Int = 700) throws {
        try directory.write("orders", "")
        #expect(try guest.qmp.status() == "running")
        try guest.waitForProgress(past: guest.count)
        let reason = "rogue: '\(step)' did not come back within \(limit) ms"
        #expect(refusal { try guest.qmp.execute("cpr-update", ["argv": guest.arguments]) }.contains(reason))
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        let pid = try #require(query["pid"] as? Int)
        let modes = query["modes"] as? [[String: Any]]
        let blockers = try #require(modes?.first?["blockers"] as? [String])
        #expect(blockers.contains { $0.contains(reason) })
        #expect(refusal { try guest.qmp.execute("rogue-ping") }.contains("did not come back"))
        func states() throws -> [Character?] {
            try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task").filter { $0 != "\(pid)" }
                .map { try String(contentsOfFile: "/proc/\(pid)/task/\($0)/stat", encoding: .utf8) }
                .map { $0.split(separator: ")").last?.first { $0 != " " } }
        }
        try eventually("the thread that was left behind sleeps") { try states() == ["S"] }
        try guest.qmp.execute("quit")
        try eventually("the VMM ends") { kill(pid_t(pid), 0) != 0 }
    }
}
