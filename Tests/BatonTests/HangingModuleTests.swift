import Foundation
import TestSupport
import Testing

/// A preserver in C that misbehaves in a step of the tester's choice: the
/// update ends, and never the guest.
@Suite(
    "Misbehaving preserver", .serialized,
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct HangingModuleTests {
    private let directory: TemporaryDirectory
    private let module: String

    init() throws {
        directory = try TemporaryDirectory()
        // "STEP WHAT" in the file says what the preserver does in a step.
        let source = """
            #include <baton-module.h>
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
                snprintf(want, sizeof want, "%s crash", step);
                if (strcmp(line, want) == 0) abort();
                snprintf(want, sizeof want, "%s fail", step);
                if (strcmp(line, want) == 0) return baton_fail(host, "as ordered");
                return 0;
            }
            static int32_t init(struct baton_host *host) { return act(host, "init"); }
            static int32_t save(struct baton_host *host) { return act(host, "save"); }
            static int32_t exec(struct baton_host *host) { return act(host, "exec"); }
            static int32_t load(struct baton_host *host) { return act(host, "load"); }
            static const struct baton_method methods[] = {
                BATON_METHOD("init", "i(h)", init), BATON_METHOD("save", "i(h)", save),
                BATON_METHOD("exec", "i(h)", exec), BATON_METHOD("load", "i(h)", load),
            };
            const struct baton_module_descriptor *baton_module_query(void);
            const struct baton_module_descriptor *baton_module_query(void) {
                static const struct baton_module_descriptor descriptor = {
                    .magic = BATON_MODULE_MAGIC, .size = sizeof descriptor, .abi = BATON_MODULE_ABI,
                    .kind = "preserver", .name = "rogue", .version = "1",
                    .methods = methods, .method_count = BATON_COUNT(methods),
                };
                return &descriptor;
            }
            """
        module = directory.file("libpreserver-rogue.so")
        _ = try ChildProcess.run([
            try #require(Products.find("clang")), "-std=gnu11", "-shared", "-fPIC", "-I", Products.headers, "-o", module,
            try directory.write("module.c", source),
        ])
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
                "cpr-update", ["argv": guest.arguments, "preflight": false, "timeout-ms": deed == "hang" ? 700 : 20_000])
        }
        if deed == "fail" { #expect(text.contains("as ordered"), "\(text)") }
        #expect(text != "accepted")
        #expect(try guest.qmp.status() == "running")
        try guest.waitForProgress(past: before)
        // The same client, with a preserver that behaves again.
        try directory.write("orders", "")
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": false])
        try guest.waitForProgress(past: guest.count)
    }
}
