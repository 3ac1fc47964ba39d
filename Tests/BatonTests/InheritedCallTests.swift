import Foundation
import TestSupport
import Testing

/// What a new VMM does with descriptors that it has inherited, before the guest is its own: nothing that the old one, which
/// goes on with them if the update fails, could notice. Its system calls are read from a trace.
@Suite(
    "Calls on inherited descriptors",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: SystemCallTrace.isAvailable, "needs strace, and the right to trace processes"))
struct InheritedCallTests {
    /// They look at what a descriptor is, map memory, or concern the number and not what is behind it. `fcntl` and `ioctl`
    /// are looked at by their commands.
    private static let harmless: Set<String> = [
        "fstat", "newfstatat", "statx", "lseek", "getsockname", "getpeername", "getsockopt", "mmap", "close", "dup",
        "pread64",
        "fgetxattr", "readlink", "fstatfs", "kcmp",
    ]
    private static let commands: Set<String> = [
        "F_GETFL", "F_GETFD", "F_SETFD", "F_GET_SEALS", "F_DUPFD_CLOEXEC", "F_OFD_GETLK", "TCGETS", "TIOCGPTN",
        "TUNGETIFF", "TUNGETVNETHDRSZ", "BLKGETSIZE64", "BLKSSZGET", "FIONREAD",
    ]

    /// The names of modes in a line of the trace.
    private func modes(_ line: Substring) -> Set<String> {
        Set(line.matches(of: #/O_[A-Z]+/#).map { String($0.0) }).subtracting(["O_LARGEFILE"])
    }

    @Test("Before the commit a new VMM only looks at what it has inherited")
    func looksOnly() throws {
        let directory = try TemporaryDirectory()
        let disk = try directory.writeSparse("disk", size: 1 << 20)
        let guest = try CountingGuest(extra: [
            // A tracer cannot be executed in a sandbox.
            "-cpr-enable", "restart", "-trace", "cpr_commit", "-sandbox", "off",
            "-chardev", "socket,id=a,path=\(directory.file("a")),server=on,wait=off", "-device",
            "virtio-serial-pci,id=s",
            "-device", "virtconsole,bus=s.0,chardev=a", "-chardev", "pty,id=p", "-device", "virtio-serial-pci,id=t",
            "-device", "virtconsole,bus=t.0,chardev=p", "-chardev", "file,id=f,path=\(directory.file("f"))",
            "-drive", "file=\(disk),format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d", "-netdev",
            "dgram,id=n,local.type=unix,local.path=\(directory.file("n")),remote.type=unix,remote.path=\(directory.file("r"))",
            "-device", "virtio-net-pci,netdev=n", "-pidfile", directory.file("pid"),
        ])
        let client = try StreamClient(socket: directory.file("a"))
        try eventually("the client is connected") {
            let chardevs = try guest.qmp.execute("query-chardev") as? [[String: Any]] ?? []
            return chardevs.contains { ($0["filename"] as? String)?.hasPrefix("unix:\(directory.file("a"))") == true }
        }
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        let entries = (query["fds"] as? [[String: Any]] ?? []) + (query["ram"] as? [[String: Any]] ?? [])
        var inherited: [Int: String] = [:]
        for entry in entries {
            if let fd = entry["fd"] as? Int, let name = entry["name"] as? String { inherited[fd] = name }
        }
        #expect(inherited.count >= 9, "\(inherited)")
        let trace = directory.file("trace")
        // With -D the tracer is no parent, and the new VMM has the PID.
        try guest.qmp.execute(
            "cpr-update",
            [
                "argv": ["strace", "-D", "-f", "-q", "-o", trace, "-e", "trace=desc,network,%desc,%network"]
                    + guest.arguments, "preflight": false, "timeout-ms": 60_000, "downtime-ms": 60_000,
            ])
        try guest.qmp.execute("quit")
        _ = try guest.process.waitForExit()
        var isCommitted = false
        var seen: [String: Int] = [:]
        var known: [Int: Set<String>] = [:]
        try eventually("the trace has the commit") {
            try String(contentsOfFile: trace, encoding: .utf8).contains("cpr_commit")
        }
        for line in try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n") {
            // PID, call, arguments.
            let words = line.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: true)
            guard words.count == 2, let open = words[1].firstIndex(of: "(") else { continue }
            let call = words[1][..<open].trimmingCharacters(in: .whitespaces)
            let arguments = words[1][words[1].index(after: open)...].split(separator: ",").map {
                $0.trimmingCharacters(in: CharacterSet(charactersIn: " )"))
            }
            if call == "write", line.contains("cpr_commit") {
                isCommitted = true
                break
            }
            let number = call == "epoll_ctl" ? arguments.dropFirst(2).first : arguments.first
            guard let fd = number.flatMap({ Int($0.prefix { $0.isNumber }) }), let name = inherited[fd] else {
                continue
            }
            seen[call, default: 0] += 1
            // Closed, and the number is another's from then on.
            if call == "close" { inherited[fd] = nil }
            if ["fcntl", "ioctl"].contains(call) {
                let command = String(
                    (arguments.dropFirst().first ?? "").prefix { $0.isLetter || $0.isNumber || $0 == "_" })
                if command == "F_GETFL" { known[fd] = modes(line) }
                // The modes that it has already change nothing for the old VMM.
                let isSame = command == "F_SETFL" && known[fd] == modes(line)
                #expect(isSame || Self.commands.contains(command), "'\(name)': \(line)")
            } else {
                #expect(Self.harmless.contains(call), "'\(name)': \(line)")
            }
        }
        #expect(isCommitted)
        #expect(seen["fstat", default: 0] + seen["newfstatat", default: 0] > 0, "\(seen)")
        client.poll()
    }
}
