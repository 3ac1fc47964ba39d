import Foundation
import TestSupport
import Testing

/// What the old VMM shares with the process that was to replace it is its own
/// again when the guest goes back: event loop, sockets' files, terminals.
@Suite(
    "The way back",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct WayBackTests {
    /// Where an update fails.
    enum Failure: String, CaseIterable {
        /// A module hangs while the state is saved, just before the exec, and in
        /// the new VMM.
        case save, exec, load
        /// The new VMM ends at once, refuses its command line, or cannot load the state.
        case start, command, state
    }

    /// A preserver that hangs in the step that a file names.
    private static func rogue(_ directory: TemporaryDirectory) throws -> String {
        let source = """
            \(hangingStep(ordersIn: directory))
            static int32_t save(struct baton_host *host) { (void)host; return act("save"); }
            static int32_t exec(struct baton_host *host) { (void)host; return act("exec"); }
            static int32_t load(struct baton_host *host) { (void)host; return act("load"); }
            static const struct baton_method methods[] = {
                BATON_METHOD("save", "i(h)", save), BATON_METHOD("exec", "i(h)", exec),
                BATON_METHOD("load", "i(h)", load),
            };
            """
        return try CModule.build(kind: "preserver", name: "rogue", source, in: directory)
    }

    /// Has an update of the guest fail.
    private func fail(_ failure: Failure, _ guest: CountingGuest, _ directory: TemporaryDirectory) throws {
        try directory.write("orders", failure.rawValue)
        let argv =
            switch failure {
            case .start: ["false"]
            case .command: guest.arguments + ["-bogus"]
            case .state: guest.arguments + ["-device", "virtio-rng-device"]
            case .save, .exec, .load: guest.arguments
            }
        let before = guest.count
        let text = refusal {
            try guest.qmp.execute("cpr-update", ["argv": argv, "preflight": false, "timeout-ms": 2500])
        }
        #expect(text.contains(isStuck(failure) ? "did not come back within" : "taken back"), "\(text)")
        try directory.write("orders", "")
        try guest.waitForProgress(past: before)
    }

    /// Whether the module hangs in the VMM that has the guest: there is no other update of this VM then.
    private func isStuck(_ failure: Failure) -> Bool { failure == .save || failure == .exec }

    @Test(
        "Chardevs of each kind are heard, found and written to after an update that failed",
        arguments: Failure.allCases)
    func chardevs(_ failure: Failure) throws {
        let directory = try TemporaryDirectory()
        let port = try FreePort.udp(1)[0]
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-module", try Self.rogue(directory), "-monitor", "pty",
            "-monitor", "unix:\(directory.file("free")),server=on,wait=off",
            "-monitor", "unix:\(directory.file("taken")),server=on,wait=off",
            "-chardev", "socket,id=again,path=\(directory.file("again")),server=on,wait=off,reopen-on-cpr=on",
            "-mon", "chardev=again,mode=readline",
            "-chardev", "socket,id=port,host=127.0.0.1,port=\(port),server=on,wait=off,reopen-on-cpr=on",
        ])
        let list = try #require(try guest.qmp.execute("query-chardev") as? [[String: Any]])
        let name = try #require(list.compactMap { $0["filename"] as? String }.first { $0.hasPrefix("pty:") })
        let terminal = try StreamClient(terminal: String(name.dropFirst(4)))
        let taken = try StreamClient(socket: directory.file("taken"))
        func ask(_ client: StreamClient) throws {
            try client.send("info status\n")
            try client.expect("VM status: running")
            try client.expect("(baton) ")
        }
        try ask(terminal)
        try ask(taken)
        for _ in 1...2 {
            try fail(failure, guest, directory)
            try ask(terminal)
            try ask(taken)
            for path in ["free", "again"] { try ask(try StreamClient(socket: directory.file(path))) }
            let size = try Data(contentsOf: URL(fileURLWithPath: guest.directory.file("serial"))).count
            try eventually("the guest's next line") {
                try Data(contentsOf: URL(fileURLWithPath: guest.directory.file("serial"))).count > size
            }
        }
        // And a good one goes well.
        if isStuck(failure) {
            #expect(refusal { try guest.qmp.execute("cpr-update", ["argv": guest.arguments]) }.contains("rogue"))
        } else {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        }
        try ask(terminal)
        try ask(taken)
        try ask(try StreamClient(socket: directory.file("again")))
        try guest.qmp.execute("quit")
    }

    @Test("A server whose file a failed VMM has replaced by its own can be found again")
    func replacedFile() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("socket")
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-chardev", "socket,id=old,path=\(path),server=on,wait=off",
            "-mon", "chardev=old,mode=control",
            "-netdev", "stream,id=net,server=on,addr.type=unix,addr.path=\(directory.file("net"))",
        ])
        // Another chardev, at the same place, in a VMM that refuses after that.
        let argv = guest.arguments.map {
            $0.replacingOccurrences(of: "id=old", with: "id=new")
                .replacingOccurrences(of: "chardev=old", with: "chardev=new")
                .replacingOccurrences(of: "stream,id=net", with: "stream,id=other")
        }
        let text = refusal {
            try guest.qmp.execute("cpr-update", ["argv": argv + ["-device", "virtio-rng-device"], "preflight": false])
        }
        #expect(text.contains("taken back"), "\(text)")
        #expect(try QMPClient(path: path).status() == "running")
        let peer = try StreamClient(socket: directory.file("net"))
        peer.poll()
        #expect(!peer.isClosed)
        try guest.qmp.execute("quit")
    }

    @Test("A terminal that is no session's is in raw mode again, and is read", arguments: Failure.allCases)
    func terminal(_ failure: Failure) throws {
        let directory = try TemporaryDirectory()
        var ends: (Int32, Int32) = (-1, -1)
        try #require(openpty(&ends.0, &ends.1, nil, nil, nil) == 0)
        defer { for fd in [ends.0, ends.1] { close(fd) } }
        for fd in [ends.0, ends.1] { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
        let guest = try CountingGuest(
            extra: ["-cpr-enable", "restart", "-module", try Self.rogue(directory), "-monitor", "stdio"],
            descriptors: [0: ends.1, 1: ends.1])
        func echoes() -> Bool {
            var mode = termios()
            return tcgetattr(ends.1, &mode) == 0 && mode.c_lflag & tcflag_t(ECHO) != 0
        }
        #expect(!echoes())
        try fail(failure, guest, directory)
        #expect(!echoes())
        #expect(fcntl(ends.1, F_GETFL) & O_NONBLOCK != 0)
        _ = "quit\n".utf8CString.withUnsafeBytes { write(ends.0, $0.baseAddress, 5) }
        let memory = guest
        try eventually("the VMM ends by what is typed") {
            var buffer = [UInt8](repeating: 0, count: 4096)
            _ = fcntl(ends.0, F_SETFL, O_NONBLOCK)
            _ = read(ends.0, &buffer, buffer.count)
            let count = memory.count
            usleep(50_000)
            return memory.count == count && echoes()
        }
    }
}
