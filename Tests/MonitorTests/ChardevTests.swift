import BatonRuntime
import Chardev
import Foundation
import TestSupport
import Testing

@Suite("Chardevs")
struct ChardevTests {
    @Test("A server takes one client at a time, and the next when it has gone")
    func oneClient() throws {
        let machine = try TestMachine()
        let directory = try TemporaryDirectory()
        let path = directory.file("s")
        let chardev = try ChardevFactory.make("socket,id=s,path=\(path),server=on,wait=off", vm: machine.vm)
        let recorder = Recorder()
        try chardev.attach(recorder)
        #expect(chardev.filename == "disconnected:unix:\(path),server=on")
        var first: Peer? = try machine.connect(path)
        try first?.send("one")
        try machine.turn("the first client") { recorder.text == "one" }
        #expect(chardev.filename == "unix:\(path),server=on")
        let second = try machine.connect(path)
        #expect(second.trySend(Array("two".utf8)[...]) == 3)
        for _ in 0..<5 { machine.vm.loop.poll(timeout: 0) }
        #expect(recorder.text == "one")
        first = nil
        try machine.turn("the second client") { recorder.text == "onetwo" }
        #expect(recorder.events == [.opened, .closed, .opened])
        chardev.write("hello")
        try second.expect("hello")
        chardev.shutDown()
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test("A socket that nobody listens on any more is replaced; other files are not")
    func stalePath() throws {
        let machine = try TestMachine()
        let directory = try TemporaryDirectory()
        let path = directory.file("s")
        func make(_ id: String) throws -> Chardev {
            try ChardevFactory.make("socket,id=\(id),path=\(path),server=on,wait=off", vm: machine.vm)
        }
        let old = try make("a")
        #expect(errorText { _ = try make("b") } == "Failed to bind socket to \(path): Address already in use")
        _ = try machine.connect(path)
        unlink(path)
        let new = try make("b")
        old.shutDown()
        // The old one must not take the new one's socket away.
        #expect(FileManager.default.fileExists(atPath: path))
        _ = try machine.connect(path)
        new.shutDown()
        // One whose process has ended without removing it.
        try leaveSocket(path)
        let third = try make("c")
        _ = try machine.connect(path)
        third.shutDown()
        try directory.write("file", "precious")
        #expect(
            errorText {
                _ = try ChardevFactory.make(
                    "socket,id=d,path=\(directory.file("file")),server=on,wait=off", vm: machine.vm)
            } == "Failed to bind socket to \(directory.file("file")): Address already in use")
        #expect(try String(contentsOfFile: directory.file("file"), encoding: .utf8) == "precious")
    }

