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

        let fd = socket(AF_INET, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(fd) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        inet_pton(AF_INET, "127.0.0.1", &address.sin_addr)
        let isConnected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
        try #require(isConnected)
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
        try eventually("an answer; \(passt.report); \(guest.process.report); it said \(guest.serial.suffix(200))") {
            try transmit(first)
            return receive(within: 100) == first
        }
        func exchange(_ numbers: Range<UInt32>, during body: () throws -> Void) throws {
            for number in numbers { try transmit(number) }
            try body()
            for number in numbers {
                var answer: UInt32?
                repeat { answer = receive(within: 120_000) } while answer == first
                try #require(answer == number, "\(passt.report); \(guest.process.report)")
            }
        }
        for round in UInt32(0)..<20 {
            try exchange(round * 32..<round * 32 + 32) { try guest.update() }
        }
        // With --one-off it ends with its one connection.
        #expect(passt.isRunning)
        try guest.qmp.execute("quit")
        try passt.waitForExit()
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
