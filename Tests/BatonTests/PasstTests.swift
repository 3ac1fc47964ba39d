import Foundation
import TestSupport
import Testing

/// A network for users without privileges: Debian's `passt`, which is at the
/// other end of a `-netdev stream`, or serves the card's queues itself (a later
/// one, as a vhost-user back end).
@Suite(
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: HostNetwork.hasRoute, "passt needs a host with a default route"))
struct PasstTests {
    private static let installed = Products.find("passt").map { [$0] + (geteuid() == 0 ? ["--runas", "0"] : []) }
    /// One that knows vhost-user; with nobody's rights, as it wants to map users where root may not.
    private static let later: [String]? = {
        guard let command = Products.laterDebian("passt") else { return nil }
        let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        let words = (geteuid() == 0 ? nobody : []) + command
        return (try? ChildProcess.run(words + ["--version"])) == nil ? nil : words + ["--vhost-user"]
    }()

    @Test(
        "datagrams through passt and twenty updates, on one connection",
        .enabled(if: installed != nil, "needs passt"))
    func stream() throws {
        let directory = try TemporaryDirectory()
        try updates(
            Self.installed ?? [], netdev: "stream,id=n,server=off,addr.type=unix,addr.path=\(directory.file("net"))",
            in: directory)
    }

    @Test(
        "datagrams through passt that serves the card's queues, and twenty updates",
        .enabled(if: later != nil, "needs a passt that knows vhost-user"))
    func vhostUser() throws {
        let directory = try TemporaryDirectory()
        chmod(directory.path, 0o777)
        try updates(
            Self.later ?? [], netdev: "vhost-user,id=n,chardev=c",
            extra: ["-chardev", "socket,id=c,path=\(directory.file("net"))"], in: directory)
    }

    /// - Returns: passt, which listens, and the port of this machine that leads to the guest.
    private func start(_ program: [String], in directory: TemporaryDirectory) throws -> (ChildProcess, UInt16) {
        var reports: [String] = []
        // Between the choice of a port and passt's use of it, it may become somebody else's.
        for _ in 0..<5 {
            let port = try FreePort.udp(1)[0]
            let passt = try ChildProcess(
                program + ["--foreground", "--one-off"] + [
                    "--socket", directory.file("net"), "--address", NetGuest.address, "--netmask", "24",
                    "--gateway", "10.77.0.1", "--udp-ports", "127.0.0.1/\(port):7",
                ])
            var listens = false
            try eventually("passt listens; \(passt.report)") {
                listens = try ListeningSocket.exists(at: directory.file("net"))
                return listens || !passt.isRunning
            }
            if listens { return (passt, port) }
            reports.append(passt.report)
            unlink(directory.file("net"))
            guard passt.errors.contains("in use") else { break }
        }
        throw TestError("passt does not listen: \(reports)")
    }

    private func updates(
        _ program: [String], netdev: String, extra: [String] = [], in directory: TemporaryDirectory
    ) throws {
        let (passt, port) = try start(program, in: directory)
        let guest = try NetGuest(netdev: netdev, in: directory, extra: ["-cpr-enable", "restart"] + extra)
        try exchange(guest, port: port, updates: 20) { passt.report }
        // With --one-off it ends with its one connection.
        #expect(passt.isRunning)
        try guest.qmp.execute("quit")
        try passt.waitForExit()
    }

    // MARK: One that the VMM starts

    /// The addresses that the guest has.
    private static let network = "net=10.77.0.0/24,host=10.77.0.1,dhcpstart=\(NetGuest.address)"

