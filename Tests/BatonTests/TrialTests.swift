import Foundation
import TestSupport
import Testing

/// A trial or successor that its command has deprived of what it was given
/// must not become a VM of its own; what a trial is given does no harm; and
/// nothing of it is left.
@Suite("Trials", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct TrialTests {
    private let directory: TemporaryDirectory
    private let command: UpdateCommand

    init() throws {
        directory = try TemporaryDirectory()
        command = try UpdateCommand(in: directory)
    }

    /// The processes that have the guest's RAM file on their command line.
    private func processes(_ guest: CountingGuest) -> [pid_t] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap { pid_t($0) }.filter { pid in
            let words = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline") ?? Data()
            return words.range(of: Data(guest.ramFile.utf8)) != nil
        }
    }

    /// One VMM has the guest, which has lost nothing, and it still has its socket.
    private func expectAlone(_ guest: CountingGuest) throws {
        try eventually("one VMM has the guest, not \(processes(guest))") { processes(guest).count == 1 }
        #expect(try guest.qmp.status() == "running")
        try guest.waitForProgress(past: guest.count)
        #expect(try ListeningSocket.exists(at: guest.directory.file("qmp")))
        try guest.qmp.execute("stop")
        #expect(guest.checksum == CountingGuest.expectedChecksum(after: guest.count))
        try guest.qmp.execute("cont")
    }

    // MARK: Lost states

    static let lost = "which has not inherited the state of its guest"

    @Test("A command that clears the environment is as good as any")
    func clearedEnvironment() throws {
        let guest = try CountingGuest()
        let argv = ["env", "-i"] + guest.arguments
        try guest.qmp.execute("cpr-preflight", ["argv": argv])
        try expectAlone(guest)
        let count = guest.count
        try guest.qmp.execute("cpr-update", ["argv": argv])
        try guest.waitForProgress(past: count)
        try guest.save()
        try guest.exec(argv + ["-S"])
        try guest.load()
        try expectAlone(guest)
        #expect(guest.process.isRunning)
    }

    @Test("A trial that has lost the state does not become a VM", arguments: [["lose"], ["lose", "fork"]])
    func lostTrial(_ words: [String]) throws {
        let guest = try CountingGuest()
        let argv = command(words, guest.arguments)
        for name in ["cpr-preflight", "cpr-update"] {
            let text = refusal { try guest.qmp.execute(name, ["argv": argv]) }
            #expect(text.contains(Self.lost), "\(text)")
        }
        try expectAlone(guest)
        #expect(guest.process.isRunning)
    }

    @Test("A successor that has lost the state gives the guest back", arguments: ["cpr-update", "cpr-exec"])
    func lostSuccessor(_ name: String) throws {
        let guest = try CountingGuest()
        let argv = command(["lose"], guest.arguments)
        if name == "cpr-exec" { try guest.save() }
        let arguments: [String: Any] = name == "cpr-exec" ? ["argv": argv] : ["argv": argv, "preflight": false]
        let text = refusal { try guest.qmp.execute(name, arguments) }
        #expect(text.contains("the guest was taken back"), "\(text)")
        try expectAlone(guest)
    }

    /// Its parents are gone when it starts: nothing but itself can tell what it is.
    @Test("A successor in the background that has lost the state ends", arguments: ["cpr-update", "cpr-exec"])
    func lostOrphan(_ name: String) throws {
        let guest = try CountingGuest()
        let argv = command(["fork", "lose"], guest.arguments)
        if name == "cpr-exec" { try guest.save() }
        let arguments: [String: Any] = name == "cpr-exec" ? ["argv": argv] : ["argv": argv, "preflight": false]
        let text = refusal { try guest.qmp.execute(name, arguments) }
        #expect(text.contains("the guest was taken back"), "\(text)")
        try guest.process.waitForErrors(Self.lost)
        try expectAlone(guest)
    }

    @Test("An update by a command that goes to the background leaves one VMM with the guest")
    func background() throws {
        let guest = try CountingGuest()
        let argv = command(["fork"], guest.arguments)
        let text = refusal { try guest.qmp.execute("cpr-preflight", ["argv": argv]) }
        #expect(text == "the command ended before the new VMM, which it left in the background", "\(text)")
        try expectAlone(guest)
        _ = refusal { try guest.qmp.execute("cpr-update", ["argv": argv, "preflight": false]) }
        try expectAlone(guest)
    }

    @Test("Of two states none is taken")
    func twoStates() throws {
        let guest = try CountingGuest()
        let text = refusal {
            try guest.qmp.execute("cpr-preflight", ["argv": command(["twice"], guest.arguments)])
        }
        #expect(text.contains("cannot use the CPR state: fd") && text.contains("are one each"), "\(text)")
        try expectAlone(guest)
    }

    @Test("Another VM can be started while one is updated")
    func unrelated() throws {
        let guest = try CountingGuest()
        try guest.qmp.executeWithoutAnswer("cpr-preflight", ["argv": ["sleep", "1000"]])
        let other = try CountingGuest()
        try other.qmp.execute("quit")
        guest.process.signal(SIGTERM)
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("A VMM does not take the socket of another")
    func liveSocket() throws {
        let guest = try CountingGuest()
        for (option, path) in [
            ("-qmp", guest.directory.file("qmp")), ("-serial", guest.directory.file("qmp")),
        ] {
            let second = try ChildProcess([
                Products.baton, "-nodefaults", "-nographic", "-S", option, "unix:\(path),server=on,wait=off",
            ])
            #expect(try second.waitForExit() == .status(1))
            #expect(
                second.errors.contains("Failed to bind socket to \(path): Address already in use"), "\(second.errors)")
        }
        try expectAlone(guest)
    }

    // MARK: What a trial is given

    /// Gives the VMM a descriptor under a name.
    private func give(_ guest: CountingGuest, _ name: String, _ fd: Int32) throws {
        try #require(fd >= 0, "\(name)")
        defer { close(fd) }
        try guest.qmp.execute("getfd", ["fdname": name], passing: fd)
    }

    @Test("What a trial is given can change nothing, and is not what the guest has")
    func standIns() throws {
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-chardev", "pty,id=pty", "-chardev",
            "file,id=file,path=\(directory.file("log"))",
            "-chardev", "socket,id=socket,path=\(directory.file("socket")),server=on,wait=off",
            "-chardev", "socket,id=tcp,host=127.0.0.1,port=0,server=on,wait=off",
            "-netdev",
            "dgram,id=net,local.type=unix,local.path=\(directory.file("net")),remote.type=unix,"
                + "remote.path=\(directory.file("peer"))",
        ])
        // Not in the headers that Swift sees.
        typealias MakeEvent = @convention(c) (UInt32, Int32) -> Int32
        typealias MakeMemory = @convention(c) (UnsafePointer<CChar>, UInt32) -> Int32
        let event = unsafeBitCast(try #require(dlsym(nil, "eventfd")), to: MakeEvent.self)
        let memory = unsafeBitCast(try #require(dlsym(nil, "memfd_create")), to: MakeMemory.self)
        try give(guest, "event", event(1, 0))
        try give(guest, "memory", memory("given", 0))
        try give(guest, "file", open(directory.file("given"), O_RDWR | O_CREAT, 0o600))
        try give(guest, "device", open("/dev/zero", O_RDWR))
        try give(guest, "terminal", open("/dev/ptmx", O_RDWR | O_NOCTTY))
        var ends: [Int32] = [-1, -1]
        try #require(pipe(&ends) == 0)
        try give(guest, "pipe", ends[1])
        defer { close(ends[0]) }
        let file = directory.file("trial"), own = directory.file("own")
        // What the VMM itself has, by the same eyes: a successor that lists what it was given, and fails.
        _ = refusal {
            try guest.qmp.execute("cpr-update", ["argv": command(["list", own], ["false"]), "preflight": false])
        }
        try guest.qmp.execute("cpr-preflight", ["argv": command(["list", file], guest.arguments)])
        try expectAlone(guest)

        let given = try UpdateCommand.Descriptor.list(file)
        let originals = try UpdateCommand.Descriptor.list(own)
        // All but the VM's mark, which is for the process that has the guest; and the
        // checkpoint, which that one gets later. Nor has a trial a say in its VM's sandbox.
        // The VM's first process has ended with the update that failed.
        let pid = try #require((try guest.qmp.execute("query-cpr") as? [String: Any])?["pid"] as? Int)
        let status = try ProcFile.text("/proc/\(pid)/status")
        #expect(given.count == originals.count - (status.contains("NoNewPrivs:\t1") ? 1 : 0))
        // Of the hand-over itself: its state, the checkpoint, the pipes.
        let handover = ["/memfd:cpr-state (deleted)", "/memfd:cpr-preflight (deleted)"]
        var kinds: Set<String> = []
        for one in given where !handover.contains(one.link) {
            let kind = String(one.link.prefix { $0 != "[" || one.link.hasPrefix("anon") })
            kinds.insert(kind)
            if kind.hasPrefix("anon_inode") || kind.hasPrefix("socket:") || kind.hasPrefix("pipe:") {
                #expect(!originals.contains { $0.identity == one.identity }, "\(one.link)")
            } else {
                #expect(!one.isWritable, "\(one.link)")
                if kind.hasPrefix("/dev/") { #expect(kind == "/dev/null") }
            }
        }
        #expect(
            kinds.isSuperset(of: [
                "anon_inode:[eventfd]", "socket:", "pipe:", "/dev/null", "/memfd:given (deleted)",
                directory.file("given"), directory.file("log"), guest.ramFile,
            ]), "\(kinds)")
    }

    @Test("A trial finds that a socket listens elsewhere")
    func addresses() throws {
        let path = directory.file("socket")
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-chardev", "socket,id=unix,path=\(path),server=on,wait=off",
            "-chardev", "socket,id=tcp,host=127.0.0.1,port=0,server=on,wait=off",
            "-netdev", "stream,id=net,server=on,addr.type=unix,addr.path=\(directory.file("net"))",
        ])
        let chardevs = try #require(try guest.qmp.execute("query-chardev") as? [[String: Any]])
        let name = try #require(chardevs.first { $0["label"] as? String == "tcp" }?["filename"] as? String)
        let port = try #require(name.split(separator: ":").last?.prefix { $0.isNumber })
        func preflight(_ old: String, _ new: String) -> String {
            let argv = guest.arguments.map { $0.replacingOccurrences(of: old, with: new) }
            return refusal { try guest.qmp.execute("cpr-preflight", ["argv": argv]) }
        }
        #expect(preflight("port=0", "port=\(port)") == "accepted")
        #expect(preflight("port=0", "port=1").contains("is not a socket that listens on tcp:127.0.0.1:1"))
        #expect(preflight(path, path + "2").contains("is not a socket that listens on unix:\(path)2"))
        #expect(preflight("/net", "/net2").contains("a socket that does not listen where it is to"))
    }

    @Test("A trial writes neither a log nor a device tree")
    func files() throws {
        let guest = try CountingGuest()
        let (log, tree) = (directory.file("log"), directory.file("tree"))
        try guest.qmp.execute("cpr-preflight", ["argv": guest.arguments + ["-D", log, "-d", "guest_errors"]])
        let text = refusal {
            try guest.qmp.execute("cpr-preflight", ["argv": guest.arguments + ["-machine", "dumpdtb=\(tree)"]])
        }
        #expect(text.contains("dumpdtb= ends the VMM"), "\(text)")
        #expect(!FileManager.default.fileExists(atPath: log) && !FileManager.default.fileExists(atPath: tree))
    }

    // MARK: What is left

    private func exists(_ pid: pid_t) -> Bool { kill(pid, 0) == 0 }

    private func pid(_ file: String) throws -> pid_t {
        let text = try String(contentsOfFile: file, encoding: .utf8)
        return try #require(pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines)))
    }

    @Test("Nothing that a trial's command has started is left", arguments: ["passes", "fails", "hangs"])
    func leftovers(_ end: String) throws {
        let guest = try CountingGuest()
        let file = directory.file("helper")
        let program = ["passes": guest.arguments, "fails": ["false"], "hangs": ["sleep", "1000"]][end] ?? []
        let text = refusal {
            try guest.qmp.execute(
                "cpr-preflight",
                ["argv": command(["helper", file], program), "timeout-ms": end == "passes" ? 30_000 : 2000])
        }
        #expect((text == "accepted") == (end == "passes"), "\(text)")
        // It was asleep when the trial began: nothing but a signal has ended it.
        #expect(!exists(try pid(file)))
        try expectAlone(guest)
    }

    @Test("The end of the VMM ends what a trial's command has started", arguments: [SIGTERM, SIGKILL])
    func endOfTheVMM(_ number: Int32) throws {
        let guest = try CountingGuest()
        let file = directory.file("helper")
        try guest.qmp.executeWithoutAnswer("cpr-preflight", ["argv": command(["helper", file], ["sleep", "1000"])])
        try eventually("the helper runs") { FileManager.default.fileExists(atPath: file) }
        let helper = try pid(file)
        guest.process.signal(number)
        try guest.process.waitForExit()
        try eventually("the helper has ended") { !exists(helper) }
    }

    @Test("Children that a trial did not start are neither ended nor waited for")
    func others() throws {
        let file = directory.file("other")
        let guest = try CountingGuest(
            prefix: ["sh", "-c", "sleep 1000 & echo $! > \"$0\"; exec \"$@\"", file])
        let other = try pid(file)
        defer { kill(other, SIGKILL) }
        func preflights() throws {
            try guest.qmp.execute("cpr-preflight", ["argv": guest.arguments])
            _ = refusal { try guest.qmp.execute("cpr-preflight", ["argv": ["false"]]) }
        }
        func state() throws -> Character? {
            let text = try String(contentsOfFile: "/proc/\(other)/stat", encoding: .utf8)
            return text.split(separator: ")").last?.dropFirst().first
        }
        try preflights()
        #expect(try state() == "S")
        kill(other, SIGKILL)
        try eventually("it waits to be waited for") { try state() == "Z" }
        try preflights()
        #expect(try state() == "Z")
    }
}
