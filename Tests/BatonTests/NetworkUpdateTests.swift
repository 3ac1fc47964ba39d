import Foundation
import TestSupport
import Testing

/// Connections of `-netdev` over updates. The test is the network: its frames
/// are echo requests, each of which the guest must answer once.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct NetworkUpdateTests {
    /// One end of a stream of frames.
    final class Wire {
        private let fd: Int32
        private var received: [UInt8] = []
        private(set) var isClosed = false

        init(_ fd: Int32) {
            self.fd = fd
            _ = fcntl(fd, F_SETFD, FD_CLOEXEC)
        }
        deinit { close(fd) }

        static func connect(_ path: String) throws -> Wire {
            let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
            try eventually("a server on \(path)") {
                QMPClient.withAddress(path) { Foundation.connect(fd, $0, $1) } == 0
            }
            return Wire(fd)
        }

        func send(_ bytes: some Sequence<UInt8>) throws {
            var rest = Array(bytes)[...]
            while !rest.isEmpty {
                let count = rest.withUnsafeBytes { Foundation.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
                guard count > 0 else { throw TestError("the VMM has closed the connection") }
                rest = rest.dropFirst(count)
            }
        }

        static func framed(_ number: UInt32) -> [UInt8] {
            let frame = EchoFrame.request(number)
            return EchoFrame.bigEndian(UInt32(frame.count)) + frame
        }

        /// Waits for bytes, and takes the next whole frame off them.
        func frame() throws -> [UInt8] {
            var result: [UInt8]?
            try eventually("a frame") {
                if received.count >= 4 {
                    let length = received[..<4].reduce(0) { $0 << 8 | Int($1) }
                    if received.count >= 4 + length {
                        result = Array(received[4..<4 + length])
                        received.removeFirst(4 + length)
                        return true
                    }
                }
                var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
                guard poll(&state, 1, 10) == 1 else { return false }
                var buffer = [UInt8](repeating: 0, count: 1 << 16)
                let count = read(fd, &buffer, buffer.count)
                guard count > 0 else { throw TestError("the VMM has closed the connection") }
                received += buffer[..<count]
                return false
            }
            return result ?? []
        }

        /// Expects the replies to these requests, in order, with nothing but
        /// the guest's own announcements between.
        func expectReplies(_ numbers: some Sequence<UInt32>) throws {
            for number in numbers {
                var reply: UInt32?
                while reply == nil {
                    let frame = try frame()
                    reply = EchoFrame.number(ofFrame: frame)
                    if reply == nil, frame.count < 14 || frame[13] != 6 { throw TestError("a damaged frame: \(frame)") }
                }
                guard reply == number else { throw TestError("reply \(reply ?? 0) instead of \(number)") }
            }
        }
    }

    /// A listening unix socket.
    final class Listener {
        private let fd: Int32
        init(_ path: String) throws {
            fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            guard QMPClient.withAddress(path, { bind(fd, $0, $1) }) == 0, listen(fd, 4) == 0 else {
                throw TestError("cannot listen on \(path)")
            }
        }
        deinit { close(fd) }

        func accept(within milliseconds: Int32 = 30_000) -> Wire? {
            var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
            guard poll(&state, 1, milliseconds) == 1 else { return nil }
            return Wire(Foundation.accept(fd, nil, nil))
        }
    }

    /// Twenty updates, each with whole frames in hand and one that is cut in two.
    private func exercise(_ guest: NetGuest, _ wire: Wire) throws {
        var next: UInt32 = 0
        for round in 0..<20 {
            let numbers = next..<next + 100
            next += 100
            let bytes = numbers.flatMap(Wire.framed)
            let cut = bytes.count - 1 - round * 4
            try wire.send(bytes[..<cut])
            try guest.update()
            try wire.send(bytes[cut...])
            try wire.expectReplies(numbers)
        }
    }

    @Test("a client's connection goes through twenty updates, with frames cut in two")
    func client() throws {
        let directory = try TemporaryDirectory()
        let listener = try Listener(directory.file("net"))
        let guest = try NetGuest(netdev: "stream,id=n,addr.type=unix,addr.path=\(directory.file("net"))", in: directory)
        let wire = try #require(listener.accept())
        try exercise(guest, wire)
        #expect(listener.accept(within: 0) == nil, "it has not connected again")
    }

    @Test("a server's connection and listener go through updates", arguments: ["stream", "socket"])
    func server(_ kind: String) throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("net")
        if kind == "socket" {
            var fds: [Int32] = [-1, -1]
            try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &fds) == 0)
            let wire = Wire(fds[1])
            let guest = try NetGuest(netdev: "socket,id=n,fd=40", in: directory, descriptors: [40: fds[0]])
            close(fds[0])
            return try exercise(guest, wire)
        }
        let guest = try NetGuest(netdev: "stream,id=n,server=on,addr.type=unix,addr.path=\(path)", in: directory)
        do {
            let wire = try Wire.connect(path)
            try exercise(guest, wire)
        }
        // The next client comes to the same listener, also while nobody could accept it.
        try guest.qmp.execute("stop")
        let wire = try Wire.connect(path)
        try guest.update()
        try guest.qmp.execute("cont")
        try wire.send(Wire.framed(7))
        try wire.expectReplies([7])
        try guest.qmp.execute("quit")
        try eventually("the socket's file is removed") { access(path, F_OK) != 0 }
    }

    @Test("an update that fails leaves the connection as it was")
    func failures() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("net")
        let guest = try NetGuest(netdev: "stream,id=n,server=on,addr.type=unix,addr.path=\(path)", in: directory)
        let wire = try Wire.connect(path)
        var number: UInt32 = 0
        for argv in [["/bin/false"], guest.arguments + ["-device", "virtio-rng-device"], guest.arguments + ["-bogus"]] {
            for preflight in [true, false] {
                let bytes = Wire.framed(number)
                try wire.send(bytes[..<33])
                #expect(throws: QMPClient.Refusal.self) { try guest.update(argv, preflight: preflight) }
                try wire.send(bytes[33...])
                try wire.expectReplies([number])
                #expect(access(path, F_OK) == 0, "the listener's file stays")
                number += 1
            }
        }
        let other = guest.arguments.map { $0.replacingOccurrences(of: path, with: path + "2") }
        #expect(refusal { try guest.update(other) }.contains("does not listen where it is to"))
        try guest.update()
        try wire.send(Wire.framed(number))
        try wire.expectReplies([number])
    }

    @Test("a client with reconnect-ms finds its server again, also in the next VMM")
    func reconnect() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("net")
        let guest = try NetGuest(netdev: "stream,id=n,reconnect-ms=20,addr.type=unix,addr.path=\(path)", in: directory)
        for number in UInt32(0)..<3 {
            let listener = try Listener(path)
            let wire = try #require(listener.accept())
            try wire.send(Wire.framed(number))
            try wire.expectReplies([number])
            if number > 0 { try guest.update() }
            unlink(path)
            // Without a peer from here on, and over an update.
            if number == 1 { try guest.update() }
        }
    }

    @Test("datagrams go through twenty updates")
    func datagrams() throws {
        let directory = try TemporaryDirectory()
        let (here, there) = (directory.file("here"), directory.file("there"))
        let fd = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(fd) }
        try #require(QMPClient.withAddress(here, { bind(fd, $0, $1) }) == 0)
        let guest = try NetGuest(
            netdev: "dgram,id=n,local.type=unix,local.path=\(there),remote.type=unix,remote.path=\(here)", in: directory
        )
        var expected: UInt32 = 0
        for round in UInt32(0)..<20 {
            for number in round * 8..<round * 8 + 8 {
                let frame = EchoFrame.request(number)
                let count = QMPClient.withAddress(there) { sendto(fd, frame, frame.count, 0, $0, $1) }
                #expect(count == frame.count)
            }
            try guest.update()
            while expected < round * 8 + 8 {
                var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
                try #require(poll(&state, 1, 30_000) == 1, "a reply to \(expected)")
                var buffer = [UInt8](repeating: 0, count: 2048)
                let count = read(fd, &buffer, buffer.count)
                guard let number = EchoFrame.number(ofFrame: Array(buffer[..<count])) else { continue }
                #expect(number == expected)
                expected += 1
            }
        }
        try guest.qmp.execute("quit")
        try eventually("the socket's file is removed") { access(there, F_OK) != 0 }
    }
}
