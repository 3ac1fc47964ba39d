import Foundation
import TestSupport
import Testing

/// `-netdev tap` on a real interface, in a network namespace of each test's own.
@Suite(
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: NetworkNamespace.isAvailable, "needs root, ip netns and /dev/net/tun"))
struct TapTests {
    private func start(
        _ namespace: NetworkNamespace, _ options: String = "", card: String = "", extra: [String] = []
    ) throws -> NetGuest {
        try NetGuest(
            netdev: "tap,id=n,ifname=tap0,script=no,downscript=no\(options)", card: card, in: TemporaryDirectory(),
            prefix: namespace.prefix, extra: ["-cpr-enable", "restart"] + extra)
    }

    /// A guest that answers a flood of pings, the first of which it has answered.
    /// - Parameter interface: as `NetworkNamespace`'s options.
    private func flooded(
        _ options: String = "", card: String = "", interface: [String] = []
    ) throws -> (guest: NetGuest, flood: EchoFlood) {
        let namespace = try NetworkNamespace(interface)
        let guest = try start(namespace, options, card: card)
        let flood = try EchoFlood(in: namespace)
        try flood.waitForProgress()
        return (guest, flood)
    }

    @Test("twenty updates under a flood of pings, and not one is lost", arguments: ["", ",vnet_hdr=off"])
    func updates(_ options: String) throws {
        let (guest, flood) = try flooded(options)
        for _ in 0..<20 {
            try guest.update()
            try flood.waitForProgress()
        }
        #expect(flood.stop() == .allAnswered)
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("several queues", arguments: [1, 2, 4])
    func queues(_ count: Int) throws {
        let (guest, flood) = try flooded(",queues=\(count)", interface: count > 1 ? ["multi_queue"] : [])
        for _ in 0..<3 {
            try guest.update()
            try flood.waitForProgress()
        }
        #expect(flood.stop() == .allAnswered)
    }

    @Test("each queue of the interface is one of the card's pairs, over updates")
    func pairs() throws {
        let namespace = try NetworkNamespace(["multi_queue"])
        let guest = try start(namespace, ",queues=3", card: ",mq=on")
        let floods = try (2..<10).map { try EchoFlood(in: namespace, address: "10.77.0.\($0)", window: 100) }
        for _ in 0..<5 {
            for flood in floods { try flood.waitForProgress(100) }
            try guest.update()
        }
        for flood in floods { try flood.waitForProgress(100) }
        // One that fails too.
        #expect(throws: QMPClient.Refusal.self) {
            try guest.update(guest.arguments + ["-device", "virtio-rng-device"], preflight: false)
        }
        for flood in floods { try flood.waitForProgress(100) }
        for flood in floods { #expect(flood.stop() == .allAnswered) }
        // The guest prints what came by each pair. Eight addresses are eight flows.
        let answers = guest.serial.split(separator: "\n").last { $0.hasPrefix("net: ") }
        let pairs = (answers ?? "").split(separator: " ").dropFirst(2).compactMap { Int($0) }
        #expect(pairs.count == 3)
        #expect(pairs.filter { $0 > 100 }.count >= 2, "\(pairs)")
    }

    @Test("a guest with several pairs goes on only with as many queues")
    func fewerPairs() throws {
        let (guest, flood) = try flooded(",queues=3", card: ",mq=on", interface: ["multi_queue"])
        for preflight in [true, false] {
            let fewer = guest.arguments.map { $0.replacingOccurrences(of: ",queues=3", with: ",queues=2") }
            #expect(
                refusal { try guest.update(fewer, preflight: preflight) }
                    .contains("has 3 queues in the CPR state, but 2 on the command line"))
            try flood.waitForProgress()
            let single = guest.arguments.map { $0.replacingOccurrences(of: ",mq=on", with: "") }
            #expect(refusal { try guest.update(single, preflight: preflight) }.contains("Features"))
            try flood.waitForProgress()
        }
        #expect(flood.stop() == .allAnswered)
    }

