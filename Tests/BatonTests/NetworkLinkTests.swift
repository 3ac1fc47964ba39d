import Foundation
import TestSupport
import Testing

/// The link of a virtio network card over updates: where the back end is opened anew it goes down and up, and the guest
/// announces itself; where connections are kept it stays as it is.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct NetworkLinkTests {
    /// What the guest prints of its card's configuration: its address, and the status behind that.
    private static func told(_ status: Int) -> String { "config: \(0x5634_1200_5452 | status << 48)\n" }
    private static let down = told(0), up = told(1), asked = told(3), announced = "net: announced\n"

    private func netdev(_ path: String) -> String { "stream,id=n,server=on,addr.type=unix,addr.path=\(path)" }

    /// Saves the guest in mode reboot, and ends its VMM.
    private func save(_ guest: NetGuest) throws {
        try guest.qmp.execute("cpr-save", ["filename": guest.directory.file("state"), "mode": "reboot"])
        #expect(!guest.serial.contains("config:"), "\(guest.serial)")
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    private func load(_ guest: NetGuest) throws {
        try guest.qmp.execute("cpr-load", ["filename": guest.directory.file("state"), "mode": "reboot"])
    }

    /// Waits until the guest has seen all of a change, in order and once.
    private func expectChange(_ report: String, serial: () -> String) throws {
        for text in [Self.down, Self.up, Self.asked, Self.announced] {
            try eventually("the guest prints '\(text)'; it said \(serial()); \(report)") { serial().contains(text) }
        }
        let lines = serial().split(separator: "\n").filter { $0.hasPrefix("config:") || $0 == "net: announced" }
        #expect(lines.map { "\($0)\n" } == [Self.down, Self.up, Self.asked, Self.announced])
    }

    @Test("after a load in mode reboot the guest sees its link go down and up, and announces itself")
    func reboot() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("net")
        let old = try NetGuest(netdev: netdev(path), in: directory, extra: ["-cpr-enable", "reboot"])
        do {
            let wire = try NetworkUpdateTests.Wire.connect(path)
            try wire.send(NetworkUpdateTests.Wire.framed(1))
            try wire.expectReplies([1])
        }
        try save(old)
        let next = try NetGuest(waiting: old.arguments, in: directory)
        try load(next)
        let wire = try NetworkUpdateTests.Wire.connect(path)
        try expectChange(next.process.report) { next.serial }
        // An ARP request of the guest's address for itself.
        let frame = try wire.frame()
        #expect(frame.count >= 42 && Array(frame[..<12]) == [UInt8](repeating: 0xff, count: 6) + NetGuest.mac)
        #expect(frame.count >= 42 && frame[13] == 6 && frame[28..<32] == [10, 77, 0, 2])
        try wire.send(NetworkUpdateTests.Wire.framed(2))
        try wire.expectReplies([2])
        // And that was all.
        try next.qmp.execute("stop")
        try next.qmp.execute("cont")
        try wire.send(NetworkUpdateTests.Wire.framed(3))
        try wire.expectReplies([3])
        try expectChange(next.process.report) { next.serial }
    }

    @Test("a change that is still owed goes over the next update")
    func owed() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("net")
        let old = try NetGuest(
            netdev: netdev(path), in: directory, extra: ["-cpr-enable", "reboot", "-cpr-enable", "restart"])
        try old.qmp.execute("stop")
        try save(old)
        let next = try NetGuest(waiting: old.arguments, in: directory)
        try load(next)
        #expect(try next.qmp.status() == "paused")
        for _ in 0..<2 { try next.update() }
        #expect(try next.qmp.status() == "paused")
        #expect(!next.serial.contains("config:"))
        try next.qmp.execute("cont")
        try eventually("the guest sees that its link is down; \(next.serial)") { next.serial.contains(Self.down) }
        // It has not been up since.
        try next.update()
        for text in [Self.up, Self.announced] {
            try eventually("the guest prints '\(text)'; it said \(next.serial)") { next.serial.contains(text) }
        }
        let wire = try NetworkUpdateTests.Wire.connect(path)
        try wire.send(NetworkUpdateTests.Wire.framed(1))
        try wire.expectReplies([1])
    }

    @Test("after a new kernel of the host, too")
    func liveUpdate() throws {
        let host = try LiveUpdateTests.Host()
        let options = [
            "-kernel", try NetGuest.image(), "-netdev", netdev(host.directory.file("net")), "-device",
            "virtio-net-device,netdev=n",
        ]
        func serial() -> String {
            (try? String(contentsOfFile: host.directory.file("serial-qmp"), encoding: .utf8)) ?? ""
        }
        let old = try host.start(options)
        try eventually("the guest is ready; \(serial()); \(old.process.report)") { serial().contains("net: ready\n") }
        try old.save(host.checkpoint)
        #expect(!serial().contains("config:"))
        try old.kexec()
        let next = try host.start(options + ["-S"])
        try next.load(host.checkpoint)
        try expectChange(next.process.report, serial: serial)
        try next.end()
    }

    @Test("where connections are kept the link stays up", arguments: ["restart", "transfer"])
    func kept(_ mode: String) throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("net"), channel = directory.file("cpr")
        let guest = try NetGuest(netdev: netdev(path), in: directory, extra: ["-cpr-enable", mode])
        let wire = try NetworkUpdateTests.Wire.connect(path)
        var qmp = guest.qmp, process = guest.process
        for number in UInt32(0)..<3 {
            if mode == "restart" {
                try guest.update()
            } else {
                let next = try CountingGuest.startWaiting(guest.arguments, at: channel)
                try qmp.execute("cpr-update", ["mode": mode, "channel": channel])
                #expect(try process.waitForExit() == .status(0))
                process = next
                qmp = try QMPClient(path: directory.file("qmp"), of: next)
            }
            try wire.send(NetworkUpdateTests.Wire.framed(number))
            try wire.expectReplies([number])
        }
        // What a load that does not keep connections does begins when the guest goes on.
        usleep(300_000)
        #expect(!guest.serial.contains("config:"), "\(guest.serial)")
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }
}
