import Foundation
import TestSupport
import Testing

/// Mode liveupdate, with `liveupdate-kernel` in the place of Linux' Live Update Orchestrator. On a real one it is tried
/// in the lab (`baton-demo lab --only liveupdate`).
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct LiveUpdateTests {
    /// A VM with a name of its own, over the kernels of a host.
    final class Host {
        let directory: TemporaryDirectory
        let name: String
        var checkpoint: String { directory.file("checkpoint") }

        init(name: String = "lu-\(UUID().uuidString.lowercased())") throws {
            directory = try TemporaryDirectory()
            try FileManager.default.createDirectory(
                atPath: directory.file("sessions"), withIntermediateDirectories: true)
            self.name = name
        }

        /// What the session has under a number, between two kernels.
        func file(_ token: Int) -> String { directory.file("sessions/baton-\(name)/\(token)") }

        func arguments(
            _ more: [String] = [], memory: String = "16M", socket: String = "qmp", enabled: Bool = true,
            named: Bool = true
        ) throws -> [String] {
            (named ? [Products.baton, "-name", name] : [Products.baton]) + [
                "-machine", "virt,memory-backend=ram", "-m", memory, "-object",
                "memory-backend-memfd,id=ram,size=\(memory),share=on", "-bios", "none", "-kernel",
                try CountingGuest.image(), "-nodefaults", "-nographic",
                "-serial", "file:\(directory.file("serial-\(socket)"))",
                "-qmp", "unix:\(directory.file(socket)),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
            ] + (enabled ? ["-cpr-enable", "liveupdate"] : []) + more
        }

        func kernel(_ options: [String] = []) -> [String] {
            ["\(Products.directory)/liveupdate-kernel", "--state", directory.file("sessions")] + options + ["--"]
        }

        func start(_ more: [String] = [], kernel options: [String] = [], memory: String = "16M", socket: String = "qmp")
            throws -> VM
        {
            // That of a VMM which is about to end would take the client.
            unlink(directory.file(socket))
            return VM(
                process: try ChildProcess(
                    kernel(options) + (try arguments(more, memory: memory, socket: socket))),
                socket: directory.file(socket))
        }

        /// Starts a VMM that refuses, and leaves the guest where it is.
        /// - Returns: its errors.
        func refusedStart(_ more: [String] = ["-S"], memory: String = "16M", saying text: String) throws -> String {
            let vm = try start(more, memory: memory)
            try eventually("'\(text)'; \(vm.process.report)") { vm.process.errors.contains(text) }
            // The stand-in goes on for as long as the holder of the session does.
            try eventually("the end of the VMM; \(vm.process.report)") { Self.hasEnded(childOf: vm.process.pid) }
            holders.append(vm.process)
            return vm.process.errors
        }
        private var holders: [ChildProcess] = []

        /// Whether the VMM has ended that a stand-in has started.
        private static func hasEnded(childOf standIn: pid_t) -> Bool {
            let path = "/proc/\(standIn)/task/\(standIn)/children"
            let children = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
            return children.split(separator: " ").allSatisfy { child in
                let state = (try? String(contentsOfFile: "/proc/\(child)/stat", encoding: .utf8)) ?? ""
                return state.isEmpty || state.contains(") Z ")
            }
        }

        /// The holder that an error names; nil if it names none.
        static func holder(_ errors: String) -> pid_t? {
            let words = errors.split { !$0.isNumber && !$0.isLetter }
            guard let at = words.lastIndex(of: "process"), at + 1 < words.count else { return nil }
            return pid_t(words[at + 1])
        }

        /// Whether a process is still the holder of this host's guest.
        private func isHolder(_ process: pid_t) -> Bool {
            let line = FileManager.default.contents(atPath: "/proc/\(process)/cmdline") ?? Data()
            let comm = try? String(contentsOfFile: "/proc/\(process)/comm", encoding: .utf8)
            return comm == "baton-holder\n" && String(decoding: line, as: UTF8.self).contains("\0\(name)\0")
        }

        /// Nobody else ends the holder of a guest that no VMM has taken.
        deinit {
            for process in holders {
                guard let holder = Self.holder(process.errors), isHolder(holder) else { continue }
                kill(holder, SIGTERM)
            }
        }

        /// A guest that was saved, when the kernel that saved it has gone.
        /// - Returns: its count.
        func saved(_ more: [String] = []) throws -> UInt64 {
            let vm = try start(more)
            try vm.awaitProgress()
            try vm.save(checkpoint)
            let count = try vm.count()
            try vm.kexec()
            return count
        }
    }

    struct VM {
        let process: ChildProcess
        let socket: String
        private let client: Client
        final class Client { var qmp: QMPClient? }

        init(process: ChildProcess, socket: String) {
            self.process = process
            self.socket = socket
            client = Client()
        }

        var qmp: QMPClient {
            get throws {
                if let qmp = client.qmp { return qmp }
                let new = try QMPClient(path: socket, of: process)
                client.qmp = new
                return new
            }
        }

        func count() throws -> UInt64 { try qmp.guestWord(at: CountingGuest.pageAddress + 8) }
        func awaitProgress() throws {
            let before = try count()
            try eventually("the guest counts on; \(process.report)") { try count() > before }
        }
        func expectRightSum() throws {
            try qmp.execute("stop")
            let count = try count()
            let sum = try qmp.guestWord(at: CountingGuest.pageAddress + (count & 1 == 0 ? 16 : 24))
            #expect(sum == CountingGuest.expectedChecksum(after: count))
            try qmp.execute("cont")
        }

        func save(_ file: String) throws { try qmp.execute("cpr-save", ["filename": file, "mode": "liveupdate"]) }
        func load(_ file: String) throws { try qmp.execute("cpr-load", ["filename": file, "mode": "liveupdate"]) }
        func end() throws {
            try qmp.execute("quit")
            #expect(try process.waitForExit() == .status(0), "\(process.report)")
        }
        /// The host executes a new kernel.
        func kexec() throws {
            process.signal(SIGUSR1)
            #expect(try process.waitForExit() == .status(128 + SIGKILL), "\(process.report)")
        }
    }

    // MARK: A guest that comes through

    @Test func aGuestComesThroughNewKernelsOfTheHost() throws {
        let host = try Host()
        var vm = try host.start()
        for generation in 1...3 {
            try vm.awaitProgress()
            try vm.save(host.checkpoint)
            #expect(try vm.qmp.status() == "save-vm")
            let stopped = try vm.count()
            try vm.kexec()

            vm = try host.start(["-S"])
            #expect(try vm.qmp.status() == "prelaunch")
            #expect(try vm.count() == stopped)
            #expect(refusal { try vm.qmp.execute("cont") } == "the VM waits for cpr-load")
            #expect(refusal { try vm.qmp.execute("system_reset") } == "the VM waits for cpr-load")
            // Without the file, the checkpoint of the session does.
            if generation == 2 { unlink(host.checkpoint) }
            try vm.load(host.checkpoint)
            #expect(try vm.qmp.status() == "running")
            try vm.awaitProgress()
            #expect(try vm.count() > stopped)
            try vm.expectRightSum()
            let cpr = try vm.qmp.execute("query-cpr") as? [String: Any]
            #expect(cpr?["generation"] as? Int == generation)
            let times = cpr?["last-update"] as? [String: Int] ?? [:]
            let parts = ["stop", "drain", "save", "kexec", "boot", "start-up", "map", "wait-load", "load", "resume"]
            let sum = parts.reduce(0) { $0 + (times["\($1)-us"] ?? 0) }
            #expect(abs((times["pause-us"] ?? 0) - sum) <= parts.count, "\(times)")
            #expect((cpr?["history"] as? [Any])?.count == generation)
        }
        // Nobody holds a session any more.
        #expect(try FileManager.default.contentsOfDirectory(atPath: host.directory.file("sessions")).isEmpty)
        try vm.end()
    }

    @Test func aGuestGoesOnByItselfWhereItIsNotHeldBack() throws {
        let host = try Host()
        let stopped = try host.saved()
        let vm = try host.start()
        try eventually("the guest runs; \(vm.process.report)") { try vm.qmp.status() == "running" }
        try vm.awaitProgress()
        #expect(try vm.count() > stopped)
        try vm.end()
    }

    @Test func aGuestThatHasNeverRunComesThrough() throws {
        let host = try Host()
        let vm = try host.start(["-S"])
        try vm.save(host.checkpoint)
        try vm.kexec()
        let next = try host.start(["-S"])
        try next.load(host.checkpoint)
        #expect(try next.qmp.status() == "prelaunch")
        try next.qmp.execute("cont")
        try next.awaitProgress()
        try next.expectRightSum()
        try next.end()
    }

    @Test(.enabled(if: SandboxSupport.isPossible, "needs Landlock and seccomp"))
    func aGuestIsInItsSandboxBeforeItIsLoaded() throws {
        let host = try Host(), elsewhere = try TemporaryDirectory()
        _ = try host.saved()
        let copy = elsewhere.file("checkpoint")
        try FileManager.default.copyItem(atPath: host.checkpoint, toPath: copy)
        let vm = try host.start(["-S"])
        let refused = refusal { try vm.load(copy) }
        #expect(refused.contains("-sandbox paths=\(elsewhere.path)"), "\(refused)")
        try vm.load(host.checkpoint)
        try vm.awaitProgress()
        try vm.expectRightSum()
        try vm.end()
    }

    @Test func aGuestIsFoundByItsUUID() throws {
        let host = try Host()
        let uuid = UUID().uuidString
        _ = try host.saved(["-uuid", uuid])
        // It has another name now, and the uuid in other letters.
        let vm = try host.start(["-uuid", uuid.lowercased(), "-S"])
        try vm.load(host.checkpoint)
        try vm.awaitProgress()
        try vm.end()
    }

    // MARK: In the process that saves

    @Test func aKernelWithoutTheOrchestratorIsNamed() throws {
        let host = try Host()
        let process = try ChildProcess(try host.arguments())
        let vm = VM(process: process, socket: host.directory.file("qmp"))
        try vm.awaitProgress()
        #expect(
            refusal { try vm.save(host.checkpoint) }
                == "the host's kernel has no Live Update Orchestrator (/dev/liveupdate)")
        try vm.awaitProgress()
        let modes = (try vm.qmp.execute("query-cpr") as? [String: Any])?["modes"] as? [[String: Any]]
        #expect(modes?.first?["survives-host-update"] as? Bool == true)
        #expect((modes?.first?["blockers"] as? [String])?.count == 1)
        try vm.end()
        let capable = try ChildProcess(try host.arguments(["-only-cpr-capable"]))
        #expect(try capable.waitForExit() == .status(1))
        #expect(
            capable.errors.contains("Linux 6.19 or later with CONFIG_LIVEUPDATE, started with kho=on liveupdate=on"))
    }

    /// The VM's options, and what is said.
    private static let blockers: [(options: [String], text: String)] = [
        (["-uuid", "00000000-0000-0000-0000-000000000000", "-name", ""], "neither a name nor a uuid"),
        (["-name", String(repeating: "n", count: 60)], "name has 60 bytes, and a session's name takes 57 of it"),
        (["-machine", "virt,memory-backend=two", "-object", "memory-backend-ram,id=two,size=16M"], "two is volatile"),
    ]

    @Test("What cannot be kept is named before the guest stops", arguments: blockers.indices)
    func blocked(_ index: Int) throws {
        let host = try Host()
        let (options, text) = Self.blockers[index]
        let vm = try host.start(options)
        try vm.awaitProgress()
        vm.qmpDiscardEvents()
        #expect(refusal { try vm.save(host.checkpoint) }.contains(text), "\(refusal { try vm.save(host.checkpoint) })")
        #expect(!(try vm.qmp.events.contains { $0["event"] as? String == "STOP" }))
        try vm.awaitProgress()
        try vm.end()
    }

    @Test func memoryInAFileOfMemoryIsNamed() throws {
        let host = try Host()
        let file = "/dev/shm/\(host.name)"
        defer { unlink(file) }
        let vm = try host.start([
            "-machine", "virt,memory-backend=two", "-object",
            "memory-backend-file,id=two,size=16M,share=on,mem-path=\(file)",
        ])
        try vm.awaitProgress()
        #expect(
            refusal { try vm.save(host.checkpoint) }
                == "Memory region two is in '\(file)', a file that ends with the host's kernel")
        try vm.end()
    }

    @Test func aKexecThatDoesNotHappenIsNoLoss() throws {
        let host = try Host()
        let vm = try host.start()
        for _ in 0..<3 {
            try vm.save(host.checkpoint)
            let stopped = try vm.count()
            try vm.qmp.execute("cont")
            try vm.awaitProgress()
            #expect(try vm.count() > stopped)
        }
        try vm.expectRightSum()
        // The guest has run on: nothing of it is found.
        try vm.kexec()
        #expect(try FileManager.default.contentsOfDirectory(atPath: host.directory.file("sessions")).isEmpty)
        let next = try host.start(["-S"])
        #expect(
            refusal { try next.load(host.checkpoint) }
                == "there is no guest to load in mode 'liveupdate': none of this VM was found when this process was "
                + "started")
        try next.end()
    }

    @Test func aNameThatIsTakenIsRefused() throws {
        let host = try Host()
        let vm = try host.start(), twin = try host.start(socket: "twin")
        try vm.save(host.checkpoint)
        try twin.awaitProgress()
        #expect(
            refusal { try twin.save(host.directory.file("twin-checkpoint")) }
                == "the live update session 'baton-\(host.name)' exists already: another VM of that name or uuid was "
                + "saved")
        try twin.awaitProgress()
        try vm.qmp.execute("cont")
        try eventually("the session is dropped") {
            refusal { try twin.save(host.directory.file("twin-checkpoint")) } == "accepted"
        }
        for one in [vm, twin] { try one.end() }
    }

    /// Requests that the orchestrator refuses, and what is said.
    private static let refusals: [(option: String, text: String)] = [
        ("create=16", "/dev/liveupdate is in use by another process"),
        ("create=12", "the live update session 'NAME' cannot be made: Cannot allocate memory"),
        ("preserve=12:2", "RAM block 'ram' cannot be kept: the host lacks the memory"),
        ("preserve=2:3", "is no memory that the host's Live Update Orchestrator can keep"),
        ("preserve=16:2", "RAM block 'ram' is kept by another live update session already"),
        ("preserve=95:2", "RAM block 'ram' has seals that the host's Live Update Orchestrator cannot keep"),
        ("preserve=28:1", "the checkpoint cannot be kept in the live update session 'NAME': No space left on device"),
        ("preserve=28:0", "the guest's state cannot be kept in the live update session 'NAME': No space left on"),
    ]

    @Test("What the orchestrator refuses leaves the guest running here", arguments: refusals.indices)
    func refused(_ index: Int) throws {
        let host = try Host()
        let (option, text) = Self.refusals[index]
        let vm = try host.start(kernel: ["--refuse", option])
        try vm.awaitProgress()
        for _ in 0..<2 {
            let said = refusal { try vm.save(host.checkpoint) }
            #expect(said.contains(text.replacingOccurrences(of: "NAME", with: "baton-\(host.name)")), "\(said)")
            #expect(try vm.qmp.status() == "running")
            #expect(access(host.checkpoint, F_OK) != 0)
            try vm.awaitProgress()
        }
        try vm.kexec()
        #expect(try host.start(["-S"]).nothingIsFound(host.checkpoint))
    }

    /// The kernel may take seconds for the pages of a large guest.
    @Test("The VMM goes on while memory is being kept", arguments: ["cont", "first cont", "quit"])
    func busyKernel(_ end: String) throws {
        let host = try Host(), tool = host.directory.file("tool")
        let waits = end == "first cont" ? ["-S"] : []
        let vm = try host.start(["-qmp", "unix:\(tool),server=on,wait=off"] + waits, kernel: ["--hold", "2"])
        if waits.isEmpty { try vm.awaitProgress() }
        let other = try QMPClient(path: tool, of: vm.process)
        try other.executeWithoutAnswer("cpr-save", ["filename": host.checkpoint, "mode": "liveupdate"])
        try eventually("the save is under way") {
            refusal { try vm.qmp.execute("device_del", ["id": "none"]) }
                == "cpr-save is under way"
        }
        if !waits.isEmpty { try vm.qmp.execute("cont") }
        for _ in 0..<3 { try vm.awaitProgress() }
        #expect(try vm.qmp.status() == "running")
        if end == "quit" { try vm.qmp.execute("quit") }
        vm.process.signal(SIGUSR2)
        if end == "quit" {
            #expect(try vm.process.waitForExit() == .status(0), "\(vm.process.report)")
            return
        }
        try eventually("the guest is saved") { try vm.qmp.status() == "save-vm" }
        let stopped = try vm.count()
        try vm.kexec()
        let next = try host.start(["-S"])
        try next.load(host.checkpoint)
        try next.awaitProgress()
        #expect(try next.count() > stopped)
        try next.expectRightSum()
        try next.end()
    }

    @Test func aCheckpointThatCannotBeWrittenDropsTheSession() throws {
        let host = try Host()
        let vm = try host.start()
        try vm.awaitProgress()
        // What is there is a directory, which shows when the rest has been kept.
        let place = host.directory.file("place")
        try FileManager.default.createDirectory(atPath: place + "/in", withIntermediateDirectories: true)
        #expect(refusal { try vm.save(place) } != "accepted")
        try vm.awaitProgress()
        try vm.kexec()
        #expect(try host.start(["-S"]).nothingIsFound(host.checkpoint))
    }

    // MARK: In the process that finds

    @Test func aRefusedGuestIsThereForAnotherTry() throws {
        let host = try Host()
        let stopped = try host.saved()
        for _ in 0..<2 {
            let errors = try host.refusedStart(memory: "32M", saying: "another try")
            #expect(
                errors.contains("RAM block 'ram' has length 16777216 in the CPR state, but 33554432 on the command"))
            #expect(errors.contains("The session stays with process"), "\(errors)")
        }
        let other = try host.refusedStart(
            ["-uuid", UUID().uuidString, "-S", "-machine", "virt,memory-backend=none"], saying: "another try")
        #expect(other.contains("Memory backend 'none' not found"), "\(other)")
        let vm = try host.start(["-S"])
        #expect(try vm.count() == stopped)
        // One that waits has it; others are told who.
        let second = try host.refusedStart(saying: "is in use by process")
        #expect(second.contains("baton-\(host.name)"), "\(second)")
        try vm.load(host.checkpoint)
        try vm.awaitProgress()
        try vm.expectRightSum()
        try vm.end()
        // And once more there is nothing.
        #expect(try host.start(["-S"]).nothingIsFound(host.checkpoint))
    }

    @Test func aGuestThatIsGivenUpIsGone() throws {
        let host = try Host()
        _ = try host.saved()
        let errors = try host.refusedStart(memory: "32M", saying: "another try")
        kill(try #require(Host.holder(errors)), SIGTERM)
        try eventually("the session is dropped") {
            try FileManager.default.contentsOfDirectory(atPath: host.directory.file("sessions")).isEmpty
        }
        #expect(try host.start(["-S"]).nothingIsFound(host.checkpoint))
    }

    /// What the session lacks, by number, and what is said.
    private static let halves: [(token: Int, text: String)] = [
        (0, "lacks the guest's state"), (1, "lacks the guest's checkpoint"),
        (2, "0 of 4 blocks of guest memory are there"),
        (5, "3 of 4 blocks of guest memory are there"),
    ]

    @Test("Half a guest is refused", arguments: halves.indices)
    func half(_ index: Int) throws {
        let host = try Host()
        _ = try host.saved()
        let (token, text) = Self.halves[index]
        let lacking = try Data(contentsOf: URL(fileURLWithPath: host.file(token)))
        unlink(host.file(token))
        _ = try host.refusedStart(saying: text)
        // The rest is still there.
        try lacking.write(
            to: URL(fileURLWithPath: host.directory.file("sessions/baton-\(host.name).taken/\(token)")))
        let vm = try host.start(["-S"])
        try vm.load(host.checkpoint)
        try vm.awaitProgress()
        try vm.end()
    }

    @Test func aDamagedStateIsRefused() throws {
        let host = try Host()
        _ = try host.saved()
        let fd = open(host.file(0), O_RDWR)
        var zeroes = [UInt8](repeating: 0, count: 32)
        #expect(pwrite(fd, &zeroes, 32, 0) == 32)
        close(fd)
        let errors = try host.refusedStart(saying: "cannot take over the guest that mode 'liveupdate' has kept")
        #expect(errors.contains("The session stays with process"), "\(errors)")
    }

    @Test func anOldCheckpointWithNewMemoryIsRefused() throws {
        let host = try Host()
        let before = host.directory.file("before")
        let vm = try host.start()
        try vm.save(before)
        try vm.qmp.execute("cont")
        try vm.awaitProgress()
        try vm.save(host.checkpoint)
        try vm.kexec()
        let next = try host.start(["-S"])
        #expect(
            refusal { try next.load(before) }
                == "\(before) is of another save than the guest memory that this process has taken over")
        // The same by a descriptor of the client's.
        let fd = open(before, O_RDONLY | O_CLOEXEC)
        defer { close(fd) }
        _ = try next.qmp.execute("add-fd", ["fdset-id": 7], passing: fd)
        #expect(
            refusal { try next.load("/dev/fdset/7") }
                == "/dev/fdset/7 is of another save than the guest memory that this process has taken over")
        try next.load(host.checkpoint)
        try next.awaitProgress()
        try next.end()
    }

    @Test func aSessionThatCannotBeFinishedLeavesTheGuestThere() throws {
        let host = try Host()
        _ = try host.saved()
        let vm = try host.start(["-S"], kernel: ["--refuse", "finish=16"])
        #expect(
            refusal { try vm.load(host.checkpoint) }
                == "the live update session 'baton-\(host.name)' cannot be finished: Device or resource busy")
        #expect(try vm.qmp.status() == "prelaunch")
        try vm.qmp.execute("quit")
        let next = try host.start(["-S"])
        try next.load(host.checkpoint)
        try next.awaitProgress()
        try next.end()
    }

    @Test func theDeviceIsWaitedForNoLongerThanItsLimit() throws {
        let host = try Host()
        _ = try host.saved()
        let vm = try host.start(["-S"], kernel: ["--refuse", "take=13"])
        try eventually("the refusal; \(vm.process.report)") {
            vm.process.errors.contains("session 'baton-\(host.name)' cannot be taken: Permission denied")
        }
        #expect(try vm.process.waitForExit() == .status(1))
        let next = try host.start(["-S"])
        try next.load(host.checkpoint)
        try next.end()
    }
}

extension LiveUpdateTests.VM {
    func qmpDiscardEvents() { (try? qmp)?.discardEvents() }

    /// In a VMM that waits: it has found no guest.
    func nothingIsFound(_ file: String) throws -> Bool {
        let said = refusal { try load(file) }
        try end()
        return said.contains("none of this VM was found")
    }
}
