import Foundation
import TestSupport
import Testing

/// What the runtime offers a foreign module, used by one in C in a real VMM.
@Suite("Foreign module's host", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct ForeignHostTests {
    private let directory: TemporaryDirectory
    private let module: String

    init() throws {
        directory = try TemporaryDirectory()
        let source = """
            #include <stdio.h>
            #include <unistd.h>
            static int watched = -1;
            static int32_t watch(struct baton_host *host, int32_t fd) {
                if (watched >= 0) return baton_fail(host, "one is watched already");
                if (baton_watch(host, fd, BATON_FD_READABLE)) return 1;
                watched = fd;
                return 0;
            }
            static int32_t watch_badly(struct baton_host *host, int32_t fd, uint32_t events) {
                return baton_watch(host, fd, events);
            }
            static int32_t keep(struct baton_host *host) {
                return watched < 0 ? 0 : baton_resave_fd(host, "watched", 0, watched);
            }
            static void commit(struct baton_host *host) {
                watched = baton_find_fd(host, "watched", 0);
                if (watched >= 0 && baton_watch(host, watched, BATON_FD_READABLE))
                    baton_report(host, BATON_WARNING, "cannot watch");
            }
            static void ready(struct baton_host *host, int32_t fd, uint32_t events) {
                char text[64] = {0}, data[128];
                ssize_t count = read(fd, text, sizeof text - 1);
                snprintf(data, sizeof data, "{\\"text\\": \\"%s\\", \\"count\\": %u}", text, events);
                baton_emit_event(host, "HOST_SAID", data);
                if (count > 0) return;
                baton_unwatch(host, fd);
                baton_delete_fd(host, "watched", 0);
                close(fd);
                watched = -1;
            }
            static int32_t ok(struct baton_host *host) { (void)host; return 0; }
            static int32_t emit(struct baton_host *host, const char *name, bool has, const char *data) {
                return baton_emit_event(host, name, has ? data : NULL);
            }
            static int32_t block(struct baton_host *host, const char *reason, uint32_t *number) {
                *number = baton_add_blocker(host, reason);
                return *number == 0;
            }
            static int32_t unblock(struct baton_host *host, uint32_t number) {
                baton_remove_blocker(host, number);
                return 0;
            }
            static int32_t save(struct baton_host *host, const char *name, int32_t fd) {
                return baton_save_fd(host, name, 0, fd);
            }
            static int32_t out_of_place(struct baton_host *host, bool handover) {
                uint64_t size;
                return handover ? baton_handover(host) : baton_option_size(host, "size", &size);
            }
            static const struct baton_method methods[] = {
                BATON_METHOD("save", "i(h)", keep), BATON_METHOD("survey", "i(h)", keep),
                BATON_METHOD("load", "i(h)", ok),
                BATON_METHOD("commit", "v(h)", commit), BATON_METHOD("ready", "v(hiI)", ready),
            };
            static const struct baton_parameter
                emit_names[] = {{"name"}, {"data"}}, block_names[] = {{"reason"}, {"number"}},
                number[] = {{"number"}}, watch_names[] = {{"number"}, {"events"}}, fd[] = {{"fd"}},
                save_names[] = {{"name"}, {"number"}}, place[] = {{"handover"}},
                event_names[] = {{"text"}, {"count"}};
            static const struct baton_command commands[] = {
                BATON_COMMAND("host-emit", "i(hs?s)", emit, emit_names),
                BATON_COMMAND("host-block", "i(hs>I)", block, block_names),
                BATON_COMMAND("host-unblock", "i(hI)", unblock, number),
                BATON_COMMAND("host-save", "i(hsi)", save, save_names),
                BATON_COMMAND("host-watch", "i(hf)", watch, fd),
                BATON_COMMAND("host-watch-badly", "i(hiI)", watch_badly, watch_names),
                BATON_COMMAND("host-misuse", "i(hb)", out_of_place, place),
            };
            static const struct baton_event events[] = {{"HOST_SAID", "s?L", event_names}, {"HOST_NOTHING", "", 0}};
            """
        module = try CModule.build(
            kind: "preserver", name: "host", source, tables: ["commands", "events"], in: directory)
    }

    private func guest() throws -> CountingGuest {
        try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
    }

    @Test("Events of its table are sent, when their data is what the table says")
    func events() throws {
        let guest = try self.guest()
        defer { withExtendedLifetime(guest) {} }
        let qmp = guest.qmp
        try qmp.execute(
            "host-emit", ["name": "HOST_SAID", "data": #"{"text": "hello", "count": 18446744073709551615}"#])
        #expect(try qmp.waitForEvent("HOST_SAID")["text"] as? String == "hello")
        try qmp.execute("host-emit", ["name": "HOST_NOTHING"])
        #expect(try qmp.waitForEvent("HOST_NOTHING").isEmpty)
        func said(_ name: String, _ data: String) -> String {
            refusal { try qmp.execute("host-emit", ["name": name, "data": data]) }
        }
        #expect(said("STOP", "{}") == "preserver-host: the event 'STOP' is not in the module's table")
        #expect(said("HOST_SAID", "{}") == "preserver-host: event 'HOST_SAID': Parameter 'text' is missing")
        #expect(said("HOST_SAID", #"{"text": 1}"#).hasSuffix("Invalid parameter type for 'text', expected: string"))
        #expect(said("HOST_SAID", "[]") == "preserver-host: the data of event 'HOST_SAID' is not a JSON object")
        #expect(said("HOST_SAID", "{").hasPrefix("preserver-host: "))
    }

    @Test("A blocker it adds keeps the VM from being updated until it removes it")
    func blockers() throws {
        let guest = try self.guest()
        func update() -> String {
            refusal { try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": false]) }
        }
        let answer = try guest.qmp.execute("host-block", ["reason": "the tape is being rewound"]) as? [String: Any]
        let number = try #require(answer?["number"] as? Int)
        #expect(update() == "preserver-host: the tape is being rewound")
        #expect(try guest.qmp.status() == "running")
        try guest.qmp.execute("host-unblock", ["number": number + 1])
        #expect(update() == "preserver-host: the tape is being rewound")
        try guest.qmp.execute("host-unblock", ["number": number])
        #expect(update() == "accepted")
        #expect(
            refusal { try guest.qmp.execute("host-block", ["reason": ""]) }
                == "preserver-host: a blocker needs a reason")
    }

    @Test("What cannot be saved, or is called out of place, is refused")
    func misuse() throws {
        let guest = try self.guest()
        defer { withExtendedLifetime(guest) {} }
        let qmp = guest.qmp
        func save(_ name: String, _ fd: Int) -> String {
            refusal { try qmp.execute("host-save", ["name": name, "number": fd]) }
        }
        #expect(save("x", 12345) == "preserver-host: 12345 is not a descriptor that can be kept")
        #expect(save("x", -1) == "preserver-host: -1 is not a descriptor that can be kept")
        #expect(save("x", 2) == "preserver-host: 2 is not a descriptor that can be kept")
        #expect(save("", 12345) == "preserver-host: 12345 is not a descriptor that can be kept")
        #expect(
            refusal { try qmp.execute("host-misuse", ["handover": true]) }
                == "preserver-host: baton_handover is for a mode's exec only")
        #expect(
            refusal { try qmp.execute("host-misuse", ["handover": false]) }
                == "preserver-host: options are for a memory backend's check and make only")
    }

    @Test("A descriptor that it watches has its method called, over updates too")
    func watches() throws {
        let guest = try self.guest()
        let qmp = guest.qmp
        var ends: [Int32] = [-1, -1]
        try #require(pipe(&ends) == 0)
        try qmp.execute("getfd", ["fdname": "given"], passing: ends[0])
        close(ends[0])
        try qmp.execute("host-watch", ["fd": "given"])
        func say(_ text: String) throws {
            #expect(write(ends[1], text, text.utf8.count) == text.utf8.count)
            let event = try qmp.waitForEvent("HOST_SAID")
            #expect(event["text"] as? String == text && event["count"] as? Int == 1)
        }
        try say("before")
        for round in 1...2 {
            try qmp.execute("cpr-update", ["argv": guest.arguments])
            try say("round \(round)")
        }
        // The one that takes its guest back has its watches.
        let text = refusal { try qmp.execute("cpr-update", ["argv": ["/bin/false"], "preflight": false]) }
        #expect(text.contains("the new VMM ended during its start"), "\(text)")
        try say("after")
        close(ends[1])
        let last = try qmp.waitForEvent("HOST_SAID")
        #expect(last["text"] as? String == "" && last["count"] as? Int == 4)
        // It is not watched any more, or this would not be taken.
        var more: [Int32] = [-1, -1]
        try #require(pipe(&more) == 0)
        defer { for end in more { close(end) } }
        try qmp.execute("getfd", ["fdname": "given"], passing: more[0])
        try qmp.execute("host-watch", ["fd": "given"])
        try qmp.execute("quit")
    }

    @Test("What cannot be watched is refused")
    func watchesBadly() throws {
        let guest = try self.guest()
        defer { withExtendedLifetime(guest) {} }
        func watch(_ fd: Int, _ events: Int) -> String {
            refusal { try guest.qmp.execute("host-watch-badly", ["number": fd, "events": events]) }
        }
        #expect(watch(12345, 1) == "preserver-host: 12345 is not a descriptor that can be watched")
        #expect(watch(0, 1) == "preserver-host: 0 is not a descriptor that can be watched")
        // Somebody else's: those of the monitor are among them. Nothing is watched for, should one be nobody's.
        let others = (3..<64).map { watch($0, 0) }.filter { $0.contains("another part's descriptor") }
        #expect(others.count >= 2)
        let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
        defer { close(null) }
        try guest.qmp.execute("getfd", ["fdname": "null"], passing: null)
        // epoll(7) knows no such files.
        #expect(refusal { try guest.qmp.execute("host-watch", ["fd": "null"]) }.contains("Operation not permitted"))
        #expect(watch(3, 12).contains("12 are no events to watch for"))
        #expect(try guest.qmp.status() == "running")
    }
}
