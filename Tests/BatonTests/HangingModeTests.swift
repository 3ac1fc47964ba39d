import Foundation
import TestSupport
import Testing

/// A mode in C of which a step does not come back, in a VM without preservers:
/// the update ends, and never the guest.
@Suite(
    "Hanging mode", .serialized,
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct HangingModeTests {
    private let directory: TemporaryDirectory
    private let module: String

    init() throws {
        directory = try TemporaryDirectory()
        // The file names the step that hangs.
        let source = """
            \(hangingStep(ordersIn: directory))
            static uint32_t promises(struct baton_host *host) {
                (void)host;
                return BATON_MODE_SAME_PID | BATON_MODE_EXECUTES | BATON_MODE_KEEPS_CONNECTIONS | BATON_MODE_MEMFD_RAM;
            }
            static int32_t check(struct baton_host *host) { (void)host; return act("check"); }
            static int32_t save(struct baton_host *host) { (void)host; return act("save"); }
            static int32_t load(struct baton_host *host) { (void)host; return act("load"); }
            static int32_t exec(struct baton_host *host) { return act("exec") ? 1 : baton_handover(host); }
            static const struct baton_method methods[] = {
                BATON_METHOD("promises", "I(h)", promises), BATON_METHOD("check", "i(h)", check),
                BATON_METHOD("save", "i(h)", save), BATON_METHOD("load", "i(h)", load),
                BATON_METHOD("exec", "i(h)", exec),
            };
            """
        module = try CModule.build(kind: "mode", name: "rogue", source, in: directory)
    }

    @Test(
        "A step that does not come back ends the update, and the guest goes on",
        arguments: [
            ("check", false, true), ("save", false, true), ("exec", false, true), ("load", false, false),
            ("save", true, true), ("load", true, false),
        ])
    func endsTheUpdate(_ step: String, preflight: Bool, isLeftBehind: Bool) throws {
        let guest = try CountingGuest(extra: ["-module", module, "-cpr-enable", "rogue"])
        func update(_ milliseconds: Int) -> String {
            refusal {
                try guest.qmp.execute(
                    "cpr-update",
                    [
                        "argv": guest.arguments, "preflight": preflight, "timeout-ms": milliseconds,
                        "downtime-ms": milliseconds,
                    ])
            }
        }
        try directory.write("orders", step)
        let before = guest.count
        #expect(update(700).contains("within 700 ms"))
        #expect(try guest.qmp.status() == "running")
        try guest.waitForProgress(past: before)
        if step == "save", !preflight {
            // The new VMM was ready by then: the VM keeps the process that it was started as.
            let query = try guest.qmp.execute("query-cpr") as? [String: Any]
            #expect(query?["placeholder-pid"] as? Int == Int(guest.process.pid) && guest.process.isRunning)
        }
        // A mode that behaves again is used again, unless there was nobody else to end its call.
        try directory.write("orders", "")
        let next = update(30_000)
        #expect(
            isLeftBehind ? next.contains("rogue: '\(step)' did not come back within 700 ms") : next == "accepted",
            "\(next)")
        try guest.waitForProgress(past: guest.count)
    }
}
