import Foundation
import TestSupport
import Testing

/// The mode `transfer`: the guest goes to a VMM that somebody else has started.
@Suite(
    "Transfer to another process",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct TransferTests {
    private static let enable = ["-cpr-enable", "transfer"]

    /// A guest, and what starts VMMs that wait for it.
    private struct Pair {
        let guest: CountingGuest
        var channel: String { guest.directory.file("cpr") }

        init(extra: [String] = []) throws { guest = try CountingGuest(extra: TransferTests.enable + extra) }

        /// Starts a VMM, and waits until it can be reached.
        /// - Parameter place: where, if not at `channel`.
        func start(
            _ arguments: [String]? = nil, _ more: [String] = [], prefix: [String] = [], at place: String? = nil
        ) throws -> ChildProcess {
            let channel = place ?? self.channel
            return try CountingGuest.startWaiting(prefix + (arguments ?? guest.arguments) + more, at: channel)
        }

        /// The guest's arguments, with the monitor elsewhere.
        func arguments(monitor path: String) -> [String] {
            guest.arguments.map { $0.replacingOccurrences(of: guest.directory.file("qmp"), with: path) }
        }

        private func request(_ more: [String: Any]) -> [String: Any] {
            more.merging(["mode": "transfer", "channel": channel]) { first, _ in first }
        }

        func update(_ more: [String: Any] = [:]) -> String {
            refusal { try guest.qmp.execute("cpr-update", request(more)) }
        }

        /// Asks for an update; `refusalOfBegun` follows.
        func begin(_ more: [String: Any] = [:]) throws {
            try guest.qmp.executeWithoutAnswer("cpr-update", request(more))
        }

        /// - Returns: as `update`.
        func refusalOfBegun() throws -> String {
            while let message = try guest.qmp.receive() {
                if let error = message["error"] as? [String: Any] { return error["desc"] as? String ?? "" }
                if message["return"] != nil { return "accepted" }
            }
            throw TestError("the VMM closed the connection")
        }

        /// The guest must be in the old VMM, in order.
        func expectHere(past count: UInt64) throws {
            #expect(try guest.qmp.status() == "running")
            try guest.waitForProgress(past: max(count, guest.count))
            try guest.expectRightSum()
        }

        /// Ends the VMM that has the guest, which is `process`.
        func end(_ process: ChildProcess) throws {
            try guest.qmp.execute("quit")
            #expect(try process.waitForExit() == .status(0))
        }
    }

    // MARK: It works

    @Test("A guest goes from process to process, each of which ends in order")
    func chain() throws {
        let pair = try Pair()
        let guest = pair.guest
        var old = guest.process
        for generation in 1...4 {
            let new = try pair.start()
            let before = guest.count
            #expect(pair.update() == "accepted")
            // The old monitor's client is answered, and then the process ends.
            #expect(try old.waitForExit() == .status(0))
            try guest.waitForProgress(past: before)
            try guest.reconnect()
            let state = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
            #expect(state["pid"] as? Int == Int(new.pid))
            #expect(state["generation"] as? Int == generation)
            #expect(!FileManager.default.fileExists(atPath: pair.channel))
            old = new
        }
        try guest.qmp.execute("stop")
        #expect(guest.checksum == CountingGuest.expectedChecksum(after: guest.count))
        try pair.end(old)
    }

    @Test("A device's client keeps its connection, also one that comes while the new VMM starts")
    func connections() throws {
        let directory = try TemporaryDirectory()
        let (first, second) = (directory.file("first"), directory.file("second"))
        let pair = try Pair(extra: [
            "-chardev", "socket,id=a,path=\(first),server=on,wait=off", "-chardev",
            "socket,id=b,path=\(second),server=on,wait=off", "-device", "virtio-serial-pci,id=s",
            "-device", "virtio-serial-pci,id=t", "-device", "virtconsole,bus=s.0,chardev=a", "-device",
            "virtconsole,bus=t.0,chardev=b",
        ])
        let client = try StreamClient(socket: first)
        let new = try pair.start()
        new.signal(SIGSTOP)
        try pair.begin()
        let late = try StreamClient(socket: second)
        // The old VMM has it before the guest changes hands.
        let chardevs = { (qmp: QMPClient) in
            (try qmp.execute("query-chardev") as? [[String: Any]] ?? []).filter { $0["label"] as? String == "b" }
                .compactMap { $0["filename"] as? String }
        }
        new.signal(SIGCONT)
        #expect(try pair.guest.process.waitForExit() == .status(0))
        try pair.guest.reconnect()
        try eventually("the late client is connected to the new VMM") {
            try chardevs(pair.guest.qmp).first?.hasPrefix("disconnected") == false
        }
        for client in [client, late] {
            client.poll()
            #expect(!client.isClosed)
        }
        try pair.end(new)
    }

    @Test("Any number of descriptors goes along")
    func descriptors() throws {
        let count = 120
        let pair = try Pair(extra: ["-module", Products.module("preserver-fd")])
        let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: "/dev/null"))
        for number in 0..<count {
            _ = try pair.guest.qmp.execute("getfd", ["fdname": "given"], passing: file.fileDescriptor)
            try pair.guest.qmp.execute("fd-store-add", ["name": "n\(number)", "fd": "given"])
        }
        let new = try pair.start()
        #expect(pair.update() == "accepted")
        try pair.guest.reconnect()
        let entry = try pair.guest.qmp.execute("query-fd-store-entry", ["name": "n\(count - 1)"]) as? [String: Any]
        let number = try #require(entry?["number"] as? Int)
        let target = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(new.pid)/fd/\(number)")
        #expect(target == "/dev/null")
        try pair.end(new)
    }

    @Test("The new VMM has a command line of its own, and says whether the guest runs")
    func ownCommandLine() throws {
        let pair = try Pair()
        let directory = pair.guest.directory
        let new = try pair.start(
            pair.arguments(monitor: directory.file("other-qmp")).map {
                $0.replacingOccurrences(of: directory.file("serial"), with: directory.file("other-serial"))
            }, ["-S"])
        #expect(pair.update() == "accepted")
        #expect(try pair.guest.process.waitForExit() == .status(0))
        let qmp = try QMPClient(path: directory.file("other-qmp"), of: new)
        #expect(try qmp.status() == "paused")
        #expect(FileManager.default.fileExists(atPath: directory.file("other-serial")))
        // Nobody listens there any more.
        #expect(!FileManager.default.fileExists(atPath: directory.file("qmp")))
        let before = pair.guest.count
        try qmp.execute("cont")
        try pair.guest.waitForProgress(past: before)
        try qmp.execute("quit")
        #expect(try new.waitForExit() == .status(0))
    }

    private static let user = 65534
    private static let asUser = ["setpriv", "--reuid", "\(user)", "--regid", "\(user)", "--clear-groups"]

    @Test(
        "The new VMM may be of another user, if the client names it",
        .enabled(
            if: geteuid() == 0 && (try? ChildProcess.run(asUser + [Products.baton, "-version"])) != nil,
            "needs root, and a build that other users can read"))
    func anotherUser() throws {
        let user = Self.user
        let pair = try Pair()
        chmod(pair.guest.directory.path, 0o755)
        let directory = try TemporaryDirectory()
        chmod(directory.path, 0o777)
        let channel = directory.file("cpr")
        let new = try pair.start(
            pair.arguments(monitor: directory.file("qmp")), prefix: Self.asUser, at: channel)
        try #require(new.isRunning, "\(new.report)")
        let before = pair.guest.count
        #expect(pair.update(["channel": channel]).contains("is of user \(user)"))
        try pair.expectHere(past: before)
        let answer = pair.update(["channel": channel, "peer-uid": user])
        try #require(answer == "accepted", "\(answer)")
        let qmp = try QMPClient(path: directory.file("qmp"), of: new)
        #expect(try qmp.status() == "running")
        try qmp.execute("quit")
        #expect(try new.waitForExit() == .status(0))
    }

    // MARK: QEMU's words

    @Test("migrate in the mode cpr-transfer: the source stays, in postmigrate, until it is told to quit")
    func migrate() throws {
        let pair = try Pair()
        let (guest, directory) = (pair.guest, pair.guest.directory)
        let new = try pair.start(
            pair.arguments(monitor: directory.file("other-qmp")), ["-incoming", "tcp:127.0.0.1:44444"])
        let main: [String: Any] = [
            "channel-type": "main",
            "addr": ["transport": "socket", "type": "inet", "host": "127.0.0.1", "port": "44444"],
        ]
        let cpr: [String: Any] = [
            "channel-type": "cpr", "addr": ["transport": "socket", "type": "unix", "path": pair.channel],
        ]
        try guest.qmp.execute("migrate-set-parameters", ["mode": "cpr-transfer"])
        #expect(
            refusal { try guest.qmp.execute("migrate", ["channels": [main]]) } == "missing 'cpr' migration channel")
        #expect(refusal { try guest.qmp.execute("migrate", ["channels": [cpr]]) } == "Channel list has no main entry")
        #expect(
            refusal { try guest.qmp.execute("migrate", ["channels": [main, cpr, cpr]]) }
                == "Channel list has more than one cpr entry")
        let before = guest.count
        try guest.qmp.execute("migrate", ["channels": [main, cpr]])
        let qmp = try QMPClient(path: directory.file("other-qmp"), of: new)
        #expect(try qmp.status() == "running")
        try guest.waitForProgress(past: before)
        #expect(try guest.qmp.status() == "postmigrate")
        let state = try guest.qmp.execute("query-migrate") as? [String: Any]
        #expect(state?["status"] as? String == "completed")
        for command in ["cont", "system_reset"] {
            #expect(refusal { try guest.qmp.execute(command) } == "the guest was handed over to another VMM")
        }
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
        try guest.waitForProgress(past: guest.count)
        try qmp.execute("quit")
        #expect(try new.waitForExit() == .status(0))
    }

    // MARK: It does not work

    @Test("What is missing is named by what the mode needs")
    func missingChannel() throws {
        let pair = try Pair()
        #expect(
            refusal { try pair.guest.qmp.execute("cpr-update", ["mode": "transfer"]) }
                == "Parameter 'channel' is missing")
        #expect(refusal { try pair.guest.qmp.execute("cpr-update") } == "Parameter 'argv' is missing")
        try pair.end(pair.guest.process)
    }

    @Test("A new VMM that refuses, at its start or at the load, ends, and the guest stays")
    func refusals() throws {
        let pair = try Pair()
        for (more, reason) in [
            (["-m", "32M"], "Size specified by -m option"), (["-smp", "2"], "the checkpoint has no section 'cpu1'"),
        ] {
            let before = pair.guest.count
            let new = try pair.start(pair.guest.arguments, more)
            let text = pair.update()
            #expect(text.contains("the guest goes on here: the new VMM refused") && text.contains(reason), "\(text)")
            #expect(try new.waitForExit() == .status(1))
            try pair.expectHere(past: before)
        }
        let new = try pair.start()
        #expect(pair.update() == "accepted")
        try pair.guest.reconnect()
        try pair.end(new)
    }

    @Test("A new VMM that is stopped or killed costs a time limit at most", arguments: [SIGSTOP, SIGKILL])
    func signals(_ number: Int32) throws {
        let pair = try Pair()
        let before = pair.guest.count
        let new = try pair.start()
        new.signal(number)
        let text = pair.update(["timeout-ms": 700])
        #expect(text != "accepted")
        try pair.expectHere(past: before)
        new.signal(SIGCONT)
        // It was given up, and knows it.
        let exit = try new.waitForExit()
        #expect(exit == (number == SIGKILL ? .signal(SIGKILL) : .status(1)))
        #expect(pair.update().contains("Failed to connect to"))
        try pair.end(pair.guest.process)
    }

    @Test(
        "A stop of the old VMM that comes while the guest changes hands ends the new one",
        .enabled(if: SystemCallTrace.isAvailable, "needs strace, and the right to trace processes"))
    func stopInBetween() throws {
        // In a sandbox it may not send signals to processes outside (Linux 6.12).
        let pair = try Pair(extra: ["-sandbox", "off"])
        let new = try pair.start()
        let old = pair.guest.process
        // The guest is the new VMM's already: the old one puts /dev/null in the place of what went over.
        let strace = try ChildProcess([
            "strace", "-o", "/dev/null", "-p", "\(old.pid)", "-e", "inject=dup2:signal=SIGTERM:when=1",
        ])
        try strace.waitForErrors("attached")
        #expect(pair.update(["downtime-ms": 20_000]) == "accepted")
        #expect(try old.waitForExit() == .status(0))
        #expect(try new.waitForExit() == .status(0))
        #expect(new.errors.contains("terminating on signal 15"), "\(new.errors)")
    }

    @Test("migrate_cancel from another monitor ends an update, and the guest stays")
    func cancel() throws {
        let directory = try TemporaryDirectory()
        let pair = try Pair(extra: ["-qmp", "unix:\(directory.file("other")),server=on,wait=off"])
        let other = try QMPClient(path: directory.file("other"), of: pair.guest.process)
        let listener = try PacketSocket(listeningAt: pair.channel)
        let before = pair.guest.count
        try pair.begin()
        // It never becomes ready.
        let peer = try listener.accept()
        _ = try peer.receive()
        try other.execute("migrate_cancel")
        let text = try withExtendedLifetime(peer) { try pair.refusalOfBegun() }
        #expect(text == "the update failed, and the guest goes on here: it was cancelled")
        try pair.expectHere(past: before)
        try pair.end(pair.guest.process)
    }

    @Test("Whoever connects to a waiting VMM and is none is sent away")
    func strangersAtTheNewVMM() throws {
        let pair = try Pair()
        let new = try pair.start()
        let stranger = try PacketSocket(connectingTo: pair.channel)
        #expect(stranger.send([1, 2, 3]))
        try eventually("it is sent away") { stranger.isClosed }
        #expect(pair.update() == "accepted")
        #expect(new.errors.contains("it is no VMM that hands its guest over"))
        try pair.guest.reconnect()
        try pair.end(new)
    }

    /// What somebody says who is no VMM, at the other end of the channel. `*` stands for its secret.
    @Test(
        "Whatever a peer says that is no VMM, the guest stays",
        arguments: [
            ("", "did not start within"), ("utter nonsense", "no message of a new VMM"),
            ("*Y|*Y", "no message of a new VMM"),
            ("*Y", "did not load the guest's state within"), ("*C", "no message of a new VMM"),
            ("*Y|*C", "ended before it took the guest over"), ("*Q", "no message of a new VMM"),
            ("*Fno", "refused: no"),
        ])
    func strangersAtTheOldVMM(_ words: String, _ reason: String) throws {
        let pair = try Pair()
        let listener = try PacketSocket(listeningAt: pair.channel)
        let before = pair.guest.count
        try pair.begin(["timeout-ms": 600, "downtime-ms": 400])
        let peer = try listener.accept()
        let secret = Array(try peer.receive().prefix(8))
        for word in words.split(separator: "|") {
            _ = peer.send(word.hasPrefix("*") ? secret + Array(word.dropFirst().utf8) : Array(word.utf8))
        }
        let text = try withExtendedLifetime(peer) { try pair.refusalOfBegun() }
        #expect(text.contains(reason), "\(text)")
        try pair.expectHere(past: before)
        try pair.end(pair.guest.process)
    }

    @Test("What cannot be meant is refused before anything is done")
    func arguments() throws {
        let pair = try Pair()
        func error(_ arguments: [String: Any]) -> String {
            refusal { try pair.guest.qmp.execute("cpr-update", arguments) }
        }
        #expect(error([:]) == "Parameter 'argv' is missing")
        #expect(error(["argv": ["x"], "channel": "y"]) == "'argv' and 'channel' arguments are mutually exclusive")
        #expect(error(["argv": ["x"], "peer-uid": 1]) == "Parameter 'peer-uid' is for a 'channel' only")
        #expect(error(["channel": "y", "peer-uid": -1]).hasPrefix("Parameter 'peer-uid' expects"))
        #expect(error(["channel": "y", "preflight": true]) == "a VMM that runs already cannot be tried")
        #expect(error(["channel": ""]) == "cpr-update requires a non-empty channel")
        #expect(
            error(["argv": ["x"], "mode": "transfer"])
                == "cpr-update needs a mode that executes the new VMM, which 'transfer' does not")
        #expect(
            refusal { try pair.guest.qmp.execute("cpr-save", ["filename": "x", "mode": "transfer"]) }
                == "cpr-save is not for the mode 'transfer', whose checkpoint nobody could load")
        let restarted = try CountingGuest()
        #expect(
            refusal { try restarted.qmp.execute("cpr-update", ["mode": "restart", "channel": "y"]) }
                == "cpr-update needs a mode for a VMM that runs already, which 'restart' is not")
        try restarted.qmp.execute("quit")
        try pair.end(pair.guest.process)
    }
}
