import Foundation
import TestSupport
import Testing

/// Chardevs and monitor sessions over updates of a real VMM.
@Suite(
    "Connections over an update",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct ConnectionTests {
    private func request(_ command: String, id: Int, _ arguments: [String: Any] = [:]) throws -> String {
        let object: [String: Any] = ["execute": command, "id": id, "arguments": arguments]
        return String(decoding: try JSONSerialization.data(withJSONObject: object), as: UTF8.self)
    }

    /// The ids of the next answers, which must all be successes.
    private func answers(_ client: QMPClient, _ count: Int) throws -> [Int] {
        var ids: [Int] = []
        while ids.count < count {
            guard let message = try client.receive() else { throw TestError("the connection was closed") }
            if message["event"] != nil { continue }
            guard message["return"] != nil, let id = message["id"] as? Int else { throw TestError("\(message)") }
            ids.append(id)
        }
        return ids
    }

    private func filename(_ client: QMPClient, of label: String) throws -> String {
        let list = try #require(try client.execute("query-chardev") as? [[String: Any]])
        return try #require(list.first { $0["label"] as? String == label }?["filename"] as? String)
    }

    private static let more = ["-cpr-enable", "restart"]

    @Test("A client stays connected over twenty updates, with commands behind and a half one across each")
    func pipelined() throws {
        let guest = try CountingGuest()
        let pid = guest.process.pid
        var count = guest.count
        for round in 1...20 {
            let first = round * 1000
            let half = try request("query-name", id: first + 4)
            let cut = half.index(half.startIndex, offsetBy: round + 3)
            try guest.qmp.send(
                try request("query-status", id: first) + request("cpr-update", id: first + 1, ["argv": guest.arguments])
                    + request("query-status", id: first + 2) + request("query-uuid", id: first + 3) + half[..<cut])
            #expect(try answers(guest.qmp, 4) == [first, first + 1, first + 2, first + 3])
            try guest.qmp.send(String(half[cut...]))
            #expect(try answers(guest.qmp, 1) == [first + 4])
            #expect(guest.count >= count)
            count = guest.count
            try guest.waitForProgress(past: count)
        }
        let report = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(report["generation"] as? Int == 20)
        #expect(guest.process.isRunning && guest.process.pid == pid)
        #expect(guest.process.errors == "")
    }

    @Test("Every monitor's session goes on, and its socket takes new clients")
    func otherMonitors() throws {
        let directory = try TemporaryDirectory()
        let guest = try CountingGuest(
            extra: Self.more + [
                "-qmp", "unix:\(directory.file("second")),server=on,wait=off",
                "-monitor", "unix:\(directory.file("hmp")),server=on,wait=off",
            ])
        let second = try QMPClient(path: directory.file("second"))
        let human = try StreamClient(socket: directory.file("hmp"))
        try human.expect("(baton) ")
        try human.send("info st")
        try human.expect("info st")
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        #expect(try second.status() == "running")
        try human.send("atus\n")
        // Neither a greeting nor a prompt came in between.
        #expect(try human.expect("(baton) ") == "atus\r\nVM status: running\r\n(baton) ")

        // A human monitor that replaces the VMM goes on with what was typed behind.
        try human.send("cpr-save \(guest.checkpoint) restart\n")
        try human.expect("(baton) ")
        try human.send(
            "cpr-exec \(guest.arguments.joined(separator: " "))\ncpr-load \(guest.checkpoint) restart\ninfo status\n")
        let shown = try human.expect("VM status: running")
        #expect(!shown.contains("Error") && !shown.contains("type 'help'"), "\(shown)")
        #expect(try second.status() == "running")
        try second.waitForEvent("RESUME")

        // The listening sockets are there for the next client.
        #expect(try guest.qmp.status() == "running")
        let count = guest.count
        try guest.waitForProgress(past: count)
    }

    @Test(
        "A client for which there is no descriptor waits, and does not keep the VMM busy",
        .enabled(if: Products.find("prlimit") != nil, "needs prlimit of util-linux"))
    func waitingClient() throws {
        let directory = try TemporaryDirectory()
        let guest = try CountingGuest(extra: ["-qmp", "unix:\(directory.file("second")),server=on,wait=off"])
        func limit(_ value: Int) throws {
            try ChildProcess.run(["prlimit", "--pid", "\(guest.process.pid)", "--nofile=\(value):"])
        }
        try limit(3)
        let begin = ContinuousClock.now
        let client = try StreamClient(socket: directory.file("second"))
        let warning = "cannot accept a connection, which waits: Too many open files"
        try guest.process.waitForErrors(warning)
        try guest.waitForProgress(past: guest.count)
        try limit(1024)
        try client.expect("QMP")
        // Ten attempts a second, and the first one.
        let attempts = guest.process.errors.components(separatedBy: warning).count - 1
        #expect(attempts <= 1 + Int((ContinuousClock.now - begin) / .milliseconds(100)))
    }

    @Test("A serial line under traffic loses, repeats and reorders no byte")
    func serialLine() throws {
        let directory = try TemporaryDirectory()
        let image = try GuestBuilder.flat("echo/echo.c")
        let arguments = [
            Products.baton, "-machine", "virt,memory-backend=ram", "-m", "16M",
            "-object", "memory-backend-memfd,id=ram,size=16M,share=on", "-bios", "none", "-kernel", image,
            "-nodefaults", "-nographic", "-serial", "unix:\(directory.file("serial")),server=on,wait=on",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
            "-cpr-enable", "restart",
        ]
        let process = try ChildProcess(arguments)
        let line = try StreamClient(socket: directory.file("serial"))
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        try line.expect("echo\n")
        var value: UInt64 = 1
        let sent: [UInt8] = (0..<100_000).map { _ in
            value = value &* 6_364_136_223_846_793_005 &+ 1
            return UInt8(truncatingIfNeeded: value >> 56)
        }
        var done = 0
        func exchange(until count: Int) throws {
            try eventually("\(count) bytes of echo, there are \(line.received.count) of \(done)") {
                done += line.send(sent[done...])
                line.poll()
                return line.received.count >= count
            }
        }
        for round in 1...10 {
            try exchange(until: round * sent.count / 11)
            // Both directions are full of bytes nobody has read, and the line is kept busy.
            done += line.send(sent[done...])
            if round % 3 == 0 {
                let argv = arguments.filter { $0 != "-cpr-enable" && $0 != "restart" }
                #expect(refusal { try update(qmp, argv) }.contains("taken back"))
            } else {
                try qmp.execute("cpr-update", ["argv": arguments])
            }
        }
        try exchange(until: sent.count)
        #expect(line.received == sent)
        try qmp.execute("quit")
        #expect(!process.errors.contains("warning: the chardev"))
    }

    @Test("A pseudo-terminal keeps its name and its client")
    func pseudoTerminal() throws {
        let guest = try CountingGuest(extra: Self.more + ["-monitor", "pty"])
        let name = try filename(guest.qmp, of: "compat_monitor1")
        let path = String(name.dropFirst("pty:".count))
        let terminal = try StreamClient(terminal: path)
        try terminal.send("info version\n")
        try terminal.expect("baton-")
        try terminal.expect("(baton) ")
        for _ in 1...3 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            #expect(try filename(guest.qmp, of: "compat_monitor1") == name)
            try terminal.send("info status\n")
            #expect(try terminal.expect("(baton) ").contains("VM status: running"))
        }
    }

    @Test("A file is written on, not emptied, and a ring buffer keeps what is in it")
    func fileAndRingBuffer() throws {
        let guest = try CountingGuest(extra: Self.more + ["-chardev", "ringbuf,id=ring,size=16"])
        func serial() throws -> Data { try Data(contentsOf: URL(fileURLWithPath: guest.directory.file("serial"))) }
        try guest.qmp.execute("ringbuf-write", ["device": "ring", "data": "0123456789abcdefghij"])
        for _ in 1...3 {
            let before = try serial()
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            try eventually("the guest's next line") { try serial().count > before.count }
            #expect(try serial().starts(with: before))
        }
        let lines = String(decoding: try serial(), as: UTF8.self).split(separator: "\r\n")
        for (index, line) in lines.dropLast().enumerated() { #expect(line.hasSuffix(" line=\(index + 1)"), "\(line)") }
        #expect(
            try guest.qmp.execute("ringbuf-read", ["device": "ring", "size": 100]) as? String == "456789abcdefghij")
    }

    @Test(
        "After a rollback every connection is open and answered",
        arguments: [
            ["-nonsense"], ["-serial", "none"], ["-chardev", "null"], ["-m", "12M"], ["-device", "no-such-device"],
        ])
    func rollback(wrong: [String]) throws {
        let directory = try TemporaryDirectory()
        let guest = try CountingGuest(
            extra: Self.more + ["-monitor", "unix:\(directory.file("hmp")),server=on,wait=off", "-monitor", "pty"])
        let name = try filename(guest.qmp, of: "compat_monitor2")
        let human = try StreamClient(socket: directory.file("hmp"))
        try human.expect("(baton) ")
        for oneStep in [true, false] {
            let stopped = guest.count
            try guest.qmp.send("{\"execute\": \"query-na")
            try guest.qmp.send("me\", \"id\": 77}")
            #expect(try answers(guest.qmp, 1) == [77])
            if !oneStep { try guest.save() }
            let argv = guest.arguments + wrong + (oneStep ? [] : ["-S"])
            let text = refusal {
                try oneStep ? update(guest.qmp, argv) : guest.exec(argv)
            }
            #expect(text.contains("the guest was taken back: the new VMM refused"), "\(text)")
            try guest.waitForProgress(past: stopped)
            #expect(try guest.qmp.status() == "running")
            try human.send("info status\n")
            #expect(try human.expect("(baton) ").contains("VM status: running"))
            #expect(try filename(guest.qmp, of: "compat_monitor2") == name)
        }
        // And then a good one.
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try human.send("info status\n")
        #expect(try human.expect("(baton) ").contains("VM status: running"))
        try guest.qmp.execute("quit")
    }

    @Test("A VMM that dies while it waits for cpr-load leads back, and the client that it answered is told by an event")
    func deathAfterTheAnswer() throws {
        let guest = try CountingGuest()
        try guest.save()
        let stopped = guest.count
        try guest.exec()
        guest.process.signal(SIGKILL)
        let data = try guest.qmp.waitForEvent("CPR_ROLLED_BACK")
        #expect((data["reason"] as? String)?.contains("ended before it took the guest over") == true)
        #expect(data["pid"] as? Int != Int(guest.process.pid))
        try guest.waitForProgress(past: stopped)
        // No second answer to cpr-exec comes in between.
        #expect(try guest.qmp.status() == "running")
        try guest.qmp.execute("quit")
    }

    @Test("migrate_cancel while the new VMM waits for cpr-load leads back to the old one")
    func cancelAfterTheAnswer() throws {
        let guest = try CountingGuest()
        try guest.save()
        let stopped = guest.count
        try guest.exec()
        try guest.qmp.execute("migrate_cancel")
        let data = try guest.qmp.waitForEvent("CPR_ROLLED_BACK")
        #expect((data["reason"] as? String)?.contains("the new VMM refused: it was cancelled") == true)
        try guest.waitForProgress(past: stopped)
        #expect(try guest.qmp.status() == "running")
        #expect(guest.process.isRunning)
        // And the next one succeeds.
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("A save that comes to nothing is answered, also after an update whose new VMM had answered")
    func voidSaveAfterTheAnswer() throws {
        let guest = try CountingGuest()
        for _ in 1...2 {
            try guest.save()
            try guest.exec()
            try guest.qmp.execute("migrate_cancel")
            try guest.qmp.waitForEvent("CPR_ROLLED_BACK")
            try guest.save()
            let stopped = guest.count
            // The second command is there while the first is carried out, and must not be forgotten.
            let whole = #"{"execute": "cont", "id": 78}{"execute": "query-name", "id": 79}"#
            try guest.qmp.send(whole + #"{"execute": "query-na"#)
            #expect(try answers(guest.qmp, 2) == [78, 79])
            try guest.qmp.send(#"me", "id": 80}"#)
            #expect(try answers(guest.qmp, 1) == [80])
            try guest.waitForProgress(past: stopped)
        }
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("A chardev that connects to a server keeps its connection, and makes another when that is lost")
    func clientChardev() throws {
        let directory = try TemporaryDirectory()
        let listener = try QMPClient.Listener(path: directory.file("server"))
        let guest = try CountingGuest(
            extra: Self.more + [
                "-chardev", "socket,id=out,path=\(directory.file("server")),reconnect-ms=20", "-mon",
                "chardev=out,mode=control",
            ])
        var peer: QMPClient? = try listener.accept()
        for _ in 1...3 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            #expect(try peer?.status() == "running")
        }
        peer = nil
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        #expect(try listener.accept().status() == "running")
    }

    /// Without a preflight, which would find what goes wrong here.
    private func update(_ qmp: QMPClient, _ argv: [String]) throws {
        try qmp.execute("cpr-update", ["argv": argv, "preflight": false])
    }

    @Test("A client may have its connection closed by the update, as QEMU's is, and comes back anew")
    func closedConnection() throws {
        let guest = try CountingGuest(extra: Self.more)
        let count = guest.count
        // Nothing comes of a failed one: the answer is an error, on the same connection.
        let wrong: [String: Any] = ["argv": ["/nonexistent"], "close-connection": true, "preflight": false]
        #expect(refusal { try guest.qmp.execute("cpr-update", wrong) }.contains("execvp"))
        try guest.qmp.executeWithoutAnswer("cpr-update", ["argv": guest.arguments, "close-connection": true])
        while let message = try guest.qmp.receive() { #expect(message["return"] == nil, "\(message)") }
        let new = try QMPClient(path: guest.directory.file("qmp"))
        #expect(try new.status() == "running")
        try guest.waitForProgress(past: count)
        try new.execute("quit")
    }

    @Test("reopen-on-cpr closes a chardev, and the new VMM opens it anew")
    func reopened() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("again")
        let guest = try CountingGuest(
            extra: Self.more + [
                "-chardev", "socket,id=again,path=\(path),server=on,wait=off,reopen-on-cpr=on", "-mon",
                "chardev=again,mode=control",
            ])
        let old = try QMPClient(path: path)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        while let message = try old.receive() { #expect(["STOP", "CPR"].contains(message["event"] as? String)) }
        var new: QMPClient? = try QMPClient(path: path)
        #expect(try new?.status() == "running")
        // A failure before the guest was handed over does nothing to it.
        #expect(refusal { try update(guest.qmp, ["/nonexistent"]) }.contains("execvp"))
        #expect(try new?.status() == "running")
        new = nil
        let last = try QMPClient(path: path)
        #expect(try last.status() == "running")
    }

    @Test("A chardev that changed is refused by name, one that is gone is closed")
    func changedChardevs() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("extra")
        let chardev = ["-chardev", "socket,id=extra,path=\(path),server=on,wait=off"]
        let guest = try CountingGuest(extra: Self.more + chardev)
        func argv(_ text: String) -> [String] { guest.arguments.map { $0 == chardev[1] ? text : $0 } }
        for (text, reason) in [
            ("socket,id=extra,path=\(path)2,server=on,wait=off", "is not a socket that listens on unix:\(path)2"),
            ("ringbuf,id=extra", "chardev 'extra' is of kind 'socket' in the CPR state, but 'ringbuf'"),
        ] {
            let answer = refusal { try update(guest.qmp, argv(text)) }
            #expect(answer.contains("taken back") && answer.contains(reason), "\(answer)")
        }
        let client = try StreamClient(socket: path)
        let rest = guest.arguments.filter { !chardev.contains($0) }
        try guest.qmp.execute("cpr-update", ["argv": rest])
        try eventually("the end of the connection") {
            client.poll()
            return client.isClosed
        }
        #expect(guest.process.errors.contains("chardev-extra-listener: the command line has no such chardev any more"))
        try guest.qmp.execute("quit")
    }
}
