import Foundation
import TestSupport
import Testing

/// A port of virtio-serial that a program of the guest's has open, as a guest agent has, over updates of a real VMM.
@Suite(
    "Ports of virtio-serial over an update",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct VirtioPortTests {
    private final class Guest {
        let directory: TemporaryDirectory
        let arguments: [String]
        let process: ChildProcess
        let qmp: QMPClient

        init() throws {
            directory = try TemporaryDirectory()
            let image = try GuestBuilder.flat("ports/echo.c")
            arguments = [
                Products.baton, "-machine", "virt,memory-backend=ram", "-m", "16M",
                "-object", "memory-backend-memfd,id=ram,size=16M,share=on", "-bios", "none", "-kernel", image,
                "-nodefaults", "-nographic", "-serial", "file:\(directory.file("serial"))",
                "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
                "-cpr-enable", "restart",
                "-chardev", "socket,path=\(directory.file("agent")),server=on,wait=off,id=c0",
                "-device", "virtio-serial-device",
                "-device", "virtserialport,chardev=c0,name=org.qemu.guest_agent.0,id=agent",
            ]
            process = try ChildProcess(arguments)
            qmp = try QMPClient(path: directory.file("qmp"), of: process)
            try wait(for: "port org.qemu.guest_agent.0\n")
            try eventually("the guest has its port open; \(process.report)") { try self.isOpen() }
        }

        deinit { qmp.endVMM(startedAs: process) }

        var serial: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

        /// Waits until the guest has said a line so often.
        func wait(for line: String, times: Int = 1) throws {
            try eventually("'\(line)' \(times) times; it said \(serial.suffix(200)); \(process.report)") {
                serial.components(separatedBy: line).count > times
            }
        }

        /// Whether `query-chardev` says that the guest has the port open.
        func isOpen() throws -> Bool {
            let list = try #require(try qmp.execute("query-chardev") as? [[String: Any]])
            let chardev = try #require(list.first { $0["label"] as? String == "c0" })
            return try #require(chardev["frontend-open"] as? Bool)
        }

        func update(_ argv: [String]? = nil) throws { try qmp.execute("cpr-update", ["argv": argv ?? arguments]) }
    }

    @Test("a client stays connected, and no byte is lost, doubled or out of order")
    func traffic() throws {
        let guest = try Guest()
        let client = try StreamClient(socket: guest.directory.file("agent"))
        try guest.wait(for: "client 1\n")
        var value: UInt64 = 1
        let sent: [UInt8] = (0..<400_000).map { _ in
            value = value &* 6_364_136_223_846_793_005 &+ 1
            return UInt8(truncatingIfNeeded: value >> 56)
        }
        var done = 0
        func exchange(until count: Int) throws {
            try eventually("\(count) bytes of echo, there are \(client.received.count) of \(done)") {
                done += client.send(sent[done...])
                client.poll()
                return client.received.count >= count
            }
        }
        for round in 1...8 {
            try exchange(until: round * sent.count / 9)
            // Both directions are full of bytes that nobody has read.
            done += client.send(sent[done...])
            if round % 3 == 0 {
                #expect(throws: QMPClient.Refusal.self) { try guest.update(["/bin/false"]) }
            } else {
                try guest.update()
            }
        }
        try exchange(until: sent.count)
        #expect(client.received == sent && !client.isClosed)
        // The guest was told of one client, once.
        #expect(guest.serial.components(separatedBy: "client").count == 2 && !guest.serial.contains("FAIL"))
        #expect(try guest.isOpen())
    }

    @Test("the guest is told of clients that come and go, after an update as before")
    func clients() throws {
        let guest = try Guest()
        for round in 1...3 {
            do {
                let client = try StreamClient(socket: guest.directory.file("agent"))
                try guest.wait(for: "client 1\n", times: round)
                try client.send("ping \(round)\n")
                try client.expect("ping \(round)\n")
            }
            try guest.wait(for: "client 0\n", times: round)
            try guest.update()
        }
    }

    @Test("VSERPORT_CHANGE comes when the guest opens the port anew")
    func events() throws {
        let guest = try Guest()
        try guest.update()
        try guest.qmp.execute("system_reset")
        let data = try guest.qmp.waitForEvent("VSERPORT_CHANGE")
        #expect(data["id"] as? String == "agent")
        try guest.wait(for: "port org.qemu.guest_agent.0\n", times: 2)
        try eventually("the guest has its port open; \(guest.process.report)") { try guest.isOpen() }
    }
}