    private func leaveSocket(_ path: String) throws {
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(fd) }
        try #require(QMPClient.withAddress(path) { bind(fd, $0, $1) } == 0 && listen(fd, 1) == 0)
    }

    @Test("TCP on the loopback works, and shows the port that was chosen")
    func tcp() throws {
        let machine = try TestMachine()
        let server = try ChardevFactory.make("socket,id=s,host=127.0.0.1,port=0,server=on,wait=off", vm: machine.vm)
        let port = try #require(server.filename.split(separator: ":").last?.split(separator: ",").first)
        let a = Recorder()
        let b = Recorder()
        try server.attach(a)
        let client = try ChardevFactory.makeShortForm("tcp:127.0.0.1:\(port)", id: "c", vm: machine.vm).chardev
        try client?.attach(b)
        client?.write("ping")
        try machine.turn("ping") { a.text == "ping" }
        server.write("pong")
        try machine.turn("pong") { b.text == "pong" }
        #expect(server.filename.contains(" <-> 127.0.0.1:"))
    }

    @Test("A client connects again after its server has come back")
    func reconnect() throws {
        let machine = try TestMachine()
        let directory = try TemporaryDirectory()
        let path = directory.file("s")
        let client = try ChardevFactory.make("socket,id=c,path=\(path),reconnect-ms=5", vm: machine.vm)
        let recorder = Recorder()
        try client.attach(recorder)
        #expect(!client.isOpen)
        for round in 0..<3 {
            let server = try ChardevFactory.make(
                "socket,id=s\(round),path=\(path),server=on,wait=off", vm: machine.vm)
            try machine.turn("connection \(round)") { client.isOpen && server.isOpen }
            server.shutDown()
            try machine.turn("disconnection \(round)") { !client.isOpen }
        }
        #expect(recorder.events == [.opened, .closed, .opened, .closed, .opened, .closed])
    }

    @Test("Options that contradict each other are refused")
    func contradictions() throws {
        let machine = try TestMachine()
        func refusal(_ text: String) -> String { errorText { _ = try ChardevFactory.make(text, vm: machine.vm) } }
        #expect(
            refusal("socket,id=a,path=/nowhere/x") == "Failed to connect to '/nowhere/x': No such file or directory")
        #expect(
            refusal("socket,id=a,path=/x,wait=on")
                == "'wait' option is incompatible with socket in client connect mode")
        #expect(
            refusal("socket,id=a,path=/x,server=on,reconnect=1")
                == "'reconnect' option is incompatible with socket in server listen mode")
        #expect(refusal("socket,id=a,path=/\(String(repeating: "x", count: 200)),server=on").contains("is too long"))
        #expect(refusal("socket,id=a,fd=99999") == "File descriptor '99999' is not open")
        #expect(refusal("null") == "chardev: no id specified")
        #expect(refusal("nonsense,id=a") == "'nonsense' is not a valid char driver name")
        #expect(refusal("null,id=a,foo=1") == "Invalid parameter 'foo'")
        #expect(refusal("file,id=a") == "chardev: file: no filename given")
        _ = try ChardevFactory.make("null,id=n", vm: machine.vm)
        #expect(refusal("null,id=n") == "Duplicate ID 'n' for chardev")
        #expect(
            errorText { _ = try ChardevFactory.makeShortForm("chardev:no", id: "x", vm: machine.vm) }
                == "chardev \"no\" not found")
        #expect(try ChardevFactory.makeShortForm("none", id: "x", vm: machine.vm).chardev == nil)
    }

    @Test("A chardev has one user")
    func oneUser() throws {
        let machine = try TestMachine()
        let chardev = try ChardevFactory.make("null,id=n", vm: machine.vm)
        let user = Recorder()
        try chardev.attach(user)
        #expect(errorText { try chardev.attach(Recorder()) } == "Device 'n' is in use")
        withExtendedLifetime(user) {}
    }

    @Test("Files are emptied, or appended to, and paths may hold commas")
    func files() throws {
        let machine = try TestMachine()
        let directory = try TemporaryDirectory()
        let path = try directory.write("a,b", "old")
        let escaped = path.replacingOccurrences(of: ",", with: ",,")
        let appending = try ChardevFactory.make("file,id=a,path=\(escaped),append=on", vm: machine.vm)
        appending.write("new")
        #expect(try String(contentsOfFile: path, encoding: .utf8) == "oldnew")
        let fresh = try ChardevFactory.makeShortForm("file:\(path)", id: "b", vm: machine.vm).chardev
        fresh?.write("fresh")
        #expect(try String(contentsOfFile: path, encoding: .utf8) == "fresh")
    }

    @Test("A reader that stops makes the writer wait, and nothing is lost")
    func outputFlowControl() throws {
        let machine = try TestMachine()
        let (chardev, peer) = try machine.makePair("c")
        let recorder = Recorder()
        try chardev.attach(recorder)
        let pattern = (0..<(4 << 20)).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }
        var sent = 0
        var idle = 0
        while idle < 10 {
            let count = pattern[sent...].withUnsafeBytes { chardev.write($0) }
            sent += count
            idle = count == 0 ? idle + 1 : 0
            machine.vm.loop.poll(timeout: 0)
        }
        #expect(sent < pattern.count)
        #expect(recorder.writable == 0)
        try machine.turn("the rest") {
            peer.pull()
            if sent < pattern.count { sent += pattern[sent...].withUnsafeBytes { chardev.write($0) } }
            return peer.received.count == pattern.count
        }
        #expect(recorder.writable > 0)
        #expect(peer.received == pattern)
    }

    @Test("A front end that is full makes the chardev stop reading, and nothing is lost")
    func inputFlowControl() throws {
        let machine = try TestMachine()
        let (chardev, peer) = try machine.makePair("c")
        let recorder = Recorder()
        recorder.room = 10
        try chardev.attach(recorder)
        try peer.send("0123456789abcdef")
        for _ in 0..<10 { machine.vm.loop.poll(timeout: 1_000_000) }
        #expect(recorder.text == "0123456789")
        recorder.room = 100
        chardev.acceptInput()
        try machine.turn("the rest") { recorder.text == "0123456789abcdef" }
    }

    @Test("What a client sent before it went is still delivered")
    func lastWords() throws {
        let machine = try TestMachine()
        let (chardev, peer) = try machine.makePair("c")
        let recorder = Recorder()
        recorder.room = 0
        try chardev.attach(recorder)
        #expect(peer.trySend(Array("last words".utf8)[...]) == 10)
        shutdown(peer.fd, Int32(SHUT_RDWR))
        for _ in 0..<10 { machine.vm.loop.poll(timeout: 1_000_000) }
        #expect(recorder.events == [.opened])
        recorder.room = 100
        chardev.acceptInput()
        try machine.turn("the end") { recorder.events == [.opened, .closed] }
        #expect(recorder.text == "last words")
    }

    @Test("A pseudo-terminal is opened, closed and opened again")
    func pty() throws {
        let machine = try TestMachine()
        let chardev = try PTYChardev(id: "p", loop: machine.vm.loop)
        try machine.vm.add(chardev)
        let recorder = Recorder()
        try chardev.attach(recorder)
        #expect(!chardev.isOpen)
        #expect(chardev.write("to nobody") == 9)
        for round in 0..<3 {
            let slave = open(chardev.slavePath, O_RDWR | O_NOCTTY | O_CLOEXEC)
            #expect(slave >= 0)
            try machine.turn("opening \(round)") { chardev.isOpen }
            var peer: Peer? = Peer(fd: slave, machine: machine)
            try peer?.send("in\(round)\r")
            try machine.turn("input") { recorder.text.hasSuffix("in\(round)\r") }
            chardev.write("out\(round)\n")
            // Raw: a newline stays one.
            #expect(try peer?.expect("out\(round)\n") == "out\(round)\n")
            peer = nil
            try machine.turn("closing \(round)") { !chardev.isOpen }
        }
        #expect(recorder.events.count { $0 == .opened } == 3)
        #expect(recorder.text == "in0\rin1\rin2\r")
    }

    @Test("A multiplexer gives the keyboard to one front end, and Ctrl-A c to the next")
    func mux() throws {
        let machine = try TestMachine()
        let (base, peer) = try machine.makePair("base")
        var quits = 0
        let mux = try MuxChardev(id: "m", base: base) { quits += 1 }
        let serial = Recorder()
        let monitor = Recorder()
        try mux.attach(serial)
        try mux.attach(monitor)
        #expect(serial.events == [.opened, .focusGained])
        #expect(monitor.events == [.opened, .focusLost])
        try peer.send("a\u{1}\u{1}b\u{1}cmon\u{1}cser")
        try machine.turn("input") { serial.text == "a\u{1}bser" && monitor.text == "mon" }
        try peer.send("\u{1}b\u{1}h")
        try peer.expect("C-a x    exit emulator")
        #expect(serial.events.last == .breakCondition)
        // A front end that is stuck does not keep the way out shut.
        serial.room = 0
        try peer.send("stuck\u{1}x")
        try machine.turn("the exit") { quits == 1 }
        serial.room = 1000
        mux.acceptInput()
        #expect(serial.text.hasSuffix("stuck"))
        mux.write("output")
        try peer.expect("output")
    }

    @Test("A ring buffer keeps the newest bytes")
    func ringBuffer() throws {
        let ring = try RingBufferChardev(id: "r", size: 8)
        ring.write("abc")
        #expect(ring.takeBytes(2) == Array("ab".utf8))
        ring.write("0123456789")
        #expect(ring.takeBytes(3) == Array("234".utf8))
        #expect(ring.takeBytes(100) == Array("56789".utf8))
        #expect(ring.takeBytes(1) == [])
    }
}
