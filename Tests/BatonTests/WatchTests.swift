import Foundation
import TestSupport
import Testing

/// What stands between the old VMM and the new one: commands that read and write
/// what they inherit, keep it, or stop. None of them decides who has the guest.
@Suite(
    "The watch over an update",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct WatchTests {
    /// For each inherited descriptor whose link is like a shell pattern.
    private func forEach(_ pattern: String, _ command: String) -> String {
        "for fd in /proc/self/fd/*; do n=${fd##*/}; [ $n -gt 2 ] || continue; "
            + "case $(readlink $fd) in \(pattern)) \(command);; esac; done; "
    }

    @Test(
        "A stage that a stranger reports, or a failure, ends the update and lifts no limit",
        arguments: ["R", "P", "L", "C", "F"])
    func strangersWords(_ letter: String) throws {
        let guest = try CountingGuest()
        let before = guest.count
        let script = "printf %s \(String(repeating: letter, count: 9)) >&${BATON_CPR_REPORT%%:*}; "
        let text = guest.update(["bash", "-c", script + "exec sleep 1000"], timeout: 2000)
        #expect(text.contains("no message of a new VMM"), "\(text)")
        try guest.waitForProgress(past: before)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.qmp.execute("quit")
    }

    @Test("A command that reads all that it inherits takes nothing by that")
    func reader() throws {
        let guest = try CountingGuest()
        // Through the descriptors themselves: bash can name all of them.
        let script =
            forEach("pipe:*|/memfd:*", "timeout 0.2 head -c 1 <&$n >/dev/null 2>&1")
            + "timeout 0.2 head -c 1 <&${BATON_CPR_REPORT%%:*} >/dev/null 2>&1; "
        let before = guest.count
        #expect(guest.update(["bash", "-c", script + "exit 1"]).contains("taken back"))
        try guest.waitForProgress(past: before)
        // Nor does it keep the new VMM from it.
        #expect(guest.update(["bash", "-c", script + "exec \"$@\"", "bash"] + guest.arguments) == "accepted")
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("quit")
    }

    @Test("A command is not given the token, and the VMM that it executes is")
    func token() throws {
        let guest = try CountingGuest()
        let file = guest.directory.file("token")
        let script = forEach("*cpr-token*", "echo $fd >\(file)") + forEach("*cpr-state*", "echo $fd >\(file).state")
        let before = guest.count
        #expect(guest.update(["sh", "-c", script + "exec \"$@\"", "sh"] + guest.arguments) == "accepted")
        #expect(!FileManager.default.fileExists(atPath: file))
        #expect(FileManager.default.fileExists(atPath: file + ".state"))
        try guest.waitForProgress(past: before)
        try guest.qmp.execute("quit")
    }

    /// Does what a new VMM does at its commit, and ends.
    private static let thief = """
        #define _GNU_SOURCE
        #include <dirent.h>
        #include <stdint.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/mman.h>
        #include <unistd.h>
        int main(void) {
            const char *report = getenv("BATON_CPR_REPORT");
            uint64_t secret = report ? strtoull(strchr(report, ':') + 1, NULL, 16) : 0;
            for (int fd = 3; fd < 4096; fd++) {
                char path[64], name[256] = "";
                snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
                if (readlink(path, name, sizeof name - 1) < 0 || !strstr(name, "cpr-token")) continue;
                uint64_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                if (word != MAP_FAILED && *word == secret) *word = ~secret;
            }
            return 1;
        }
        """

    @Test("A command that reads the state on purpose cannot take the guest")
    func thief() throws {
        let guest = try CountingGuest()
        let compiler = try #require(Products.find("clang"))
        let program = guest.directory.file("thief")
        try ChildProcess.run([compiler, "-o", program, try guest.directory.write("thief.c", Self.thief)])
        let text = guest.update([program])
        #expect(text.contains("taken back"), "\(text)")
        try guest.qmp.execute("quit")
    }

    @Test("A process that a command has left with all that it inherited hides neither end nor commit")
    func holder() throws {
        let guest = try CountingGuest()
        let file = guest.directory.file("holder")
        let script = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >\(file); exec \"$@\""
        func holder() throws -> pid_t {
            let text = try String(contentsOfFile: file, encoding: .utf8)
            return try #require(pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines)))
        }
        #expect(guest.update(["sh", "-c", script, "sh"] + guest.arguments) == "accepted")
        let first = try holder()
        let pid = guest.process.pid
        try eventually("the old VMM ends") {
            try String(contentsOfFile: "/proc/\(pid)/task/\(pid)/children", encoding: .utf8)
                .split(separator: " ").map(String.init) == ["\(first)"]
        }
        kill(first, SIGKILL)
        try guest.save()
        try guest.exec(["sh", "-c", script, "sh"] + guest.arguments + ["-S"])
        let second = try holder()
        defer { kill(second, SIGKILL) }
        let stopped = guest.count
        guest.process.signal(SIGKILL)
        try guest.waitForProgress(past: stopped)
        try guest.qmp.waitForEvent("CPR_ROLLED_BACK")
        try guest.qmp.execute("quit")
    }

    @Test("A state that cannot be read is reported to the client", arguments: ["XXXXXXXXXXXX", ""])
    func damagedState(_ text: String) throws {
        let guest = try CountingGuest()
        let damage =
            text.isEmpty
            ? "BATON_CPR_STATE=999; export BATON_CPR_STATE; "
            : "printf \(text) >\(guest.directory.file("bad")); exec 200<\(guest.directory.file("bad")); "
                + "BATON_CPR_STATE=200; "
        // dash has no descriptors of more than one digit.
        let answer = guest.update(["bash", "-c", damage + "exec \"$@\"", "sh"] + guest.arguments)
        #expect(answer.contains("the new VMM refused: ") && answer.contains("CPR"), "\(answer)")
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("quit")
    }

    /// Holds a process that has been killed, as a system call does that cannot be interrupted.
    private static let tracer = """
        #define _GNU_SOURCE
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/ptrace.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            if (argc < 2 || ptrace(PTRACE_SEIZE, atoi(argv[1]), NULL, (void *)(long)PTRACE_O_TRACEEXIT)) {
                puts("refused");
                return 1;
            }
            puts("holding");
            fflush(stdout);
            for (;;) pause();
        }
        """

    @Test("A process that does not end although it was killed is not waited for")
    func unkillable() throws {
        let guest = try CountingGuest()
        let compiler = try #require(Products.find("clang"))
        let program = guest.directory.file("tracer")
        try ChildProcess.run([compiler, "-o", program, try guest.directory.write("tracer.c", Self.tracer)])
        try guest.qmp.executeWithoutAnswer(
            "cpr-update", ["argv": ["sleep", "1000"], "preflight": false, "timeout-ms": 2000])
        try eventually("the exec") {
            (try? String(contentsOfFile: "/proc/\(guest.process.pid)/comm", encoding: .utf8)) == "sleep\n"
        }
        let before = guest.count
        let tracer = try ChildProcess([program, "\(guest.process.pid)"])
        try tracer.waitForOutput("\n")
        // Where nobody may trace, nothing is shown.
        guard tracer.output.hasPrefix("holding") else { return }
        try guest.waitForProgress(past: before)
        #expect(guest.process.isRunning)
        try eventually("the warning") { guest.process.errors.contains("has been killed, and does not end yet") }
        tracer.signal(SIGKILL)
        #expect(try guest.process.waitForExit() == .signal(SIGKILL))
        try guest.qmp.executeWithoutAnswer("quit")
    }

    @Test("The exit status of a module's own child is the module's, also after updates")
    func childrenOfModules() throws {
        let directory = try TemporaryDirectory()
        let source = """
            #include <errno.h>
            #include <spawn.h>
            #include <stdio.h>
            #include <string.h>
            #include <sys/wait.h>
            extern char **environ;
            static int32_t run(struct baton_host *host) {
                char *const argv[] = {"sh", "-c", "exit 7", NULL};
                pid_t pid;
                int status = 0;
                if (posix_spawnp(&pid, "sh", NULL, NULL, argv, environ)) return baton_fail(host, "no child");
                if (waitpid(pid, &status, 0) != pid) return baton_fail(host, "the child is somebody else's");
                return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : baton_fail(host, "another status");
            }
            static const struct baton_command commands[] = { BATON_COMMAND("parent-run", "i(h)", run, NULL) };
            static int32_t nothing(struct baton_host *host) { (void)host; return 0; }
            static const struct baton_method methods[] = {
                BATON_METHOD("save", "i(h)", nothing), BATON_METHOD("load", "i(h)", nothing),
            };
            """
        let module = try CModule.build(kind: "preserver", name: "parent", source, tables: ["commands"], in: directory)
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
        for _ in 1...3 {
            #expect(refusal { try guest.qmp.execute("parent-run") } == "accepted")
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            #expect(refusal { try guest.qmp.execute("parent-run") } == "accepted")
        }
        let pid = guest.process.pid
        try eventually("no zombie is left") {
            try String(contentsOfFile: "/proc/\(pid)/task/\(pid)/children", encoding: .utf8) == ""
        }
        try guest.qmp.execute("quit")
    }
}
