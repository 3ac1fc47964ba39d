import Foundation
import TestSupport
import Testing

/// `-netdev vhost-user`: another process serves the card's queues.
@Suite("vhost-user-net", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VhostUserNetTests {
    private func withNet(_ pairs: Int, chardev: String = "", _ body: (FakeNet, VhostUserGuest) throws -> Void) throws {
        let directory = try TemporaryDirectory()
        let net = try FakeNet(directory, pairs: pairs)
        defer { net.end() }
        let guest = try VhostUserGuest("net", socket: net.path, in: directory, queues: pairs, chardev: chardev)
        try guest.waitForProgress()
        try body(net, guest)
    }

    @Test(
        "no frame is lost, doubled or out of order over updates, and the back end gets no message", arguments: [1, 4])
    func updates(_ pairs: Int) throws {
        try withNet(pairs) { net, guest in
            let before = net.messages
            for _ in 0..<10 {
                try guest.update()
                try guest.waitForProgress()
            }
            #expect(net.messages == before && net.connectionCount == 1)
            try guest.end()
        }
    }

    @Test("a reset begins with one pair again, a stop ends with none", arguments: [1, 4])
    func reset(_ pairs: Int) throws {
        try withNet(pairs) { net, guest in
            func switches(_ messages: ArraySlice<UInt32>) -> Int {
                messages.count { $0 == FakeBackEnd.Request.setVringEnable }
            }
            var before = net.messages.count
            try guest.reset()
            // Off all, on the first pair, and what the driver asks for on the control queue.
            #expect(switches(net.messages[before...]) == 4 * pairs)
            before = net.messages.count
            try guest.qmp.execute("stop")
            try guest.update()
            #expect(switches(net.messages[before...]) == 2 * pairs)
            try guest.qmp.execute("cont")
            try guest.waitForProgress()
            #expect(switches(net.messages[before...]) == 4 * pairs)
            #expect(net.connectionCount == 1)
            try guest.end()
        }
    }

    @Test("the link is the connection", arguments: [1, 4])
    func link(_ pairs: Int) throws {
        try withNet(pairs, chardev: ",reconnect-ms=50") { net, guest in
            // The address 52:54:00:12:34:56, and the status behind it.
            let (down, up) = ("config: \(0x5634_1200_5452)\n", "config: \(0x1_5634_1200_5452)\n")
            for round in 1...3 {
                net.drop()
                try guest.waitForProgress()
                try guest.update()
                try guest.waitForProgress()
                #expect(net.connectionCount == 1 + round)
            }
            #expect(guest.serial.contains(up) && !guest.serial.contains("needs reset"), "\(guest.serial.suffix(200))")
            net.end()
            try eventually("the driver is told that the link is down") { guest.serial.contains(down) }
            try guest.update()
            try guest.end()
        }
    }

    @Test("a checkpoint that another process loads has the link go down and up")
    func checkpoint() throws {
        let directory = try TemporaryDirectory(), memory = directory.file("ram")
        func arguments(_ socket: String) throws -> [String] {
            try VhostUserGuest.arguments(
                "net", socket: socket, in: directory, memory: "memory-backend-file,mem-path=\(memory)",
                extra: ["-cpr-enable", "reboot"])
        }
        let net = try FakeNet(directory, pairs: 1)
        let guest = try VhostUserGuest("net", in: directory, arguments: try arguments(net.path))
        try guest.waitForProgress()
        try guest.qmp.execute("cpr-save", ["filename": directory.file("state"), "mode": "reboot"])
        let said = guest.serial
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
        net.end()
        #expect(!said.contains("config:"))

        let place = try TemporaryDirectory()
        let other = try FakeNet(place, pairs: 1)
        defer { other.end() }
        let next = try VhostUserGuest("net", in: directory, arguments: try arguments(other.path) + ["-S"])
        try next.qmp.execute("cpr-load", ["filename": directory.file("state"), "mode": "reboot"])
        for (state, status) in [("down", 0x5634_1200_5452), ("up", 0x1_5634_1200_5452)] {
            try eventually("the link is \(state); the guest said \(next.serial.suffix(200)); \(next.process.report)") {
                next.serial.contains("config: \(status)\n")
            }
        }
        try next.waitForProgress()
        try next.end()
    }

    @Test("a back end with fewer pairs is refused")
    func tooFew() throws {
        let directory = try TemporaryDirectory()
        let net = try FakeNet(directory, pairs: 2)
        defer { net.end() }
        let vmm = try ChildProcess(
            try VhostUserGuest.arguments("net", socket: net.path, in: directory, queues: 4, extra: []))
        #expect(try vmm.waitForExit() == .status(1))
        #expect(vmm.errors.contains("The maximum number of queues supported by the backend is 2"), "\(vmm.errors)")
    }
}
