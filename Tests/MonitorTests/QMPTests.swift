import BatonRuntime
import Chardev
import Foundation
import Monitor
import TestSupport
import Testing

@Suite("QMP")
struct QMPTests {
    @Test("The greeting comes first, then nothing but the negotiation is accepted")
    func negotiation() throws {
        let machine = try TestMachine()
        let (chardev, peer) = try machine.makePair("qmp")
        try QMPMonitor(vm: machine.vm, chardev: chardev)
        let greeting = try peer.message()["QMP"]?.objectValue
        #expect(greeting?["capabilities"]?.arrayValue == [])
        #expect(greeting?["version"]?.objectValue?["qemu"]?.objectValue?["major"]?.intValue != nil)
        let early = try peer.ask(#"{"execute": "query-status", "id": 7}"#)
        #expect(early["error"]?.objectValue?["class"] == "CommandNotFound")
        #expect(early["error"]?.objectValue?["desc"] == "Expecting capabilities negotiation with 'qmp_capabilities'")
        #expect(early["id"] == 7)
        #expect(
            try peer.refusal(#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#)
                == "Capability oob not available")
        #expect(try peer.ask(#"{"execute": "qmp_capabilities"}"#)["return"] == [:])
        #expect(
            try peer.refusal(#"{"execute": "qmp_capabilities"}"#)
                == "Capabilities negotiation is already complete, command ignored")
        #expect(try peer.ask(#"{"execute": "query-status"}"#)["return"] == ["running": false, "status": "prelaunch"])
    }

    @Test(
        "Bad requests get QEMU's errors and the session goes on",
        arguments: [
            ("[]", "QMP input must be a JSON object"), ("{}", "QMP input lacks member 'execute'"),
            (#"{"execute": 1}"#, "QMP input member 'execute' must be a string"),
            (#"{"execute": "stop", "arguments": []}"#, "QMP input member 'arguments' must be an object"),
            (#"{"execute": "stop", "foo": 1}"#, "QMP input member 'foo' is unexpected"),
            (#"{"exec-oob": "stop"}"#, "QMP input member 'exec-oob' is unexpected"),
            (#"{"execute": "no-such"}"#, "The command no-such has not been found"),
            (#"{"execute": "stop", "arguments": {"x": 1}}"#, "Parameter 'x' is unexpected"),
            (#"{"execute": "ringbuf-read"}"#, "Parameter 'device' is missing"),
            (
                #"{"execute": "ringbuf-read", "arguments": {"device": 1, "size": 1}}"#,
                "Invalid parameter type for 'device', expected: string"
            ),
            (
                #"{"execute": "ringbuf-read", "arguments": {"device": "a", "size": "1"}}"#,
                "Invalid parameter type for 'size', expected: integer"
            ),
            (
                #"{"execute": "ringbuf-read", "arguments": {"device": "a", "size": 1, "format": "x"}}"#,
                "Parameter 'format' does not accept value 'x'"
            ),
            (#"{"execute": }"#, "JSON parse error, expecting value"),
            ("foo", "JSON parse error, invalid keyword 'foo'"),
            ("@", "JSON parse error, stray '@'"),
        ])
    func badRequests(request: String, message: String) throws {
        let peer = try TestMachine.session()
        #expect(try peer.1.refusal(request) == message)
        #expect(try peer.1.ask(#"{"execute": "query-name"}"#)["return"] == [:])
    }

    @Test("Nested arguments are checked to their depth")
    func nestedArguments() throws {
        let (machine, peer) = try TestMachine.session()
        let inner = QMPType.object(
            name: "Inner", members: [QMPMember("a", .int), QMPMember("b", .bool, optional: true)])
        try machine.vm.commands.add(
            QMPCommand("nested", arguments: [QMPMember("list", .array(inner))]) { _ in [:] })
        func refusal(_ list: String) throws -> String {
            try peer.refusal(#"{"execute": "nested", "arguments": {"list": \#(list)}}"#)
        }
        #expect(try refusal("[{}]") == "Parameter 'list[0].a' is missing")
        #expect(
            try refusal(#"[{"a": 1}, {"a": 1, "b": 2}]"#)
                == "Invalid parameter type for 'list[1].b', expected: boolean")
        #expect(try refusal(#"[{"a": 1, "c": 2}]"#) == "Parameter 'list[0].c' is unexpected")
        #expect(try refusal("[1]") == "Invalid parameter type for 'list[0]', expected: object")
    }

    @Test("Ids of any type are echoed, and pipelined commands answered in order")
    func pipelined() throws {
        let (_, peer) = try TestMachine.session()
        let ids = ["1", "\"two\"", "[3]", "{\"four\": null}", "5.5", "false"]
        try peer.send(ids.map { #"{"execute": "query-uuid", "id": \#($0)}"# }.joined())
        for id in ids { #expect(try peer.message()["id"]?.text() == id) }
    }

    @Test("A message may come in pieces of one byte")
    func pieces() throws {
        let (machine, peer) = try TestMachine.session()
        for byte in Array(#"{"execute": "query-target", "id": 1}"#.utf8) {
            try peer.send([byte])
            machine.vm.loop.poll(timeout: 0)
        }
        #expect(try peer.message()["return"] == ["arch": "riscv64"])
    }

    @Test("Half a message and a hang-up leave the monitor ready for the next client")
    func halfMessage() throws {
        let machine = try TestMachine()
        let directory = try TemporaryDirectory()
        let chardev = try ChardevFactory.make(
            "socket,id=m,path=\(directory.file("qmp")),server=on,wait=off", vm: machine.vm)
        try QMPMonitor(vm: machine.vm, chardev: chardev)
        for _ in 0..<3 {
            let peer = try machine.connect(directory.file("qmp"))
            #expect(try peer.message()["QMP"] != nil)
            #expect(try peer.ask(#"{"execute": "qmp_capabilities"}"#)["return"] == [:])
            try peer.send(#"{"execute": "quit""#)
        }
        #expect(machine.vm.exitStatus == nil)
    }

    @Test("Too deep a request is refused and the next one answered")
    func tooDeep() throws {
        let (_, peer) = try TestMachine.session()
        try peer.send(String(repeating: "[", count: 1025) + "\n")
        #expect(try peer.message()["error"]?.objectValue?["desc"] == "JSON nesting depth limit exceeded")
        #expect(try peer.ask(#"{"execute": "query-name"}"#)["return"] == [:])
    }

    @Test("Events go to every negotiated monitor, with a timestamp, and to no other")
    func events() throws {
        let machine = try TestMachine()
        let first = try machine.makeSession("a")
        let second = try machine.makeSession("b")
        let (chardev, silent) = try machine.makePair("c")
        try QMPMonitor(vm: machine.vm, chardev: chardev)
        _ = try silent.message()
        #expect(try first.ask(#"{"execute": "cont"}"#)["event"] == "RESUME")
        #expect(try first.message()["return"] == [:])
        let event = try second.message()
        #expect(event["event"] == "RESUME" && event["data"] == nil)
        #expect(event["timestamp"]?.objectValue?["seconds"]?.intValue ?? 0 > 1_600_000_000)
        #expect(try first.ask(#"{"execute": "stop"}"#)["event"] == "STOP")
        silent.pull()
        #expect(silent.received.isEmpty)
    }

    @Test("A handler's error becomes the reply, with its class")
    func handlerErrors() throws {
        let (machine, peer) = try TestMachine.session()
        try machine.vm.commands.add(
            QMPCommand("fail") { (_: JSONObject) throws(VMMError) -> JSON in
                throw VMMError("it \"broke\"\n", class: .deviceNotFound)
            })
        let error = try peer.ask(#"{"execute": "fail"}"#)["error"]?.objectValue
        #expect(error?["class"] == "DeviceNotFound")
        #expect(error?["desc"] == "it \"broke\"\n")
    }

    @Test("A client that does not read its answers is not read from either")
    func backpressure() throws {
        let (_, peer) = try TestMachine.session()
        // Padded, so that what the kernel buffers holds few requests.
        let request = Array((#"{"execute": "query-qmp-schema"}"# + String(repeating: " ", count: 4000) + "\n").utf8)
        var accepted = 0
        let batch = Array(repeatElement(request, count: 20).joined())
        // The loop turns while the client sends as much as goes out; the
        // kernel's buffers bound it, not the monitor's memory.
        var idle = 0
        while idle < 50 {
            let count = peer.trySend(batch[(accepted % request.count)...])
            accepted += count
            idle = count == 0 ? idle + 1 : 0
            peer.machineTurn()
        }
        #expect(accepted < 8 << 20)
        let whole = accepted / request.count
        for _ in 0..<whole { #expect(try peer.message()["return"]?.arrayValue?.isEmpty == false) }
    }

    @Test("A pretty monitor indents, and means the same")
    func pretty() throws {
        let machine = try TestMachine()
        let (chardev, peer) = try machine.makePair("qmp")
        try QMPMonitor(vm: machine.vm, chardev: chardev, pretty: true)
        let text = try peer.expect("\n}\r\n")
        #expect(text.contains("\n    \"QMP\": {\n        \"version\": {"))
        #expect(try JSON(parsing: text).objectValue?["QMP"] != nil)
    }

    @Test("Every type that the schema names is in it, once")
    func schema() throws {
        let (_, peer) = try TestMachine.session()
        let entries = try #require(try peer.ask(#"{"execute": "query-qmp-schema"}"#)["return"]?.arrayValue)
            .compactMap(\.objectValue)
        var types: Set<String> = []
        var used: Set<String> = []
        var commands: [String] = []
        for entry in entries {
            let name = try #require(entry["name"]?.stringValue)
            let meta = try #require(entry["meta-type"]?.stringValue)
            switch meta {
            case "command":
                commands.append(name)
                used.formUnion([entry["arg-type"], entry["ret-type"]].compactMap { $0?.stringValue })
            case "event": used.formUnion([entry["arg-type"]].compactMap { $0?.stringValue })
            default: #expect(types.insert(name).inserted, "\(name) is there twice")
            }
            if let element = entry["element-type"]?.stringValue { used.insert(element) }
            for member in entry["members"]?.arrayValue ?? [] where meta == "object" {
                used.insert(try #require(member.objectValue?["type"]?.stringValue))
            }
        }
        #expect(used.isSubset(of: types), "\(used.subtracting(types))")
        let listed = try #require(try peer.ask(#"{"execute": "query-commands"}"#)["return"]?.arrayValue)
            .compactMap { $0.objectValue?["name"]?.stringValue }
        #expect(listed.sorted() == commands.sorted())
    }

    @Test("Every query that needs no argument answers as its declared type")
    func declaredReturns() throws {
        let (machine, peer) = try TestMachine.session()
        for (name, command) in machine.vm.commands.qmp where name.contains("query-") && command.arguments.isEmpty {
            let answer = try peer.ask(#"{"execute": "\#(name)"}"#)
            let value = try #require(answer["return"], "\(name): \(JSON.object(answer).text())")
            // The checker of arguments checks results as well.
            #expect(throws: Never.self, "\(name)") {
                try QMPArguments.check(["r": value], against: [QMPMember("r", command.returns)])
            }
        }
    }

    @Test("A machine that has ended runs again only after a reset")
    func resetRequired() throws {
        let (machine, peer) = try TestMachine.session()
        machine.vm.stop(.shutdown)
        #expect(try peer.refusal(#"{"execute": "cont"}"#) == "Resetting the Virtual Machine is required")
        // Stopping what does not run changes nothing.
        #expect(try peer.ask(#"{"execute": "stop"}"#)["return"] == [:])
        #expect(machine.vm.runState == .shutdown)
    }

    @Test("Ring buffers are written and read through the monitor")
    func ringBuffer() throws {
        let (machine, peer) = try TestMachine.session()
        let ring = try ChardevFactory.make("ringbuf,id=r,size=16", vm: machine.vm)
        ring.write("0123456789abcdefXYZ")
        #expect(
            try peer.ask(#"{"execute": "ringbuf-read", "arguments": {"device": "r", "size": 4}}"#)["return"] == "3456")
        #expect(
            try peer.ask(
                #"{"execute": "ringbuf-write", "arguments": {"device": "r", "data": "AAH/", "format": "base64"}}"#)[
                    "return"]
                == [:])
        #expect(
            try peer.ask(
                #"{"execute": "ringbuf-read", "arguments": {"device": "r", "size": 100, "format": "base64"}}"#)[
                    "return"]
                == .string(Data(Array("789abcdefXYZ".utf8) + [0, 1, 255]).base64EncodedString()))
        #expect(
            try peer.refusal(#"{"execute": "ringbuf-read", "arguments": {"device": "r", "size": 0}}"#)
                == "size must be greater than zero")
        #expect(
            try peer.refusal(#"{"execute": "ringbuf-read", "arguments": {"device": "no", "size": 1}}"#)
                == "Device 'no' not found")
        #expect(
            errorText { _ = try ChardevFactory.make("ringbuf,id=s,size=17", vm: machine.vm) }
                == "size of ringbuf chardev must be power of two")
    }

    @Test("Random bytes never stop the monitor from answering")
    func fuzz() throws {
        let (_, peer) = try TestMachine.session()
        var random = SeededGenerator(state: 7)
        for round in 0..<50 {
            try peer.send((0..<400).map { _ in UInt8.random(in: 0...255, using: &random) })
            // 0xFF ends whatever the noise has begun.
            try peer.send([0xFF] + Array("\n{\"execute\": \"query-name\", \"id\": \(round)}\n".utf8))
            while try peer.message()["id"] != JSON(round) {}
        }
    }
}

extension TestMachine {
    /// A machine with one negotiated session.
    static func session() throws -> (TestMachine, Peer) {
        let machine = try TestMachine()
        return (machine, try machine.makeSession())
    }

    /// Connects to a unix socket that this machine listens on.
    func connect(_ path: String) throws -> Peer {
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Foundation.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else {
            close(fd)
            throw TestError("connect to \(path): \(String(cString: strerror(errno)))")
        }
        return Peer(fd: fd, machine: self)
    }
}

extension Peer {
    func machineTurn() { machineLoop(2_000_000) }
}
