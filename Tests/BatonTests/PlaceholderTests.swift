import Foundation
import TestSupport
import Testing

/// A new VMM that refuses stays as a placeholder for the old one: whoever knows the VM by the PID that it was started
/// with notices nothing.
@Suite("Placeholders", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct PlaceholderTests {
    private func refuse(_ guest: CountingGuest) throws {
        let before = guest.count
        #expect(guest.update(guest.arguments + ["-bogus"]).contains("the new VMM refused: -bogus"))
        try guest.waitForProgress(past: before)
    }

    /// The process that has the guest, and its placeholder.
    private func pids(_ guest: CountingGuest) throws -> (vmm: pid_t, placeholder: pid_t?) {
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        return (pid_t(try #require(query["pid"] as? Int)), (query["placeholder-pid"] as? Int).map { pid_t($0) })
    }

    private func children(of pid: pid_t) throws -> [pid_t] {
        try String(contentsOfFile: "/proc/\(pid)/task/\(pid)/children", encoding: .utf8).split(separator: " ")
            .compactMap { pid_t($0) }
    }

    @Test("Whoever waits for the VM's process sees it end with the VM, and it holds nothing of the VM meanwhile")
    func end() throws {
        let guest = try CountingGuest()
        #expect(try pids(guest) == (guest.process.pid, nil))
        try refuse(guest)
        let (vmm, placeholder) = try pids(guest)
        #expect(placeholder == guest.process.pid && vmm != guest.process.pid)
        let process = "/proc/\(guest.process.pid)"
        #expect(try FileManager.default.contentsOfDirectory(atPath: "\(process)/fd") == [])
        #expect(try !String(contentsOfFile: "\(process)/maps", encoding: .utf8).contains(guest.directory.path))
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: "\(process)/cwd") == "/")
        #expect(guest.process.isRunning)
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("A new VMM that ends in order, whyever, stays as one that refuses")
    func endInOrder() throws {
        let guest = try CountingGuest()
        for _ in 1...2 {
            let before = guest.count
            #expect(guest.update(guest.arguments + ["-version"]).contains("refused: it ended, and gave no reason"))
            try guest.waitForProgress(past: before)
            #expect(try pids(guest).placeholder == guest.process.pid)
        }
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("A placeholder ends by the signal that its VMM ends by")
    func endBySignal() throws {
        let guest = try CountingGuest()
        try refuse(guest)
        kill(try pids(guest).vmm, SIGKILL)
        #expect(try guest.process.waitForExit() == .signal(SIGKILL))
    }

    @Test("A placeholder ends with its child's status, and at once without a child", arguments: [0, 7, 255])
    func status(_ status: Int) throws {
        let waits = "while [ \"$(cat /proc/$PPID/comm)\" != baton-place ]; do :; done; exit \(status)"
        let child = try ChildProcess([
            "sh", "-c", "sh -c '\(waits)' & exec \"$0\" -placeholder-for $!", Products.baton,
        ])
        #expect(try child.waitForExit() == .status(Int32(status)))
        let alone = try ChildProcess([Products.baton, "-placeholder-for", "1"])
        #expect(try alone.waitForExit() == .status(0))
    }

    @Test("A signal to stop reaches the VM by the PID that it was started with", arguments: [SIGTERM, SIGINT, SIGHUP])
    func signal(_ number: Int32) throws {
        let guest = try CountingGuest()
        try refuse(guest)
        guest.process.signal(number)
        #expect(try guest.process.waitForExit() == .status(0))
        #expect(guest.process.errors.contains("terminating on signal \(number)"))
    }

    @Test("However updates fail, and however often, there are two processes, and the first stays")
    func repeated() throws {
        let guest = try CountingGuest()
        try refuse(guest)
        for round in 1...3 {
            for (argv, words) in [
                (guest.arguments + ["-bogus"], "refused"), (["sh", "-c", "kill -SEGV $$"], "ended"),
                (["sleep", "1000"], "did not start within"), (["/nowhere/baton"], "execvp"),
            ] {
                let before = guest.count
                let text = guest.update(argv, timeout: words == "did not start within" ? 300 : 10_000)
                #expect(text.contains(words), "\(text)")
                try guest.waitForProgress(past: before)
                let (vmm, placeholder) = try pids(guest)
                #expect(placeholder == guest.process.pid && guest.process.isRunning, "round \(round), \(words)")
                try eventually("only the VMM is left below its placeholder, round \(round), \(words)") {
                    try children(of: guest.process.pid) == [vmm] && (try children(of: vmm)) == []
                }
            }
        }
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("A placeholder that has no turn for many updates still finds who has the guest")
    func late() throws {
        let guest = try CountingGuest()
        try refuse(guest)
        guest.process.signal(SIGSTOP)
        for _ in 1...20 { #expect(guest.update(["false"]).contains("ended during its start")) }
        guest.process.signal(SIGCONT)
        let vmm = try pids(guest).vmm
        try eventually("all that have ended are waited for") { try children(of: guest.process.pid) == [vmm] }
        try guest.waitForProgress(past: guest.count)
        guest.process.signal(SIGTERM)
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("After a refusal, updates that succeed keep both PIDs, and a signal to the first ends the VM")
    func successes() throws {
        let guest = try CountingGuest()
        try refuse(guest)
        let before = try pids(guest)
        for _ in 1...3 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            try guest.waitForProgress(past: guest.count)
            #expect(try pids(guest) == before)
        }
        try eventually("the old VMMs have ended") { try children(of: guest.process.pid) == [before.vmm] }
        guest.process.signal(SIGTERM)
        #expect(try guest.process.waitForExit() == .status(0))
        #expect(guest.process.errors.contains("terminating on signal 15"))
    }

    @Test("A signal that comes while the next update is under way is not lost")
    func signalInTheNext() throws {
        let guest = try CountingGuest()
        try refuse(guest)
        try guest.updateToWhatHangs(timeout: 1000)
        guest.process.signal(SIGTERM)
        #expect(try guest.process.waitForExit() == .status(0))
        #expect(guest.process.errors.contains("terminating on signal 15"))
    }

    @Test(
        "A session's leader that refuses keeps the terminal, and its monitor goes on there",
        .enabled(if: Products.find("setsid") != nil, "needs setsid of util-linux"))
    func terminal() throws {
        var ends: (Int32, Int32) = (-1, -1)
        try #require(openpty(&ends.0, &ends.1, nil, nil, nil) == 0)
        defer { for fd in [ends.0, ends.1] { close(fd) } }
        for fd in [ends.0, ends.1] { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
        let guest = try CountingGuest(
            extra: ["-cpr-enable", "restart", "-monitor", "stdio"], prefix: ["setsid", "-c"],
            descriptors: [0: ends.1, 1: ends.1])
        #expect(getsid(guest.process.pid) == guest.process.pid)
        try refuse(guest)
        #expect(getsid(try pids(guest).vmm) == guest.process.pid)
        _ = "quit\n".utf8CString.withUnsafeBytes { write(ends.0, $0.baseAddress, 5) }
        #expect(try guest.process.waitForExit() == .status(0))
        var mode = termios()
        #expect(tcgetattr(ends.1, &mode) == 0 && mode.c_lflag & tcflag_t(ECHO) != 0)
    }

    @Test("A command that runs the VMM as a child of its own ends, and the guest goes on")
    func commandInBetween() throws {
        let guest = try CountingGuest()
        let before = guest.count
        let argv = ["bash", "-c", "\"$@\"; exit 3", "bash"] + guest.arguments + ["-bogus"]
        #expect(guest.update(argv).contains("the new VMM refused: -bogus"))
        #expect(try guest.process.waitForExit() == .status(3))
        try guest.waitForProgress(past: before)
        #expect(try pids(guest).placeholder == nil)
        try guest.qmp.execute("quit")
    }

    @Test("A daemon is ended by the PID that it was started with, and its PID file names the VMM")
    func daemon() throws {
        let directory = try TemporaryDirectory()
        let arguments = try CountingGuest.daemonArguments(in: directory)
        func stated() throws -> pid_t? {
            pid_t(try String(contentsOfFile: directory.file("pid"), encoding: .utf8).trimmingCharacters(in: .newlines))
        }
        #expect(try ChildProcess(arguments).waitForExit() == .status(0))
        let qmp = try QMPClient(path: directory.file("qmp"))
        let first = try #require(try stated())
        let text = refusal {
            try qmp.execute("cpr-update", ["argv": arguments + ["-bogus"], "preflight": false])
        }
        #expect(text.contains("refused: -bogus"), "\(text)")
        let query = try #require(try qmp.execute("query-cpr") as? [String: Any])
        #expect(query["placeholder-pid"] as? Int == Int(first))
        #expect(try stated() == (query["pid"] as? Int).map { pid_t($0) } && kill(first, 0) == 0)
        kill(first, SIGTERM)
        try eventually("both processes end") {
            !FileManager.default.fileExists(atPath: directory.file("pid")) && kill(first, 0) != 0
        }
    }
}
