import Foundation
import TestSupport
import Testing

/// Serial ports by pipe, UDP and telnet: an echoing guest, over updates of a real VMM.
@Suite(
    "Pipe, UDP and telnet over an update",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct ConsoleKindTests {
    /// - Parameter open: connects before the guest runs, and gives what sends a text and returns the next line that comes.
    private func echoes(
        _ serial: String, in directory: TemporaryDirectory,
        _ open: (QMPClient) throws -> (_ text: String) throws -> String
    ) throws {
        let arguments = [
            Products.baton, "-machine", "virt", "-m", "16M", "-bios", "none", "-kernel",
            try GuestBuilder.flat("echo/echo.c"), "-nodefaults", "-nographic", "-serial", serial, "-S",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
            "-cpr-enable", "restart",
        ]
        let vmm = try ChildProcess(arguments)
        let qmp = try QMPClient(path: directory.file("qmp"), of: vmm)
        let exchange = try open(qmp)
        try qmp.execute("cont")
        #expect(try exchange("") == "echo\n")
        for round in 0..<5 {
            let text = "round \(round), some more bytes than a queue of sixteen has room for\n"
            #expect(try exchange(text) == text)
            try qmp.execute("cpr-update", ["argv": arguments])
        }
        #expect(try exchange("end\n") == "end\n")
        try qmp.execute("quit")
        #expect(try vmm.waitForExit() == .status(0))
    }

    /// Reads up to the end of a line.
    private func line(_ fd: Int32) throws -> String {
        var text = "", byte: UInt8 = 0
        while !text.hasSuffix("\n") {
            var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
            guard poll(&state, 1, 60_000) == 1 else { throw TestError("nothing more came than '\(text)'") }
            guard read(fd, &byte, 1) == 1 else { throw TestError("the end after '\(text)'") }
            text.unicodeScalars.append(.init(byte))
        }
        return text
    }

    @Test func pipe() throws {
        let directory = try TemporaryDirectory(), path = directory.file("pipe")
        for way in ["in", "out"] { try #require(mkfifo("\(path).\(way)", 0o600) == 0) }
        let input = open("\(path).in", O_RDWR | O_CLOEXEC), output = open("\(path).out", O_RDWR | O_CLOEXEC)
        defer {
            close(input)
            close(output)
        }
        try echoes("pipe:\(path)", in: directory) { _ in
            { text in
                try #require(write(input, text, text.utf8.count) == text.utf8.count)
                return try line(output)
            }
        }
    }

    @Test func udp() throws {
        let directory = try TemporaryDirectory(), ports = try FreePort.udp(2)
        let fd = try Loopback.socket(SOCK_DGRAM)
        defer { close(fd) }
        try #require(Loopback.withAddress(ports[0]) { bind(fd, $0, $1) } == 0)
        try echoes("udp:127.0.0.1:\(ports[0])@127.0.0.1:\(ports[1])", in: directory) { _ in
            try #require(Loopback.withAddress(ports[1]) { connect(fd, $0, $1) } == 0)
            return { text in
                try #require(text.isEmpty || send(fd, text, text.utf8.count, 0) == text.utf8.count)
                // Each byte may be a datagram.
                var result = ""
                while !result.hasSuffix("\n") {
                    var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
                    guard poll(&state, 1, 60_000) == 1 else { throw TestError("nothing more came than '\(result)'") }
                    var bytes = [UInt8](repeating: 0, count: 1024)
                    let count = recv(fd, &bytes, bytes.count, 0)
                    guard count >= 0 else { throw TestError.system("recv") }
                    result += String(decoding: bytes[..<count], as: UTF8.self)
                }
                return result
            }
        }
    }

    @Test("telnet: the client is greeted, and its commands are not the guest's") func telnet() throws {
        let directory = try TemporaryDirectory(), port = try FreePort.udp(1)[0]
        var fd: Int32 = -1
        defer { close(fd) }
        try echoes("telnet:127.0.0.1:\(port),server=on,wait=off", in: directory) { _ in
            fd = try Loopback.connect(SOCK_STREAM, to: port)
            var greeting: [UInt8] = []
            while greeting.count < 12 {
                var byte: UInt8 = 0
                try #require(read(fd, &byte, 1) == 1)
                greeting.append(byte)
            }
            #expect(greeting == [255, 251, 1, 255, 251, 3, 255, 251, 0, 255, 253, 0])
            return { text in
                // DO ECHO before it, and a command in the middle.
                let bytes = [255, 253, 1] + Array(text.utf8.prefix(5)) + [255, 241] + Array(text.utf8.dropFirst(5))
                try #require(write(fd, bytes, bytes.count) == bytes.count)
                return try line(fd)
            }
        }
    }
}
