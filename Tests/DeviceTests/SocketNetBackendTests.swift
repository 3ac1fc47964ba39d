import BatonRuntime
import Glibc
import TestSupport
import Testing
import Virtio

@Suite(.oneThread) struct SocketNetBackendTests {
    final class Received {
        var frames: [[UInt8]] = []
        var room = Int.max
    }

    /// An fd that a test closes by letting go of it.
    final class Peer {
        let raw: Int32
        init(_ raw: Int32) { self.raw = raw }
        deinit { close(raw) }
    }

    /// A back end on one end of a socket pair, and the other end.
    private func pair(_ vm: VirtualMachine) throws -> (NetBackend, Received, Peer) {
        var fds: [Int32] = [-1, -1]
        try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &fds) == 0)
        let backend = try NetBackendFactory.make(
            KeyValueOptions("socket,id=n,fd=\(fds[0])", impliedKey: "type"), vm: vm)
        return (backend, collect(backend), Peer(fds[1]))
    }

    private func collect(_ backend: NetBackend) -> Received {
        let received = Received()
        backend.receiver = { frame, _, _ in
            guard received.room > 0 else { return false }
            received.room -= 1
            received.frames.append(Array(frame))
            return true
        }
        return received
    }

    private func framed(_ frame: [UInt8]) -> [UInt8] {
        withUnsafeBytes(of: UInt32(frame.count).bigEndian) { Array($0) } + frame
    }

    private func send(_ bytes: [UInt8], to fd: Int32) throws {
        try bytes.withUnsafeBytes { try FD.writeAll(fd, $0, to: "peer") }
    }

    private func send(_ frame: [UInt8], by backend: NetBackend) {
        frame.withUnsafeBytes { bytes in
            let half = bytes.count / 2
            let parts = [
                UnsafeRawBufferPointer(rebasing: bytes[..<half]), UnsafeRawBufferPointer(rebasing: bytes[half...]),
            ]
            parts.withUnsafeBufferPointer { backend.send($0) }
        }
    }

    @Test func takesNothingBeforeTheMachineRuns() throws {
        let machine = try TestMachine()
        let (backend, received, peer) = try pair(machine.vm)
        try send(framed([1, 2, 3]), to: peer.raw)
        machine.vm.loop.poll(timeout: 1_000_000)
        #expect(received.frames.isEmpty)
        backend.receiveReady()
        #expect(machine.wait { received.frames == [[1, 2, 3]] })
        backend.shutDown()
    }

    @Test func framesComeInAnyPieces() throws {
        let machine = try TestMachine()
        let (backend, received, peer) = try pair(machine.vm)
        backend.receiveReady()
        let frames: [[UInt8]] = [Array(1...60), [], Array(repeating: 7, count: 1514), [9]]
        for byte in frames.flatMap(framed) {
            try send([byte], to: peer.raw)
            machine.vm.loop.poll(timeout: 0)
        }
        #expect(machine.wait { received.frames == [frames[0], frames[2], frames[3]] })
        backend.shutDown()
    }

    @Test func framesWaitForTheGuest() throws {
        let machine = try TestMachine()
        let (backend, received, peer) = try pair(machine.vm)
        backend.receiveReady()
        received.room = 1
        try send(framed([1]) + framed([2]) + framed([3]), to: peer.raw)
        #expect(machine.wait { received.frames == [[1]] })
        machine.vm.loop.poll(timeout: 1_000_000)
        #expect(received.frames == [[1]])
        received.room = Int.max
        backend.receiveReady()
        #expect(received.frames == [[1], [2], [3]])
        backend.shutDown()
    }

    @Test func anOversizeFrameEndsTheConnection() throws {
        let machine = try TestMachine()
        let (backend, received, peer) = try pair(machine.vm)
        backend.receiveReady()
        try send([0, 1, 0x10, 1] + Array(repeating: 0, count: 100), to: peer.raw)
        var byte: UInt8 = 0
        #expect(machine.wait { recv(peer.raw, &byte, 1, Int32(MSG_DONTWAIT)) == 0 })
        #expect(received.frames.isEmpty)
        send([1, 2], by: backend)
        backend.shutDown()
    }

    @Test func aSlowPeerLosesFramesAndNeverGetsHalfOnes() throws {
        let machine = try TestMachine()
        let (backend, _, peer) = try pair(machine.vm)
        let frame = [UInt8](repeating: 5, count: 60_000)
        for _ in 0..<100 { send(frame, by: backend) }
        var stream: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        var idle = 0
        while idle < 50 {
            let count = recv(peer.raw, &buffer, buffer.count, Int32(MSG_DONTWAIT))
            if count > 0 { stream += buffer[..<count]; idle = 0 } else { idle += 1 }
            machine.vm.loop.poll(timeout: 100_000)
        }
        #expect(stream.count % 60_004 == 0 && stream.count >= 10 * 60_004 && stream.count < 100 * 60_004)
        var position = 0
        while position + 4 <= stream.count {
            #expect(Array(stream[position..<position + 4]) == [0, 0, 0xea, 0x60])
            position += 60_004
        }
        backend.shutDown()
    }

    @Test func listensAgainAfterAPeerHasGone() throws {
        let machine = try TestMachine()
        let directory = try TemporaryDirectory()
        let path = directory.file("net")
        let server = try NetBackendFactory.make(
            KeyValueOptions(
                "stream,id=s,server=on,addr.type=unix,addr.path=\(path)", impliedKey: "type", style: .keyval),
            vm: machine.vm)
        let atServer = collect(server)
        server.receiveReady()
        for round in UInt8(1)...2 {
            let client = try NetBackendFactory.make(
                KeyValueOptions("stream,id=c,addr.type=unix,addr.path=\(path)", impliedKey: "type", style: .keyval),
                vm: machine.vm)
            let atClient = collect(client)
            client.receiveReady()
            send([round, round], by: client)
            #expect(machine.wait { atServer.frames.last == [round, round] })
            send([round, 99], by: server)
            #expect(machine.wait { atClient.frames == [[round, 99]] })
            client.shutDown()
        }
        server.shutDown()
        #expect(access(path, F_OK) != 0, "the socket's file is gone")
    }

    @Test func aClientTriesAgainUntilItsServerIsThere() throws {
        let machine = try TestMachine()
        let directory = try TemporaryDirectory()
        let path = directory.file("net")
        func stream(_ rest: String) throws -> NetBackend {
            try NetBackendFactory.make(
                KeyValueOptions("stream,addr.type=unix,addr.path=\(path),\(rest)", impliedKey: "type", style: .keyval),
                vm: machine.vm)
        }
        let client = try stream("id=c,reconnect-ms=1")
        let atClient = collect(client)
        client.receiveReady()
        for round in UInt8(1)...2 {
            let server = try stream("id=s,server=on")
            let atServer = collect(server)
            server.receiveReady()
            #expect(
                machine.wait {
                    send([round], by: client)
                    return atServer.frames.last == [round]
                })
            send([round, 7], by: server)
            #expect(machine.wait { atClient.frames.last == [round, 7] })
            server.shutDown()
        }
        client.shutDown()
    }

    /// Two back ends that send each other datagrams, by inet or unix addresses.
    @Test(arguments: ["unix", "inet", "fd"]) func datagramsCarryFramesBothWays(_ kind: String) throws {
        let machine = try TestMachine()
        let directory = try TemporaryDirectory()
        var fds: [Int32] = [-1, -1]
        if kind == "fd" { try #require(socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0, &fds) == 0) }
        let ports = try FreePort.udp(2)
        func end(_ prefix: String, _ index: Int) -> String {
            switch kind {
            case "unix": "\(prefix).type=unix,\(prefix).path=\(directory.file("s\(index)"))"
            case "inet": "\(prefix).type=inet,\(prefix).host=127.0.0.1,\(prefix).port=\(ports[index])"
            default: prefix == "local" ? "local.type=fd,local.str=\(fds[index])" : ""
            }
        }
        let backends = try (0..<2).map { index in
            let options =
                "dgram,id=n\(index),\(end("local", index))" + (kind == "fd" ? "" : ",\(end("remote", 1 - index))")
            return try NetBackendFactory.make(
                KeyValueOptions(options, impliedKey: "type", style: .keyval), vm: machine.vm)
        }
        let received = backends.map(collect)
        backends[0].receiveReady()
        received[0].room = 1
        for byte in UInt8(1)...3 { send([byte, byte], by: backends[1]) }
        #expect(machine.wait { received[0].frames == [[1, 1]] })
        machine.vm.loop.poll(timeout: 1_000_000)
        // The second is held, the third is the kernel's still.
        received[0].room = 2
        backends[0].receiveReady()
        #expect(machine.wait { received[0].frames == [[1, 1], [2, 2], [3, 3]] })
        send([UInt8](repeating: 9, count: 1514), by: backends[0])
        machine.vm.loop.poll(timeout: 1_000_000)
        #expect(received[1].frames.isEmpty, "nothing is taken before the machine runs")
        backends[1].receiveReady()
        #expect(machine.wait { received[1].frames.map(\.count) == [1514] })
        for backend in backends { backend.shutDown() }
        if kind == "unix" { #expect(access(directory.file("s0"), F_OK) != 0) }
        // Nobody is there any more.
        send([1], by: backends[0])
    }

    @Test func aMulticastGroupIsASegmentOfItsOwn() throws {
        let machine = try TestMachine()
        let port = try FreePort.udp(1)[0]
        func member(
            _ group: String, local: String = ",local.type=inet,local.host=127.0.0.1,local.port=0"
        ) throws -> NetBackend {
            let options = "dgram,id=n,remote.type=inet,remote.host=\(group),remote.port=\(port)\(local)"
            return try NetBackendFactory.make(
                KeyValueOptions(options, impliedKey: "type", style: .keyval), vm: machine.vm)
        }
        let members = try [member("230.0.0.1"), member("230.0.0.1"), member("230.0.0.2")]
        let received = members.map(collect)
        for member in members { member.receiveReady() }
        send([1, 2], by: members[0])
        // On its own interface too, as in QEMU.
        #expect(machine.wait { received[0].frames == [[1, 2]] && received[1].frames == [[1, 2]] })
        send([3], by: members[2])
        #expect(machine.wait { received[2].frames == [[3]] })
        #expect(received[0].frames.count == 1)
        for member in members { member.shutDown() }
        #expect(throws: VMMError.self) { try member("230.0.0.1", local: ",local.type=unix,local.path=/x") }
        #expect(throws: VMMError.self) { try member("230.0.0.1", local: ",local.type=inet,local.host=lo,local.port=0") }
        #expect(throws: VMMError.self) { try member("10.0.0.1", local: "") }
    }

    private static let wrongOptions: [(String, String)] = [
        ("socket,id=a", "exactly one of listen=, connect= or fd= is required"),
        ("stream,id=a", "Parameter 'addr' is missing"),
        ("foo,id=a", "Parameter 'type' does not accept value 'foo'"),
        ("l2tpv3", "Parameter 'type' does not accept value 'l2tpv3'"),
        ("socket", "Parameter 'id' is missing"),
        ("socket,id=a,connect=nocolon", "host address 'nocolon' doesn't contain ':'"),
        ("socket,id=a,connect=h:99999", "port number '99999' is invalid"),
        ("socket,id=a,fd=9999", "netdev 'a': fd 9999 is not an open stream socket"),
        ("stream,id=a,addr.type=unix", "Parameter 'path' is missing"),
        ("stream,id=a,addr.type=vsock", "Parameter 'addr.type' does not accept value 'vsock'"),
        (
            "stream,id=a,addr.type=unix,addr.path=/nonexistent/s",
            "Failed to connect to '/nonexistent/s': No such file or directory"
        ),
        (
            "stream,id=a,server=on,reconnect-ms=1,addr.type=unix,addr.path=/x",
            "'reconnect-ms' option is incompatible with socket in server mode"
        ),
        ("dgram,id=a", "dgram requires local= parameter"),
        ("dgram,id=a,local.type=unix,local.path=/x", "type=inet or type=unix requires remote parameter"),
        (
            "dgram,id=a,local.type=fd,local.str=3,remote.type=inet,remote.host=::1,remote.port=1",
            "don't set remote with local.fd"
        ),
        (
            "dgram,id=a,local.type=unix,local.path=/x,remote.type=inet,remote.host=::1,remote.port=1",
            "remote and local types must be the same"
        ),
        ("dgram,id=a,local.type=fd,local.str=9999", "netdev 'a': fd 9999 is not an open datagram socket"),
        (
            "dgram,id=a,local.type=unix,local.path=/nonexistent/s,remote.type=unix,remote.path=/y",
            "can't bind '/nonexistent/s': No such file or directory"
        ),
    ]

    @Test(arguments: wrongOptions)
    func refusesWrongOptions(_ text: String, _ message: String) throws {
        let machine = try TestMachine()
        let error = #expect(throws: VMMError.self) {
            try NetBackendFactory.make(KeyValueOptions(text, impliedKey: "type"), vm: machine.vm)
        }
        #expect(error?.message == message)
    }
}
