import Foundation
import TestSupport
import Testing

/// `vhost-user-vsock-device`: another process has the guest's sockets.
@Suite("vhost-user-vsock", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VhostUserVsockTests {
    private func withVsock(
        chardev: String = "", extra: [String] = ["-cpr-enable", "restart"],
        _ body: (FakeVsock, VhostUserGuest) throws -> Void
    ) throws {
        let directory = try TemporaryDirectory()
        let vsock = try FakeVsock(directory)
        defer { vsock.end() }
        let guest = try VhostUserGuest("vsock", socket: vsock.path, in: directory, chardev: chardev, extra: extra)
        try guest.waitForProgress()
        try body(vsock, guest)
    }

    /// How often the guest was told that its connections are no more.
    private func resets(_ guest: VhostUserGuest) -> Int {
        guest.serial.components(separatedBy: "vsock reset\n").count - 1
    }

    @Test("connections go on over updates: no packet is lost or doubled, and the back end gets no message")
    func updates() throws {
        try withVsock { vsock, guest in
            let before = vsock.messages
            for _ in 0..<5 {
                try guest.update()
                try guest.waitForProgress()
            }
            #expect(vsock.messages == before && vsock.connectionCount == 1 && resets(guest) == 0)
            #expect(guest.serial.contains("cid: 42\n"))
            try guest.end()
        }
    }

    @Test("the guest is told when its connections go with the back end, and goes on with the next one")
    func anotherBackEnd() throws {
        try withVsock(chardev: ",reconnect-ms=50") { vsock, guest in
            for round in 1...3 {
                vsock.drop()
                try eventually("the guest is told; it said \(guest.serial.suffix(200))") { resets(guest) == round }
                try guest.waitForProgress()
                try guest.update()
                try guest.waitForProgress()
                #expect(vsock.connectionCount == 1 + round && resets(guest) == round)
            }
            try guest.end()
        }
    }

    @Test("a checkpoint that another process loads has the guest give its connections up")
    func checkpoint() throws {
        let directory = try TemporaryDirectory()
        let extra = ["-cpr-enable", "reboot"]
        let memory = directory.file("ram")
        func arguments(_ socket: String) throws -> [String] {
            try VhostUserGuest.arguments(
                "vsock", socket: socket, in: directory, memory: "memory-backend-file,mem-path=\(memory)", extra: extra)
        }
        let vsock = try FakeVsock(directory)
        let guest = try VhostUserGuest("vsock", in: directory, arguments: try arguments(vsock.path))
        try guest.waitForProgress()
        try guest.qmp.execute("cpr-save", ["filename": directory.file("state"), "mode": "reboot"])
        let said = guest.serial
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
        vsock.end()
        #expect(!said.contains("vsock reset"))

        let place = try TemporaryDirectory()
        let other = try FakeVsock(place)
        defer { other.end() }
        let next = try VhostUserGuest(
            "vsock", in: directory, arguments: try arguments(other.path) + ["-S"])
        try next.qmp.execute("cpr-load", ["filename": directory.file("state"), "mode": "reboot"])
        try eventually("the guest is told; it said \(next.serial.suffix(200)); \(next.process.report)") {
            next.serial.contains("vsock reset\n")
        }
        try next.waitForProgress()
        try next.end()
    }

    @Test("a back end without sockets of packets is refused when these are asked for")
    func seqpacket() throws {
        let directory = try TemporaryDirectory()
        let net = try FakeDisk(directory)
        defer { net.end() }
        let arguments = try VhostUserGuest.arguments("vsock", socket: net.path, in: directory, extra: []).map {
            $0 == "vhost-user-vsock-device,chardev=c" ? $0 + ",seqpacket=on" : $0
        }
        let vmm = try ChildProcess(arguments)
        #expect(try vmm.waitForExit() == .status(1))
        #expect(vmm.errors.contains("lacks the features 0x2, which an option asks for"), "\(vmm.errors)")
    }
}