    /// The processes that serve the guest's network, by their directory.
    private func started(_ guest: NetGuest) throws -> [pid_t] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { pid_t($0) }.filter { pid in
            guard let bytes = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline") else { return false }
            let words = bytes.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
            return words.first == "passt" && words.contains { $0.contains("/\(guest.port):7") }
        }
    }

    private func withUserNetwork(_ netdev: (UInt16) -> String, _ body: (NetGuest) throws -> Void) throws {
        let directory = try TemporaryDirectory()
        // Between the choice of a port and passt's use of it, it may become somebody else's.
        for attempt in 0... {
            let port = try FreePort.udp(1)[0]
            do {
                let guest = try NetGuest(netdev: netdev(port), in: directory)
                guest.port = port
                return try body(guest)
            } catch  where attempt < 5 && "\(error)".contains("in use") {}
        }
    }

    @Test(
        "-netdev user and passt start passt, keep it over twenty updates, and end it",
        .enabled(if: installed != nil, "needs passt"),
        arguments: [
            "user,id=n,\(network),hostfwd=udp:127.0.0.1:PORT-:7",
            "passt,id=n,address=\(NetGuest.address),netmask=24,gateway=10.77.0.1,udp-ports=127.0.0.1/PORT:7",
        ])
    func user(_ netdev: String) throws {
        try withUserNetwork {
            netdev.replacingOccurrences(of: "PORT", with: "\($0)")
        } _: { guest in
            let passt = try started(guest)
            #expect(passt.count == 1)
            try exchange(guest, port: guest.port, updates: 20) { "\(passt)" }
            #expect(try started(guest) == passt)
            try guest.qmp.execute("quit")
            try guest.process.waitForExit()
            #expect(try started(guest) == [])
        }
    }

    @Test("A TCP connection by hostfwd stays over twenty updates", .enabled(if: installed != nil, "needs passt"))
    func connection() throws {
        let forward = { (port: UInt16) in
            "user,id=n,\(Self.network),hostfwd=udp:127.0.0.1:\(port)-:7,hostfwd=tcp:127.0.0.1:\(port)-:22"
        }
        try withUserNetwork(forward) { guest in
            // Once passt has seen the guest's first frame.
            try exchange(guest, port: guest.port, updates: 0) { guest.process.report }
            let fd = try Loopback.connect(SOCK_STREAM, to: guest.port)
            defer { close(fd) }
            for round in 0..<20 {
                let text = "line \(round) of the session\n"
                try #require(send(fd, text, text.utf8.count, 0) == text.utf8.count)
                var answer = ""
                while answer.utf8.count < text.utf8.count {
                    var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
                    try #require(poll(&state, 1, 60_000) == 1, "\(guest.process.report)")
                    var bytes = [UInt8](repeating: 0, count: 256)
                    let count = read(fd, &bytes, bytes.count)
                    try #require(count > 0, "the connection has ended in round \(round)")
                    answer += String(decoding: bytes[..<count], as: UTF8.self)
                }
                #expect(answer == text)
                try guest.update()
            }
            try guest.qmp.execute("quit")
            try guest.process.waitForExit()
        }
    }

    @Test(
        "passt comes back when it is killed, and ends with a VMM that is killed",
        .enabled(if: installed != nil, "needs passt"))
    func killed() throws {
        try withUserNetwork {
            "user,id=n,\(Self.network),hostfwd=udp:127.0.0.1:\($0)-:7"
        } _: { guest in
            for _ in 0..<3 {
                let before = try #require(try started(guest).first)
                kill(before, SIGKILL)
                try eventually("another passt; \(guest.process.report)") {
                    try started(guest).contains { $0 != before }
                }
                try exchange(guest, port: guest.port, updates: 1) { guest.process.report }
            }
            guest.process.signal(SIGKILL)
            try eventually("passt ends") { try started(guest).isEmpty }
        }
    }

    @Test("What passt cannot do is refused by name, with what can be done instead")
    func refusals() throws {
        let cases = [
            ("user,id=n,guestfwd=tcp:10.0.2.100:1-cmd:cat", "'guestfwd' is not supported", "10.0.2.2"),
            ("user,id=n,tftp=/srv", "'tftp' is not supported", "-kernel"),
            ("user,id=n,smb=/srv", "'smb' is not supported", "vhost-user-fs-pci"),
            ("user,id=n,restrict=on,hostfwd=tcp::1-:2", "restrict=on and hostfwd= do not go together", "-netdev tap"),
            ("user,id=n,net=10.0.2.0/24,host=10.0.3.2", "host=10.0.3.2 is not in the network 10.0.2.0/24", ""),
            ("user,id=n,dhcpstart=x", "'dhcpstart' expects an IPv4 address, not 'x'", ""),
            ("user,id=n,ipv4=off,ipv6=off", "leave no network", ""),
            ("user,id=n,hostfwd=x", "Invalid host forwarding rule 'x' (No protocol)", ""),
            ("user,id=n,hostfwd=sctp::1-:2", "(Bad protocol name)", ""),
            ("user,id=n,hostfwd=tcp::1", "(Bad host port separator)", ""),
            ("user,id=n,hostfwd=tcp:1-:2", "(Bad host port)", ""),
            ("user,id=n,hostfwd=tcp::1-:x", "(Bad guest port)", ""),
            ("user,id=n,hostfwd=tcp::1-10.0.2.16:2", "(Bad guest address: passt has one guest, 10.0.2.15)", ""),
            ("user,id=n,no-such=1", "'no-such' is unexpected", ""),
            ("passt,id=n,vhost-user=on", "vhost-user=on is not supported", "-netdev vhost-user"),
        ]
        for (netdev, text, hint) in cases {
            let vmm = try ChildProcess([Products.baton, "-nodefaults", "-S", "-bios", "none", "-netdev", netdev])
            #expect(try vmm.waitForExit() == .status(1), "\(netdev)")
            #expect(
                vmm.errors.contains(text) && (hint.isEmpty || vmm.errors.contains(hint)), "\(netdev): \(vmm.errors)")
        }
    }

    @Test("Without passt the error says what to install")
    func missing() throws {
        let vmm = try ChildProcess(
            [Products.baton, "-nodefaults", "-S", "-bios", "none", "-netdev", "user,id=n"],
            environment: ["PATH": "/nowhere"])
        #expect(try vmm.waitForExit() == .status(1))
        #expect(vmm.errors.contains("netdev 'n': cannot execute 'passt': No such file or directory"), "\(vmm.errors)")
        #expect(vmm.errors.contains("Debian's package passt"))
    }

    @Test(
        "a passt that hangs holds up its network, and neither monitors, nor updates, nor the end",
        .enabled(if: installed != nil, "needs passt"))
    func hung() throws {
        try withUserNetwork {
            "user,id=n,\(Self.network),hostfwd=udp:127.0.0.1:\($0)-:7"
        } _: { guest in
            let passt = try #require(try started(guest).first)
            kill(passt, SIGSTOP)
            for _ in 0..<3 { try guest.update() }
            #expect(try guest.qmp.status() == "running")
            kill(passt, SIGCONT)
            try exchange(guest, port: guest.port, updates: 1) { guest.process.report }
            #expect(try started(guest) == [passt])
            kill(passt, SIGSTOP)
            try guest.qmp.execute("quit")
            try guest.process.waitForExit()
            try eventually("passt ends") { try started(guest).isEmpty }
        }
    }

    /// Programs that are not what they should be, first in PATH.
    @Test(
        "a passt that is old, broken or hung is an error at the start, with what it says",
        arguments: [
            ("echo \"passt: unrecognized option '--socket'\" >&2; exit 1", "unrecognized option '--socket'"),
            ("exit 1", "'passt' ended with status 1"), ("kill -SEGV $$", "'passt' was ended by signal 11"),
            ("exec sleep 1000", "'passt' is not ready after 10 s"),
        ])
    func brokenPrograms(_ script: String, _ says: String) throws {
        let directory = try TemporaryDirectory()
        let vmm = try ChildProcess(
            [Products.baton, "-nodefaults", "-S", "-bios", "none", "-netdev", "user,id=n"],
            environment: try directory.standIn(for: "passt", script))
        #expect(try vmm.waitForExit() == .status(1), "\(vmm.report)")
        #expect(vmm.errors.contains("netdev 'n': ") && vmm.errors.contains(says), "\(vmm.errors)")
    }

    // MARK: Datagrams

    /// Sends datagrams to the guest by a port of this machine, and gets each back once, in order.
    private func exchange(
        _ guest: NetGuest, port: UInt16, updates: UInt32, report: () -> String
    ) throws {
        let fd = try Loopback.connect(SOCK_DGRAM, to: port)
        defer { close(fd) }
        func transmit(_ number: UInt32) throws {
            let bytes = EchoFrame.bigEndian(number)
            try #require(send(fd, bytes, bytes.count, 0) == bytes.count)
        }
        func receive(within milliseconds: Int32) -> UInt32? {
            var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
            guard poll(&state, 1, milliseconds) == 1 else { return nil }
            var bytes = [UInt8](repeating: 0, count: 64)
            return read(fd, &bytes, bytes.count) == 4 ? bytes[..<4].reduce(0) { $0 << 8 | UInt32($1) } : nil
        }
        // passt knows where the guest is only once it has read the guest's first frame.
        let first = UInt32.max
        try eventually("an answer; \(report()); \(guest.process.report); it said \(guest.serial.suffix(200))") {
            try transmit(first)
            return receive(within: 100) == first
        }
        func exchange(_ numbers: Range<UInt32>, during body: () throws -> Void) throws {
            for number in numbers { try transmit(number) }
            try body()
            for number in numbers {
                var answer: UInt32?
                repeat { answer = receive(within: 120_000) } while answer == first
                try #require(answer == number, "\(report()); \(guest.process.report)")
            }
        }
        for round in 0..<updates {
            try exchange(round * 32..<round * 32 + 32) { try guest.update() }
        }
    }
}

private enum HostNetwork {
    /// Whether the host has a default route.
    static let hasRoute: Bool = {
        let routes = (try? String(contentsOfFile: "/proc/net/route", encoding: .utf8)) ?? ""
        return routes.split(separator: "\n").dropFirst().contains {
            $0.split(separator: "\t").dropFirst().first == "00000000"
        }
    }()
}
