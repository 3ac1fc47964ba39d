import Foundation
import TestSupport
import Testing

/// The processes around a VMM: its session, its service manager, its namespace,
/// and whoever stops it.
@Suite(
    "Around an update",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct SessionTests {
    private func expectNobody(_ guest: CountingGuest) throws {
        while try guest.qmp.receive() != nil {}
        let count = guest.count
        usleep(300_000)
        #expect(guest.count == count)
    }

    // MARK: Terminals

    /// As tmux and `ssh -t` do.
    @Test(
        "A session leader's guest survives the leader, its terminal's hangup, and is not told by the terminal",
        .enabled(if: Products.find("setsid") != nil, "needs setsid of util-linux"))
    func sessionLeader() throws {
        var ends: (Int32, Int32) = (-1, -1)
        try #require(openpty(&ends.0, &ends.1, nil, nil, nil) == 0)
        for fd in [ends.0, ends.1] { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
        let guest = try CountingGuest(
            extra: ["-cpr-enable", "restart", "-monitor", "stdio"], prefix: ["setsid", "-c"],
            descriptors: [0: ends.1, 1: ends.1])
        #expect(getsid(guest.process.pid) == guest.process.pid)
        let before = guest.count
        // One that crashes, and is gone before anybody can see it; one that is ended.
        #expect(guest.update(["sh", "-c", "kill -SEGV $$"]).contains("ended during its start"))
        try guest.waitForProgress(past: before)
        #expect(try guest.qmp.status() == "running")
        close(ends.1)
        // Nobody has the terminal any more.
        close(ends.0)
        let count = guest.count
        #expect(guest.update(["sleep", "1000"], timeout: 300).contains("did not start within 300 ms"))
        try guest.waitForProgress(past: count)
        #expect(try guest.qmp.status() == "running")
        #expect(!guest.process.errors.contains("terminating on signal"))
        try guest.qmp.execute("quit")
    }

    @Test("A lost terminal is the end of its chardev and not of the VMM")
    func hangup() throws {
        var ends: (Int32, Int32) = (-1, -1)
        try #require(openpty(&ends.0, &ends.1, nil, nil, nil) == 0)
        for fd in [ends.0, ends.1] { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
        let guest = try CountingGuest(
            extra: ["-cpr-enable", "restart", "-monitor", "stdio"], descriptors: [0: ends.1, 1: ends.1])
        close(ends.1)
        close(ends.0)
        try guest.waitForProgress(past: guest.count)
        #expect(guest.update(["false"]).contains("taken back"))
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("quit")
    }

    // MARK: Signals

    // bash leaves the signal mask alone; dash unblocks all when it waits for a child.

    @Test(
        "A signal to stop that comes before the new VMM can take it ends that in order",
        arguments: [SIGTERM, SIGINT, SIGHUP])
    func earlyStop(_ number: Int32) throws {
        let guest = try CountingGuest()
        let (started, go) = (guest.directory.file("started"), guest.directory.file("go"))
        let script = "touch \(started); while [ ! -e \(go) ]; do sleep 0.02; done; exec \"$@\""
        try guest.qmp.executeWithoutAnswer(
            "cpr-update", ["argv": ["bash", "-c", script, "bash"] + guest.arguments, "preflight": false])
        try eventually("the exec") { FileManager.default.fileExists(atPath: started) }
        guest.process.signal(number)
        try guest.directory.write("go", "")
        #expect(try guest.process.waitForExit() == .status(0))
        #expect(guest.process.errors.contains("terminating on signal \(number)"))
        try expectNobody(guest)
    }

    @Test("A stop that the new VMM did not come to is not undone by the guest's return")
    func stopOfOneThatHangs() throws {
        let guest = try CountingGuest()
        try guest.updateToWhatHangs(timeout: 2000)
        guest.process.signal(SIGTERM)
        try guest.process.waitForExit()
        try expectNobody(guest)
        #expect(guest.process.errors.contains("terminating on signal 15"))
    }

    /// A service manager that knows the old VMM sends them there.
    @Test("A stop of the old VMM ends the new one that has its guest", arguments: [SIGTERM, SIGINT])
    func stopOfOldVMM(_ number: Int32) throws {
        let guest = try CountingGuest()
        try guest.save()
        try guest.exec()
        let old = try #require(
            try ProcFile.children(of: guest.process.pid).first {
                try !ProcFile.text("/proc/\($0)/comm").hasPrefix("baton-warden")
            })
        kill(old, number)
        #expect(try guest.process.waitForExit() == .status(0))
        try eventually("the old VMM has ended") { kill(old, 0) != 0 }
        try expectNobody(guest)
    }

    @Test("The new VMM has no signal blocked, nor have its children")
    func signalMask() throws {
        let guest = try CountingGuest()
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        let status = try String(contentsOfFile: "/proc/\(guest.process.pid)/status", encoding: .utf8)
        let blocked = status.split(separator: "\n").first { $0.hasPrefix("SigBlk:") }
        #expect(blocked?.hasSuffix("0000000000000000") == true, "\(blocked ?? "")")
        guest.process.signal(SIGTERM)
        #expect(try guest.process.waitForExit() == .status(0))
    }

    // MARK: Service managers

    /// A VM that tells a service manager.
    private struct Service {
        let directory: TemporaryDirectory
        let manager: NotifySocket
        let guest: CountingGuest
        let isSandboxed: Bool

        init(isSandboxed: Bool) throws {
            self.isSandboxed = isSandboxed
            directory = try TemporaryDirectory()
            manager = try NotifySocket(directory)
            guest = try CountingGuest(
                extra: ["-cpr-enable", "restart"] + (isSandboxed ? [] : ["-sandbox", "off"]),
                environment: ["NOTIFY_SOCKET": manager.path], paths: isSandboxed ? [] : nil)
            #expect(try manager.next().text == "READY=1")
        }

        /// Takes what the manager is told of an update that has come to its exec, in `process`.
        /// - Returns: the old VMM, which it is told of last.
        func oldVMM(after process: pid_t) throws -> pid_t {
            if isSandboxed {
                // From here only the warden reaches the manager: it names itself before the exec.
                let (standIn, sender) = try manager.nextMainProcess()
                #expect(standIn == sender && standIn != process)
                #expect(try ProcFile.text("/proc/\(standIn)/comm").hasPrefix("baton-warden"))
            }
            let (old, sender) = try manager.nextMainProcess()
            #expect(old != process && kill(old, 0) == 0)
            // The process that executes says so itself: before it does.
            if !isSandboxed { #expect(sender == process) }
            return old
        }

        /// Takes what it is told of a success. Until it has read that the old VMM is there.
        func expectSuccess(in process: pid_t) throws {
            let old = try oldVMM(after: process)
            let (new, sender) = try manager.nextMainProcess()
            #expect(new == process)
            if !isSandboxed { #expect(sender == old) }
            let barrier = try manager.next()
            #expect(barrier.text == "BARRIER=1")
            let descriptor = try #require(barrier.descriptor)
            #expect(try ProcFile.text("/proc/\(old)/stat").contains(") Z ") == false)
            close(descriptor)
            try eventually("the old VMM has ended") { kill(old, 0) != 0 }
            #expect(manager.isQuiet)
        }
    }

    @Test(
        "The main process that a service manager knows is none that may fail in an update", arguments: [false, true])
    func mainProcess(isSandboxed: Bool) throws {
        let service = try Service(isSandboxed: isSandboxed)
        let (guest, manager) = (service.guest, service.manager)
        let first = guest.process.pid
        for _ in 0..<2 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            try service.expectSuccess(in: first)
        }
        // An exec that fails leaves the process what it is: it says so before the end of the other one.
        #expect(guest.update(["/nonexistent"]).contains("execvp"))
        #expect(try manager.nextMainProcess().pid != first)
        #expect(try manager.nextMainProcess().pid == first)
        #expect(manager.isQuiet)
        // There is nothing to wait for when a process that hangs is ended.
        let text = guest.update(["sleep", "1000"], timeout: 300)
        #expect(text.contains("did not start within 300 ms"), "\(text)")
        #expect(try guest.process.waitForExit() == .signal(SIGKILL))
        let second = try service.oldVMM(after: first)
        #expect(manager.isQuiet)
        try guest.waitForProgress(past: guest.count)
        // The same from there. One that crashes at once is gone when the manager looks.
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try service.expectSuccess(in: second)
        #expect(guest.update(["false"]).contains("taken back"))
        let third = try service.oldVMM(after: second)
        #expect(manager.isQuiet)
        try guest.waitForProgress(past: guest.count)
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(query["pid"] as? Int == Int(third))
        try guest.qmp.execute("quit")
        #expect(try manager.next().text == "STOPPING=1")
        #expect(manager.isQuiet)
    }

    @Test("A VMM in a sandbox executes another one when the manager has been told, and the guest runs until then")
    func warden() throws {
        let service = try Service(isSandboxed: true)
        let (guest, manager) = (service.guest, service.manager)
        let executed = guest.directory.file("executed")
        #expect(guest.update(["/nonexistent"]).contains("execvp"))
        let warden = try manager.nextMainProcess().pid
        #expect(try manager.nextMainProcess().pid == guest.process.pid)
        kill(warden, SIGSTOP)
        try guest.qmp.executeWithoutAnswer("cpr-update", ["argv": ["touch", executed], "preflight": false])
        try guest.waitForProgress(past: guest.count + 1_000_000)
        #expect(!FileManager.default.fileExists(atPath: executed) && manager.isQuiet)
        kill(warden, SIGCONT)
        try eventually("the exec") { FileManager.default.fileExists(atPath: executed) }
        _ = try service.oldVMM(after: guest.process.pid)
        while let message = try guest.qmp.receive(), message["error"] == nil {}
        // Without one nothing can be said, and the guest has the best of it.
        kill(warden, SIGKILL)
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("quit")
    }

    @Test(
        "A new VMM that refuses stays the main process, whatever comes then", arguments: [false, true])
    func refusalForServiceManager(isSandboxed: Bool) throws {
        let service = try Service(isSandboxed: isSandboxed)
        let (guest, manager) = (service.guest, service.manager)
        let first = guest.process.pid
        #expect(guest.update(guest.arguments + ["-bogus"]).contains("the new VMM refused: -bogus"))
        _ = try service.oldVMM(after: first)
        #expect(try manager.nextMainProcess().pid == first)
        #expect(guest.update(["sleep", "1000"], timeout: 300).contains("did not start within 300 ms"))
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        #expect(manager.isQuiet && guest.process.isRunning)
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
        #expect(try manager.next().text == "STOPPING=1")
        #expect(manager.isQuiet)
    }

    @Test("A service manager that reads nothing ends no update", arguments: [false, true])
    func fullServiceManager(isSandboxed: Bool) throws {
        let service = try Service(isSandboxed: isSandboxed)
        let guest = service.guest
        try service.manager.fill()
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: guest.count)
        #expect(guest.update(["false"]).contains("taken back"))
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("quit")
    }

    @Test("A watchdog gets its signs of life from each VMM that has the guest, over updates and rollbacks")
    func watchdog() throws {
        let directory = try TemporaryDirectory()
        let manager = try NotifySocket(directory)
        let guest = try CountingGuest(environment: ["NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "200000"])
        #expect(try manager.next().text == "READY=1")
        try manager.waitForStatus("running")
        try manager.waitForPings(2)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try manager.waitForStatus("updated to ")
        try manager.waitForPings(2)
        #expect(guest.update(["false"]).contains("taken back"))
        try manager.waitForStatus("running; the update failed and the guest was taken back: the new VMM ended")
        try manager.waitForPings(2)
        try guest.qmp.execute("stop")
        try manager.waitForStatus("paused; the update failed")
        // Of a process that is not the main one the limit is nobody's.
        let other = try CountingGuest(environment: [
            "NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1",
        ])
        try guest.qmp.execute("quit")
        while try manager.next().text != "STOPPING=1" {}
        let before = manager.pings
        try other.waitForProgress(past: other.count + 1000)
        try other.qmp.execute("quit")
        while try manager.next().text != "STOPPING=1" {}
        #expect(manager.pings == before)
    }

    @Test("No child but a new VMM is given the manager's socket")
    func environment() throws {
        let directory = try TemporaryDirectory()
        let manager = try NotifySocket(directory)
        let guest = try CountingGuest(environment: ["NOTIFY_SOCKET": manager.path])
        func told(_ command: String) throws -> String {
            let file = directory.file("environment")
            _ = refusal {
                try guest.qmp.execute(
                    command, ["argv": ["sh", "-c", "env >\(file).new; mv \(file).new \(file); exit 1"]])
            }
            let text = try String(contentsOfFile: file, encoding: .utf8)
            try FileManager.default.removeItem(atPath: file)
            return text
        }
        #expect(try !told("cpr-preflight").contains("NOTIFY_SOCKET"))
        try guest.save()
        #expect(try told("cpr-exec").contains("NOTIFY_SOCKET=\(manager.path)"))
        try guest.qmp.execute("quit")
    }

    // MARK: PID 1

    private static let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    private static let canUnshare = (try? ChildProcess.run(unshare + ["true"])) != nil

    @Test(
        "PID 1 of a namespace says what a crash would cost, and a new VMM that refuses or hangs does not end it",
        .enabled(if: canUnshare, "needs root and unshare of util-linux"))
    func firstProcess() throws {
        let guest = try CountingGuest(prefix: Self.unshare)
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(query["pid"] as? Int == 1)
        #expect((query["warnings"] as? [String])?.first?.contains("PID 1") == true)
        let report = try #require(try guest.qmp.execute("cpr-preflight", ["argv": guest.arguments]) as? [String: Any])
        #expect((report["output"] as? String)?.contains("PID 1") == true)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: guest.count)
        #expect(guest.process.errors.contains("PID 1"))
        #expect(guest.update(guest.arguments + ["-bogus"]).contains("the new VMM refused: -bogus"))
        try guest.waitForProgress(past: guest.count)
        #expect(guest.process.isRunning)
        // Of the process that has the guest now it is not true any more.
        let next = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(next["pid"] as? Int != 1 && (next["warnings"] as? [String]) == [])
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test(
        "A new VMM as PID 1 that hangs and comes too late stays out of the way",
        .enabled(if: canUnshare, "needs root and unshare of util-linux"))
    func lateFirstProcess() throws {
        let guest = try CountingGuest(prefix: Self.unshare)
        let go = guest.directory.file("go")
        let script = "while [ ! -e \(go) ]; do sleep 0.02; done; exec \"$@\""
        let text = guest.update(["sh", "-c", script, "sh"] + guest.arguments, timeout: 500)
        #expect(text.contains("did not start within 500 ms"), "\(text)")
        try guest.waitForProgress(past: guest.count)
        try guest.directory.write("go", "")
        try guest.process.waitForErrors("the VMM that runs the guest has given this one up")
        try guest.waitForProgress(past: guest.count)
        #expect(try guest.qmp.status() == "running")
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test(
        "A new VMM as PID 1 that ends by exit in its commit leads back, and stays as a placeholder",
        .enabled(if: canUnshare, "needs root and unshare of util-linux"))
    func endOfFirstProcess() throws {
        let directory = try TemporaryDirectory()
        let source = """
            #include <stdlib.h>
            #include <unistd.h>
            static int32_t nothing(struct baton_host *host) { (void)host; return 0; }
            static void commit(struct baton_host *host) {
                (void)host;
                if (access("\(directory.file("go"))", F_OK) == 0) exit(3);
            }
            static const struct baton_method methods[] = {
                BATON_METHOD("save", "i(h)", nothing), BATON_METHOD("load", "i(h)", nothing),
                BATON_METHOD("commit", "v(h)", commit),
            };
            """
        let module = try CModule.build(kind: "preserver", name: "ends", source, in: directory)
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module], prefix: Self.unshare)
        try directory.write("go", "")
        #expect(guest.update(guest.arguments).contains("the new VMM refused: it ended"))
        try guest.waitForProgress(past: guest.count)
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(query["placeholder-pid"] as? Int == 1)
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }
}