    @Test("updates that fail lose nothing either")
    func failures() throws {
        let (guest, flood) = try flooded()
        let other = guest.arguments.map { $0.replacingOccurrences(of: "ifname=tap0", with: "ifname=tap1") }
        for preflight in [true, false] {
            #expect(throws: QMPClient.Refusal.self) { try guest.update(["/bin/false"], preflight: preflight) }
            try flood.waitForProgress()
            #expect(
                refusal { try guest.update(other, preflight: preflight) }
                    .contains("netdev 'n' is interface 'tap0' in the CPR state, but 'tap1' on the command line"))
            try flood.waitForProgress()
            // One that refuses late, with the interface in its hands.
            #expect(throws: QMPClient.Refusal.self) {
                try guest.update(guest.arguments + ["-device", "virtio-rng-device"], preflight: preflight)
            }
            try flood.waitForProgress()
        }
        try guest.update()
        try flood.waitForProgress()
        #expect(flood.stop() == .allAnswered)
    }

    @Test("what comes while the guest is stopped waits, over an update too")
    func stopped() throws {
        let (guest, flood) = try flooded()
        try guest.qmp.execute("stop")
        try guest.update()
        #expect(try guest.qmp.status() == "paused")
        try guest.qmp.execute("cont")
        try flood.waitForProgress()
        #expect(flood.stop() == .allAnswered)
    }

    @Test("scripts get the interface's name, at the beginning and the end only")
    func scripts() throws {
        let namespace = try NetworkNamespace()
        let directory = try TemporaryDirectory()
        for name in ["up", "down"] {
            try directory.write(name, "#!/bin/sh\necho \(name) $1 >>\(directory.file("log"))\n")
            chmod(directory.file(name), 0o755)
        }
        func log() -> String { (try? String(contentsOfFile: directory.file("log"), encoding: .utf8)) ?? "" }
        let guest = try NetGuest(
            netdev: "tap,id=n,ifname=tap0,script=\(directory.file("up")),downscript=\(directory.file("down"))",
            in: directory, prefix: namespace.prefix)
        #expect(log() == "up tap0\n")
        try guest.update()
        #expect(throws: QMPClient.Refusal.self) {
            try guest.update(guest.arguments + ["-device", "virtio-rng-device"], preflight: false)
        }
        try guest.update()
        #expect(log() == "up tap0\n")
        try guest.qmp.execute("quit")
        try eventually("the script at the end") { log() == "up tap0\ndown tap0\n" }
    }

    @Test("an interface that another program has opened")
    func descriptor() throws {
        let namespace = try NetworkNamespace()
        // TUNSETIFF with IFF_TAP | IFF_NO_PI.
        let fd = try namespace.make {
            let fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC)
            var request = Array("tap0".utf8) + [UInt8](repeating: 0, count: 36)
            (request[16], request[17]) = (0x02, 0x10)
            return ioctl(fd, 0x4004_54ca, &request) == 0 ? fd : -1
        }
        let guest = try NetGuest(
            netdev: "tap,id=n,fd=40", in: TemporaryDirectory(), prefix: namespace.prefix, descriptors: [40: fd])
        close(fd)
        let flood = try EchoFlood(in: namespace)
        for _ in 0..<3 {
            try flood.waitForProgress()
            try guest.update()
        }
        try flood.waitForProgress()
        #expect(flood.stop() == .allAnswered)
    }

    @Test("an interface that goes away ends neither the guest nor its updates")
    func deletion() throws {
        let (guest, flood) = try flooded()
        _ = flood.stop()
        try flood.namespace.ip(["link", "delete", "tap0"])
        try guest.process.waitForErrors("netdev n: interface tap0: read failed")
        try guest.update()
        #expect(try guest.qmp.status() == "running")
    }

    @Test(
        "wrong options are refused in QEMU's words",
        arguments: [
            ("tap,id=n,fd=9,ifname=x", "are invalid with fd="),
            ("tap,id=n,fds=9:10,queues=2", "are invalid with fds="),
            ("tap,id=n,fd=999", "fd 999 is not of a tap interface: Bad file descriptor"),
            ("tap,id=n,fd=0", "fd 0 is not of a tap interface"),
            ("tap,id=n,fds=9:9", "expects file descriptors with ':' between"),
            ("tap,id=n,queues=0", "expects a number from 1 to 64, not 0"),
            ("tap,id=n,ifname=0123456789abcdef", "is not an interface's name"),
            ("tap,id=n,vhost=on", "vhost=on is not supported"),
            ("tap,id=n,bogus=1", "Parameter 'bogus' is unexpected"),
            ("tap", "Parameter 'id' is missing"),
            ("tap,id=n,ifname=lo", "could not configure /dev/net/tun (lo): Invalid argument"),
            ("tap,id=n,script=/nonexistent", "could not launch network script '/nonexistent'"),
            ("tap,id=n,script=/bin/false", "network script /bin/false failed with status 256"),
        ])
    func wrongOptions(_ option: String, _ message: String) throws {
        let namespace = try NetworkNamespace()
        let process = try ChildProcess(
            namespace.prefix + [Products.baton, "-nodefaults", "-nographic", "-netdev", option])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains(message), "\(process.errors)")
    }

    @Test("the list of back ends names it, and the core does not")
    func help() throws {
        let text = try ChildProcess.run([Products.baton, "-netdev", "help"])
        #expect(text == "Available netdev backend types:\ndgram\npasst\nsocket\nstream\ntap\nuser\nvhost-user\n")
    }
}
