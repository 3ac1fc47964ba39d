import Foundation
import TestSupport
import Testing

/// `cpr-preflight`: the new VMM is tried beside the running guest, which does
/// not notice.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct PreflightTests {
    /// Nothing of the update's life has happened: the guest has not stopped.
    private func expectUnnoticed(_ guest: CountingGuest) throws {
        #expect(try guest.qmp.status() == "running")
        #expect(!guest.qmp.events.contains { ["STOP", "CPR", "CPR_ROLLED_BACK"].contains($0["event"] as? String) })
        try guest.waitForProgress(past: guest.count)
    }

    @Test func aGoodSuccessorPassesAndTheGuestDoesNotNotice() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        let descriptors = try guest.openDescriptors()
        for _ in 1...5 {
            let report = try #require(
                try guest.qmp.execute("cpr-preflight", ["argv": guest.arguments]) as? [String: Any])
            #expect(try #require(report["time-us"] as? Int) > 0)
            #expect(report["output"] as? String == "")
        }
        try expectUnnoticed(guest)
        #expect(guest.process.isRunning)
        // Nothing is left of the trial runs, neither processes nor descriptors.
        let pid = guest.process.pid
        #expect(try String(contentsOfFile: "/proc/\(pid)/task/\(pid)/children", encoding: .utf8) == "")
        #expect(try guest.openDescriptors() == descriptors)
        try guest.qmp.execute("stop")
        #expect(guest.checksum == CountingGuest.expectedChecksum(after: guest.count))
    }

    @Test(
        "A limit on memory that leaves no room for an update is named before it could end the VM",
        .enabled(if: Products.find("prlimit") != nil, "needs prlimit of util-linux"),
        arguments: [("as", "the address space (RLIMIT_AS)"), ("data", "data (RLIMIT_DATA)")])
    func memoryLimits(_ option: String, _ name: String) throws {
        let guest = try CountingGuest()
        func limit(_ value: String) throws {
            try ChildProcess.run(["prlimit", "--pid", "\(guest.process.pid)", "--\(option)=\(value):"])
        }
        // Less than any process has.
        try limit("65536")
        for command in ["cpr-preflight", "cpr-update"] {
            let text = refusal { try guest.qmp.execute(command, ["argv": guest.arguments]) }
            #expect(text.hasPrefix("the limit on \(name) is 0 MiB, of which this VMM has "), "\(text)")
        }
        try guest.waitForProgress(past: guest.count)
        try limit("unlimited")
        #expect(guest.update(guest.arguments) == "accepted")
        try guest.waitForProgress(past: guest.count)
    }

    /// Closes what it was given, and lives on: more descriptors than a shell can name.
    private static let closing =
        Products.find("python3").map {
            [([$0, "-c", "import os, time; os.closerange(3, 256); time.sleep(1000)"], "does not speak to this one")]
        } ?? []

    @Test(
        arguments: [
            (["/nonexistent/baton"], "cannot execute '/nonexistent/baton': No such file or directory"),
            (["/etc/passwd"], "cannot execute '/etc/passwd': Permission denied"),
            (["sh", "-c", "exit 3"], "ended during its start, with status 3"),
            (["sh", "-c", "echo a library is missing >&2; exit 127"], "with status 127: a library is missing"),
            (["sh", "-c", "kill -SEGV $$"], "ended by signal 11 (Segmentation fault)"),
        ] + closing)
    func whatIsNoVMMIsRefusedAndTheGuestDoesNotNotice(_ argv: [String], _ reason: String) throws {
        // Where an interpreter is, with all of its files, is the host's to know: a sandbox has /usr.
        let isAnywhere = argv[0].contains("python")
        let guest = try CountingGuest(
            extra: ["-cpr-enable", "restart"] + (isAnywhere ? ["-sandbox", "off"] : []))
        defer { _ = try? guest.qmp.execute("quit") }
        let alone = refusal { try guest.qmp.execute("cpr-preflight", ["argv": argv]) }
        #expect(alone.contains(reason), "\(alone)")
        let before = refusal { try guest.qmp.execute("cpr-update", ["argv": argv]) }
        #expect(before.contains("preflight failed: ") && before.contains(reason), "\(before)")
        try expectUnnoticed(guest)
        #expect(guest.process.isRunning)
    }

    @Test func aTrialThatHangsIsEndedAtItsLimit() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        let text = refusal { try guest.qmp.execute("cpr-preflight", ["argv": ["sleep", "1000"], "timeout-ms": 200]) }
        #expect(text.contains("did not start within 200 ms (it is in state "), "\(text)")
        try expectUnnoticed(guest)
    }

    /// A wrapper's children have guest RAM, disks and locks, as the new VMM would.
    @Test func whatAStartThatIsLateHasStartedIsEnded() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        let name = "\(UInt64.random(in: 1_000_000...2_000_000_000))"
        func isThere() throws -> Bool {
            try FileManager.default.contentsOfDirectory(atPath: "/proc").contains { process in
                let line = FileManager.default.contents(atPath: "/proc/\(process)/cmdline") ?? Data()
                return line == Data("sleep\0\(name)\0".utf8)
            }
        }
        let text = refusal {
            try guest.qmp.execute(
                "cpr-update",
                ["argv": ["sh", "-c", "sleep \(name); true"], "preflight": false, "timeout-ms": 300])
        }
        #expect(text.contains("did not start within 300 ms"), "\(text)")
        try eventually("what the command has started ends") { try !isThere() }
        try guest.waitForProgress(past: guest.count)
    }

    @Test func timeInWhichTheHostStoodStillIsNotTheTrials() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        // The whole VM stands for longer than the limit, and the trial takes its time in that.
        let pause = "kill -STOP \(guest.process.pid); sleep 1.5; kill -CONT \(guest.process.pid); exec \"$@\""
        try guest.qmp.execute(
            "cpr-preflight", ["argv": ["sh", "-c", pause, "sh"] + guest.arguments, "timeout-ms": 1000])
        try guest.waitForProgress(past: guest.count)
    }

    @Test func whatTheNewVMMWouldRefuseIsReported() throws {
        let guest = try CountingGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        func expect(_ argv: [String], _ reason: String) {
            let text = refusal { try guest.qmp.execute("cpr-preflight", ["argv": argv]) }
            #expect(text.contains(reason), "\(text)")
        }
        expect(guest.arguments + ["-bogus"], "the new VMM refused: -bogus: invalid option")
        expect(
            guest.arguments.map { $0.replacingOccurrences(of: "16M", with: "32M") },
            "has length 16777216 in the CPR state")
        // Found only while the devices take their state.
        expect(guest.arguments + ["-smp", "2"], "the checkpoint has no section 'cpu1'")
        expect(
            guest.arguments + ["-cpu", "rv64,zba=off,zicond=on"],
            "was saved by another CPU than '-cpu rv64,zicond=on,zba=off': zba was on, zicond was off")
        expect(guest.arguments + ["-qmp", "unix:/nonexistent/socket,server=on,wait=off"], "/nonexistent/socket")
        let file = guest.directory.file("serial")
        for path in ["/nonexistent/file", "/proc", "\(file)/file"] {
            expect(guest.arguments + ["-chardev", "file,id=new,path=\(path)"], "Could not open '\(path)': ")
            expect(guest.arguments + ["-D", path], "Could not open '\(path)': ")
            expect(guest.arguments + ["-trace", "cpr_load,file=\(path)"], "Could not open '\(path)': ")
            expect(guest.arguments + ["-pidfile", path], "cannot create PID file \(path)")
        }
        expect(guest.arguments + ["-chardev", "socket,id=new,path=\(file),server=on,wait=off"], "not a socket")
        try expectUnnoticed(guest)
        // After all of that a good one takes the guest over.
        let count = guest.count
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: count)
    }

    @Test func aTrialMakesAndTakesNothing() throws {
        let directory = try TemporaryDirectory()
        let (log, pid) = (directory.file("log"), directory.file("pid"))
        try Data("kept\n".utf8).write(to: URL(fileURLWithPath: log))
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-pidfile", pid,
            "-chardev", "socket,id=again,path=\(directory.file("again")),server=on,wait=off,reopen-on-cpr=on",
            "-device", "virtio-serial-device", "-device", "virtconsole,chardev=again",
        ])
        defer { _ = try? guest.qmp.execute("quit") }
        let argv =
            guest.arguments + [
                "-chardev", "file,id=log,path=\(log)",
                "-chardev", "socket,id=new,path=\(directory.file("new")),server=on,wait=off",
                "-netdev", "stream,id=net,server=on,addr.type=unix,addr.path=\(directory.file("net"))",
            ]
        try guest.qmp.execute("cpr-preflight", ["argv": argv])
        #expect(try String(contentsOfFile: log, encoding: .utf8) == "kept\n")
        #expect(!FileManager.default.fileExists(atPath: directory.file("new")))
        #expect(!FileManager.default.fileExists(atPath: directory.file("net")))
        #expect(try String(contentsOfFile: pid, encoding: .utf8) == "\(guest.process.pid)\n")
        // The socket is still this VMM's: a client is let in.
        _ = try StreamClient(socket: directory.file("again"))
        try expectUnnoticed(guest)
    }

    @Test func otherClientsAreServedWhileATrialRuns() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("second")
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-qmp", "unix:\(path),server=on,wait=off"])
        let other = try QMPClient(path: path)
        try guest.qmp.executeWithoutAnswer("cpr-preflight", ["argv": ["sleep", "1000"], "timeout-ms": 60_000])
        let count = guest.count
        try eventually("the preflight has begun") {
            refusal { try other.execute("cpr-preflight", ["argv": [String]()]) }.contains("a preflight is under way")
        }
        try guest.waitForProgress(past: count)
        // The end of the VMM ends the trial.
        try other.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }
}
