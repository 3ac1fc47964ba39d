import Foundation
import TestSupport
import Testing

enum SandboxSupport {
    static let isPossible = GuestBuilder.isAvailable && KernelFeatures.landlock > 0
}

/// `-sandbox`: what a VM has in it, over updates too, and what whoever breaks out of the guest finds there.
@Suite("The sandbox", .enabled(if: SandboxSupport.isPossible, "needs Landlock, seccomp, clang and ld.lld"))
struct SandboxTests {
    static func guest(_ more: [String] = [], paths: String? = nil) throws -> CountingGuest {
        let sandbox = "on" + (paths.map { ",paths=\($0)" } ?? "")
        return try CountingGuest(extra: ["-cpr-enable", "restart", "-sandbox", sandbox] + more)
    }

    private static func status(_ pid: Int32, _ key: String) throws -> String {
        let text = try String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8)
        let line = text.split(separator: "\n").first { $0.hasPrefix(key + ":") }
        return try #require(line).dropFirst(key.count + 1).trimmingCharacters(in: .whitespaces)
    }

    @Test(
        "Options have QEMU's names and errors",
        arguments: [
            ("bogus", "Parameter 'enable' expects 'on' or 'off'"), ("on,spawn=maybe", "invalid argument for spawn"),
            ("on,obsolete=children", "invalid argument for obsolete"),
            ("on,elevateprivileges=no", "invalid argument for elevateprivileges"),
            ("on,resourcecontrol=", "invalid argument for resourcecontrol"),
            ("on,paths=relative", "-sandbox paths=relative is not a directory"),
            ("on,other=1", "Invalid parameter 'other'"),
        ])
    func refusesOptions(_ option: String, _ error: String) throws {
        try Self.expectRefusal(["-sandbox", option], error)
    }

    @Test(
        "Users have QEMU's names and errors",
        arguments: [
            (["-runas", "nobody-there"], "User \"nobody-there\" doesn't exist (and is not <uid>:<gid>)"),
            (["-run-with", "user=1:"], "User \"1:\" doesn't exist (and is not <uid>:<gid>)"),
            (["-run-with", "async-teardown=on"], "async-teardown=on is not supported"),
        ])
    func refusesUsers(_ arguments: [String], _ error: String) throws {
        try Self.expectRefusal(arguments, error)
    }

    private static func expectRefusal(_ arguments: [String], _ error: String) throws {
        let process = try ChildProcess([Products.baton] + arguments)
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains(error), "\(process.errors)")
    }

    @Test("A VM is in it unless its command line says otherwise")
    func isDefault() throws {
        let directory = try TemporaryDirectory()
        let cases: [([String], String)] = [
            ([], "2"), (["-sandbox", "off"], "0"), (["-sandbox", "spawn=allow"], "2"), (["-sandbox", "on"], "2"),
        ]
        for (number, (words, mode)) in cases.enumerated() {
            let socket = directory.file("qmp\(number)")
            let process = try ChildProcess(
                [
                    Products.baton, "-nodefaults", "-S", "-m", "4M", "-bios", "none", "-qmp",
                    "unix:\(socket),server=on,wait=off",
                ]
                    + words)
            let qmp = try QMPClient(path: socket, of: process)
            #expect(try Self.status(process.pid, "Seccomp") == mode)
            #expect(try Self.status(process.pid, "NoNewPrivs") == (mode == "2" ? "1" : "0"))
            try qmp.execute("quit")
            #expect(try process.waitForExit() == .status(0))
            #expect(process.errors.isEmpty, "\(process.errors)")
        }
    }

    /// Another program's listener is there, and a process can have one: the simulated kernel of the tests has it.
    @Test("Where the kernel refuses a part of it, the VM has the others, and says so; with 'on' it does not start")
    func lacksPart() throws {
        let directory = try TemporaryDirectory()
        let sessions = directory.file("sessions")
        try FileManager.default.createDirectory(atPath: sessions, withIntermediateDirectories: false)
        let prefix = ["\(Products.directory)/liveupdate-kernel", "--state", sessions, "--"]
        let socket = directory.file("qmp")
        let vm = [
            Products.baton, "-nodefaults", "-S", "-m", "4M", "-bios", "none", "-cpr-enable", "reboot",
            "-qmp", "unix:\(socket),server=on,wait=off",
        ]
        let process = try ChildProcess(prefix + vm)
        let qmp = try QMPClient(path: socket, of: process)
        #expect(
            process.errors.contains("warning: the VM's sandbox is not whole: failed to install seccomp syscall filter"),
            "\(process.errors)")
        let text = refusal { try qmp.execute("cpr-save", ["filename": directory.file("state"), "mode": "reboot"]) }
        #expect(text.contains("Permission denied"), "\(text)")
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
        let strict = try ChildProcess(prefix + vm + ["-sandbox", "on"])
        #expect(try strict.waitForExit() == .status(1))
        #expect(strict.errors.contains("failed to install seccomp syscall filter"), "\(strict.errors)")
    }

    /// With a rule less the VM would lack what it has from the start, and learn it only when it needs that.
    @Test(
        "Where the kernel takes a rule of Landlock not, the VM does without Landlock",
        .enabled(if: SystemCallTrace.isAvailable, "needs strace, and the right to trace processes"))
    func lacksRule() throws {
        let directory = try TemporaryDirectory()
        let socket = directory.file("qmp")
        let refusal = ["inject=landlock_add_rule:error=ENOMEM:when=5"]
        let vm =
            ["strace", "-D", "-f", "-q", "-o", "/dev/null", "-e", "trace=landlock_add_rule", "-e"] + refusal + [
                Products.baton, "-nodefaults", "-S", "-m", "4M", "-bios", "none", "-cpr-enable", "reboot",
                "-qmp", "unix:\(socket),server=on,wait=off",
            ]
        let process = try ChildProcess(vm)
        let qmp = try QMPClient(path: socket, of: process)
        let reason = "cannot add to a Landlock ruleset: Cannot allocate memory"
        #expect(process.errors.contains("warning: the VM's sandbox is not whole: \(reason)"), "\(process.errors)")
        #expect(try Self.status(process.pid, "Seccomp_filters") == "1")
        try qmp.execute("cpr-save", ["filename": directory.file("state"), "mode": "reboot"])
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
        let strict = try ChildProcess(vm + ["-sandbox", "on"])
        #expect(try strict.waitForExit() == .status(1))
        #expect(strict.errors.contains(reason), "\(strict.errors)")
    }

    @Test("Threads of CPUs have given up more", .enabled(if: MicroVMROM.isUsable, MicroVMROM.usable))
    func cpuThreads() throws {
        let rom = try MicroVMROM(MicroVMROM.letters)
        let process = try ChildProcess(rom.arguments(extra: ["-smp", "2"]))
        let qmp = try QMPClient(path: rom.socket, of: process)
        // The second waits to be started by the first, which does not do that: its thread has carried out nothing yet. A new
        // VMM's threads have given up more before they have the guest.
        for filters in [["2", "1"], ["2", "2"], ["2", "2"]] {
            try rom.awaitOutput()
            #expect(try Self.status(process.pid, "Seccomp_filters") == "1")
            let cpus = try #require(try qmp.execute("query-cpus-fast") as? [[String: Any]])
            let threads = try cpus.map { Int32(try #require($0["thread-id"] as? Int)) }
            #expect(try threads.map { try Self.status($0, "Seccomp_filters") } == filters)
            try qmp.execute("cpr-update", ["argv": rom.arguments(extra: ["-smp", "2"])])
        }
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    @Test("A VM in it is updated as often as one likes, with one filter, and keeps its PID")
    func survivesUpdates() throws {
        let guest = try Self.guest()
        let pid = guest.process.pid
        #expect(try Self.status(pid, "Seccomp") == "2")
        #expect(try Self.status(pid, "NoNewPrivs") == "1")
        // More than Landlock has layers.
        for round in 1...20 {
            let before = guest.count
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": round % 5 == 0])
            try guest.waitForProgress(past: before)
        }
        #expect(try guest.qmp.status() == "running")
        #expect(guest.process.pid == pid)
        #expect(try Self.status(pid, "Seccomp_filters") == "1")
        #expect(try Self.status(pid, "CapEff").hasSuffix("00804000") || getuid() != 0)
        try guest.qmp.execute("stop")
        #expect(guest.checksum == CountingGuest.expectedChecksum(after: guest.count))
    }

    @Test(
        "An update that fails gives the guest back, which can be updated again",
        arguments: [
            ["/bin/false"], ["sh", "-c", "kill -SEGV $$"],
        ])
    func takesBack(_ argv: [String]) throws {
        let guest = try Self.guest()
        for _ in 1...3 {
            let before = guest.count
            #expect(guest.update(argv).contains("the new VMM ended during its start"))
            try guest.waitForProgress(past: before)
        }
        let before = guest.count
        #expect(guest.update(guest.arguments) == "accepted")
        try guest.waitForProgress(past: before)
    }

    @Test(
        "A VM in it hands its guest over to another process, in a sandbox or in none, by a channel below paths=",
        arguments: [true, false])
    func transfers(_ isInSandbox: Bool) throws {
        let directory = try TemporaryDirectory()
        let channel = directory.file("cpr")
        let sandbox = ["-sandbox", "on,paths=\(directory.path)"]
        let guest = try CountingGuest(extra: ["-cpr-enable", "transfer"] + sandbox)
        let arguments = guest.arguments + (isInSandbox ? [] : ["-sandbox", "off"])
        let new = try CountingGuest.startWaiting(arguments, at: channel)
        let before = guest.count
        try guest.qmp.execute("cpr-update", ["mode": "transfer", "channel": channel])
        #expect(try guest.process.waitForExit() == .status(0))
        try guest.reconnect()
        try guest.waitForProgress(past: before)
        try eventually("its sandbox") { try Self.status(new.pid, "Seccomp") == (isInSandbox ? "2" : "0") }
        try guest.qmp.execute("quit")
        #expect(try new.waitForExit() == .status(0))
    }

    @Test("The warden ends with the VM, however that ends", arguments: [SIGTERM, SIGKILL])
    func wardenEnds(_ signal: Int32) throws {
        let mark = "BATON_TEST_WARDEN=\(UUID())"
        let guest = try CountingGuest(environment: ["BATON_TEST_WARDEN": String(mark.dropFirst(18))])
        #expect(guest.update(guest.arguments) == "accepted")
        let all = try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { Int32($0) }
        let warden = try #require(
            all.first { pid in
                Self.name(pid) == "baton-warden" && (try? ProcFile.text("/proc/\(pid)/environ"))?.contains(mark) == true
            })
        // Whose words, which ps shows, are its own.
        #expect(try ProcFile.text("/proc/\(warden)/cmdline").hasPrefix("baton -sandbox-warden\0"))
        guest.process.signal(signal)
        try eventually("the end of the warden") { Self.name(warden) != "baton-warden" }
    }

    private static func name(_ pid: Int32) -> String? {
        (try? String(contentsOfFile: "/proc/\(pid)/comm", encoding: .utf8))?.trimmingCharacters(
            in: .whitespacesAndNewlines)
    }

    @Test("Files that come later are those below paths=")
    func laterFiles() throws {
        let directory = try TemporaryDirectory()
        let outside = try TemporaryDirectory()
        let guest = try Self.guest(paths: directory.path)
        let text = refusal {
            try guest.qmp.execute("cpr-save", ["filename": outside.file("state"), "mode": "restart"])
        }
        #expect(text.contains("Permission denied"), "\(text)")
        #expect(text.contains("-sandbox paths=\(outside.path)"), "\(text)")
        try guest.qmp.execute("cpr-save", ["filename": directory.file("state"), "mode": "restart"])
        try guest.exec()
        try guest.qmp.execute("cpr-load", ["filename": directory.file("state"), "mode": "restart"])
        try guest.waitForProgress(past: guest.count)
    }

    @Test("Files that come later are also those that a client gives by add-fd")
    func givenFiles() throws {
        let outside = try TemporaryDirectory()
        let guest = try Self.guest()
        let path = try outside.write("state", "something else, and longer than nothing")
        func add(_ flags: Int32) throws -> String {
            let fd = open(path, flags | O_CLOEXEC)
            defer { close(fd) }
            let answer = try guest.qmp.execute("add-fd", ["opaque": "mine"], passing: fd) as? [String: Any]
            return "/dev/fdset/\(try #require(answer?["fdset-id"] as? Int))"
        }
        let toRead = try add(O_RDONLY), toWrite = try add(O_WRONLY)
        #expect(toRead == "/dev/fdset/0" && toWrite == "/dev/fdset/1")
        let refused = refusal { try guest.qmp.execute("cpr-save", ["filename": toRead, "mode": "restart"]) }
        #expect(refused.contains("Could not open '/dev/fdset/0': Permission denied"), "\(refused)")
        let sets = try guest.qmp.execute("query-fdsets") as? [[String: Any]]
        #expect(sets?.count == 2)
        #expect((sets?.first?["fds"] as? [[String: Any]])?.first?["opaque"] as? String == "mine")
        try guest.qmp.execute("cpr-save", ["filename": toWrite, "mode": "restart"])
        try guest.qmp.execute("remove-fd", ["fdset-id": 1])
        #expect(
            refusal { try guest.qmp.execute("remove-fd", ["fdset-id": 1]) }
                == "File descriptor named 'fdset-id:1' not found")
        let before = guest.count
        try guest.exec()
        // Sets are the VMM's that has got them.
        #expect((try guest.qmp.execute("query-fdsets") as? [Any])?.isEmpty == true)
        try guest.qmp.execute("cpr-load", ["filename": try add(O_RDONLY), "mode": "restart"])
        try guest.waitForProgress(past: before)
    }

    @Test("spawn=deny refuses what executes a new VMM, and the guest goes on")
    func executesNothing() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-sandbox", "on,spawn=deny"])
        let before = guest.count
        #expect(guest.update(guest.arguments).contains("Operation not permitted"))
        try guest.waitForProgress(past: before)
    }

    @Test("A VMM that takes a guest over from one without a sandbox puts its own on")
    func takesOver() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-sandbox", "off"])
        // It stays as it is, unless the new one says otherwise.
        #expect(guest.update(guest.arguments + ["-sandbox", "spawn=allow"]) == "accepted")
        try guest.waitForProgress(past: guest.count)
        #expect(try Self.status(guest.process.pid, "Seccomp") == "0")
        let before = guest.count
        #expect(guest.update(guest.arguments + ["-sandbox", "on"]) == "accepted")
        try guest.waitForProgress(past: before)
        try eventually("the sandbox") { try Self.status(guest.process.pid, "Seccomp") == "2" }
        for _ in 1...3 {
            let before = guest.count
            // Whatever the next one says.
            #expect(guest.update(guest.arguments) == "accepted")
            try guest.waitForProgress(past: before)
        }
        #expect(try Self.status(guest.process.pid, "Seccomp_filters") == "1")
    }

    @Test(
        "A helper that dies is started again, in a sandbox of its own",
        .enabled(
            if: Products.find("qemu-storage-daemon") != nil && Products.find("qemu-img") != nil, "needs QEMU's tools"))
    func startsHelpersAgain() throws {
        let directory = try TemporaryDirectory()
        let image = directory.file("image")
        try ChildProcess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "4M"])
        let guest = try Self.guest(["-drive", "file=\(image),format=qcow2,if=virtio"])
        let daemon = try #require(Self.daemon(image))
        #expect(try Self.status(daemon, "Seccomp_filters") == "1")
        kill(daemon, SIGKILL)
        try eventually("another daemon") { Self.daemon(image).map { $0 != daemon } == true }
        let other = try #require(Self.daemon(image))
        #expect(try Self.status(other, "Seccomp_filters") == "1")
        #expect(guest.update(guest.arguments) == "accepted")
        #expect(Self.daemon(image) == other)
        try guest.qmp.execute("quit")
        try eventually("the end of the daemon") { Self.daemon(image) == nil }
    }

    @Test("A storage daemon writes its image and its directory, and nothing else")
    func confinesHelpers() throws {
        let programs = try TemporaryDirectory()
        let outside = try TemporaryDirectory()
        let image = try outside.write("image", Data([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]) + Data(count: 504))
        // In the daemon's place: says what it can do, and ends.
        let script = """
            #!/bin/sh
            attempt() { if "$@" 2>/dev/null; then echo "can $1"; else echo "cannot $1"; fi >&2; }
            image() { echo x >>\(image); }
            other() { echo x >\(outside.file("other")); }
            remove() { rm \(image); }
            namespace() { unshare -U true; }
            reads() { cat /proc/self/status >/dev/null; }
            attempt image; attempt other; attempt remove; attempt namespace; attempt reads
            exit 1
            """
        let program = try programs.write("qemu-storage-daemon", script)
        chmod(program, 0o755)
        func said(_ drive: String) throws -> String {
            let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
            let process = try ChildProcess(
                [Products.baton, "-nodefaults", "-S", "-m", "4M", "-bios", "none", "-drive", drive],
                environment: ["PATH": "\(programs.path):\(path)"])
            #expect(try process.waitForExit() == .status(1))
            return process.errors
        }
        let others = "cannot other; cannot remove; cannot namespace; can reads"
        var text = try said("file=\(image),format=qcow2,if=virtio")
        // The last lines are shown.
        #expect(text.contains(others), "\(text)")
        #expect(try Data(contentsOf: URL(fileURLWithPath: image)).count == 514)
        text = try said("file=\(image),format=qcow2,if=virtio,readonly=on")
        #expect(text.contains(others), "\(text)")
        #expect(try Data(contentsOf: URL(fileURLWithPath: image)).count == 514)
        // An image that names a file which is written too.
        var header = Data([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]) + Data(count: 504)
        header[79] = 4
        try header.write(to: URL(fileURLWithPath: image))
        text = try said("file=\(image),format=qcow2,if=virtio")
        #expect(text.contains("can other; can remove; cannot namespace; can reads"), "\(text)")
    }

    /// The storage daemon that has an image.
    private static func daemon(_ image: String) -> Int32? {
        let all = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return all.compactMap { Int32($0) }.first { pid in
            name(pid)?.hasPrefix("qemu-storage") == true
                && (try? ProcFile.text("/proc/\(pid)/cmdline"))?.contains(image) == true
        }
    }

    // MARK: Escape

    private static func attempt(_ guest: CountingGuest, _ what: String, _ with: String = "") throws -> Int {
        let answer = try guest.qmp.execute("escape-try", ["what": what, "with": with]) as? [String: Any]
        return try #require(answer?["code"] as? Int)
    }

    @Test("Code in the VMM's place finds what the threat model says", arguments: [false, true])
    func escape(_ afterAnUpdate: Bool) throws {
        let ofModule = try TemporaryDirectory()
        let module = try EscapeModule.build(in: ofModule)
        let directory = try TemporaryDirectory()
        let outside = try directory.write("outside", "secret")
        let (listener, port) = try Self.listen()
        defer { close(listener) }
        let socket = directory.file("socket")
        let server = try PacketSocket(listeningAt: socket)
        let guest = try Self.guest(["-module", module])
        if afterAnUpdate { try guest.qmp.execute("cpr-update", ["argv": guest.arguments]) }

        func expect(_ what: String, _ with: String, _ codes: [Int32]) throws {
            let code = try Self.attempt(guest, what, with)
            #expect(codes.map { Int($0) }.contains(code), "\(what) \(with): \(code)")
        }
        // Files.
        for path in ["/etc/shadow", outside, "/proc/\(getpid())/mem", "/dev/mem"] {
            try expect("read", path, [EACCES, ENOENT])
        }
        for path in [outside, "/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper", module] {
            try expect("write", path, [EACCES, ENOENT])
        }
        try expect("create", directory.file("new"), [EACCES])
        try expect("list", directory.path, [EACCES])
        try expect("remove", outside, [EACCES])
        try expect("mode", outside, [EPERM])
        try expect("link", directory.file("link"), [EPERM])
        try expect("environment", "/proc/\(getpid())/environ", [EACCES, EPERM])
        // Other processes, here and elsewhere.
        for what in ["signal", "ptrace", "memory"] { try expect(what, "", [EPERM]) }
        try expect("connect-unix", socket, [EPERM])
        try expect("connect-tcp", "\(port)", [EPERM])
        try expect("bind-tcp", "", [EACCES])
        for what in ["datagrams", "netlink"] { try expect(what, "", [EPERM]) }
        let receiver = directory.file("datagrams")
        let datagrams = try Self.receiveDatagrams(at: receiver)
        defer { close(datagrams) }
        try expect("send-datagram", receiver, [EPERM, EPIPE])
        // The kernel.
        for what in [
            "mount", "unshare", "namespace", "chroot", "setuid", "io_uring", "bpf", "perf", "userfaultfd", "keyctl",
            "module",
            "reboot", "personality",
        ] { try expect(what, "", [EPERM]) }
        // Programs run, and are in the sandbox.
        try expect("run", "/etc/shadow", [1])
        try expect("run", "/etc/passwd", [0])
        // The warden.
        for path in ["/etc/shadow", outside, "\(guest.ramFile)/../../outside", "/"] {
            try expect("warden-open", path, [EACCES])
        }
        try expect("warden-remove", outside, [EACCES])
        _ = try Self.attempt(guest, "warden-allow", "/")
        try expect("warden-open", "/etc/shadow", [EACCES])
        // What the VM has.
        try expect("write", guest.ramFile, [0])
        try expect("warden-open", guest.ramFile, [0])
        withExtendedLifetime(server) {}
    }

    @Test("What a newer module says that it needs, it can do")
    func newerNeeds() throws {
        let directory = try TemporaryDirectory()
        let other = try TemporaryDirectory()
        let needed = try other.write("needed", "x")
        // Where the VM has one of its modules, newer ones can be read.
        let first = try CModule.build(
            kind: "preserver", name: "first", EscapeModule.preserver, in: directory)
        let guest = try Self.guest(["-module", first])
        let needs = """
            #include <sys/syscall.h>
            BATON_NEEDS_SYSTEM_CALL(SYS_personality);
            BATON_NEEDS_PATHS("\(needed)\\0");

            """
        // What the warden has not been told at the start of the VM, and the first VMM did not know.
        let module = try EscapeModule.build(in: directory, needs: needs)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments + ["-module", module]])
        #expect(try Self.attempt(guest, "personality") == 0)
        #expect(try Self.attempt(guest, "warden-open", needed) == 0)
        #expect(try Self.attempt(guest, "mount") == Int(EPERM))
        #expect(try Self.attempt(guest, "warden-open", "/etc/shadow") == Int(EACCES))
        // And so over further updates, back and forth.
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments + ["-module", module]])
        #expect(try Self.attempt(guest, "personality") == 0)
        withExtendedLifetime((directory, other)) {}
    }

    private static func receiveDatagrams(at path: String) throws -> Int32 {
        let fd = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0)
        try #require(QMPClient.withAddress(path, { bind(fd, $0, $1) }) == 0)
        return fd
    }

    private static func listen() throws -> (Int32, UInt16) {
        let fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        name.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let isBound = withUnsafeMutablePointer(to: &name) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(fd, $0, length) == 0 && Glibc.listen(fd, 8) == 0 && getsockname(fd, $0, &length) == 0
            }
        }
        try #require(isBound)
        return (fd, UInt16(bigEndian: name.sin_port))
    }
}
