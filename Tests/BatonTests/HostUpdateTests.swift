import Foundation
import TestSupport
import Testing

/// A host whose VMs are to come through its new kernel: `baton-ctl host-update`, and the service manager's store.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct HostUpdateTests {
    private let hosts: [LiveUpdateTests.Host]
    private let directory: TemporaryDirectory
    private var sockets: [String] { hosts.map { $0.directory.file("qmp") } }

    init() throws {
        directory = try TemporaryDirectory()
        hosts = try (0..<3).map { _ in try LiveUpdateTests.Host() }
    }

    /// The monitor serves one client at a time: the tests have another one.
    private func second(_ host: LiveUpdateTests.Host) -> [String] {
        ["-qmp", "unix:\(host.directory.file("tool")),server=on,wait=off"]
    }

    private func tool(_ arguments: [String]) throws -> ChildProcess {
        let monitors = hosts.flatMap { ["--qmp", $0.directory.file("tool")] }
        let process = try ChildProcess(
            ["\(Products.directory)/baton-ctl", "host-update", "--records", directory.path] + arguments + monitors)
        _ = try process.waitForExit()
        return process
    }

    private func start(last: [String] = [], lastKernel: [String] = []) throws -> [LiveUpdateTests.VM] {
        let vms = try hosts.enumerated().map { index, host in
            try host.start(
                second(host) + (index == 2 ? last : []), kernel: index == 2 ? lastKernel : [])
        }
        for vm in vms { try vm.awaitProgress() }
        return vms
    }

    private func results(_ process: ChildProcess) -> [String] {
        process.output.split(separator: "\n").compactMap {
            guard let object = try? JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any] else {
                return nil
            }
            return object["result"] as? String
        }
    }

    @Test func allAreSavedAndComeThrough() throws {
        let vms = try start()
        let check = try tool(["--check", "--json"])
        #expect(try check.waitForExit() == .status(0), "\(check.report)")
        #expect(results(check) == Array(repeating: "would come through", count: 3))
        #expect(try vms.allSatisfy { try $0.qmp.status() == "running" })

        // A kexec that does not happen.
        #expect(try tool(["--prepare"]).waitForExit() == .status(0))
        #expect(try vms.allSatisfy { try $0.qmp.status() == "save-vm" })
        let again = try tool(["--prepare", "--json"])
        #expect(try again.waitForExit() == .status(1))
        #expect(again.errors.contains("it has been saved already"), "\(again.errors)")
        #expect(try vms.allSatisfy { try $0.qmp.status() == "save-vm" })
        let undo = try tool(["--undo", "--json"])
        #expect(try undo.waitForExit() == .status(0), "\(undo.report)")
        #expect(results(undo) == Array(repeating: "goes on", count: 3))
        for vm in vms { try vm.awaitProgress() }

        let prepare = try tool(["--prepare", "--json"])
        #expect(try prepare.waitForExit() == .status(0), "\(prepare.report)")
        #expect(results(prepare) == Array(repeating: "saved", count: 3))
        let counts = try vms.map { try $0.count() }
        for vm in vms { try vm.kexec() }
        for (host, count) in zip(hosts, counts) {
            let vm = try host.start()
            try eventually("the guest runs; \(vm.process.report)") { try vm.qmp.status() == "running" }
            try vm.awaitProgress()
            #expect(try vm.count() > count)
            try vm.end()
        }
    }

    @Test func aPausedGuestStaysPausedOverAnUndo() throws {
        let vms = try start()
        try vms[1].qmp.execute("stop")
        let count = try vms[1].count()
        for _ in 0..<2 {
            let prepare = try tool(["--prepare", "--json"])
            #expect(try prepare.waitForExit() == .status(0), "\(prepare.report)")
            #expect(results(prepare) == Array(repeating: "saved", count: 3))
            let undo = try tool(["--undo", "--json"])
            #expect(try undo.waitForExit() == .status(0), "\(undo.report)")
            #expect(results(undo) == ["goes on", "is paused again", "goes on"])
            #expect(try vms[1].qmp.status() == "paused")
            let cpr = try vms[1].qmp.execute("query-cpr") as? [String: Any]
            #expect(cpr?["saved-run-state"] == nil)
        }
        // It can run on as ever, and nobody finds what was saved of it.
        #expect(try vms[1].count() == count)
        try vms[1].qmp.execute("cont")
        for (host, vm) in zip(hosts, vms) {
            try vm.awaitProgress()
            try vm.kexec()
            #expect(try host.start(["-S"]).nothingIsFound(host.checkpoint))
        }
    }

    @Test func aDirectoryWithoutVMsIsNamed() throws {
        for option in ["--check", "--prepare"] {
            let process = try ChildProcess([
                "\(Products.directory)/baton-ctl", "host-update", option, "--directory", directory.path,
            ])
            #expect(try process.waitForExit() == .status(0))
            #expect(process.errors.contains("there are no VMs in \(directory.path)"), "\(process.errors)")
        }
    }

    @Test func oneThatWouldNotComeThroughKeepsAllFromBeingSaved() throws {
        let vms = try start(last: ["-object", "memory-backend-ram,id=lost,size=4M"])
        let check = try tool(["--check"])
        #expect(try check.waitForExit() == .status(1))
        #expect(check.errors.contains("Memory region lost is volatile"), "\(check.errors)")
        #expect(check.output.contains("would come through") && check.output.contains("FAILED"), "\(check.output)")
        vms.forEach { $0.qmpDiscardEvents() }
        #expect(try tool(["--prepare"]).waitForExit() == .status(1))
        for vm in vms {
            #expect(try vm.qmp.status() == "running")
            #expect(!(try vm.qmp.events.contains { $0["event"] as? String == "STOP" }))
            try vm.end()
        }
    }

    @Test func oneThatCannotBeSavedHasAllGoOn() throws {
        let vms = try start(lastKernel: ["--refuse", "preserve=12:2"])
        let prepare = try tool(["--prepare", "--json"])
        #expect(try prepare.waitForExit() == .status(1))
        #expect(prepare.errors.contains("the host lacks the memory"), "\(prepare.errors)")
        #expect(results(prepare) == ["goes on", "goes on", "FAILED"], "\(prepare.output)")
        for (host, vm) in zip(hosts, vms) {
            #expect(try vm.qmp.status() == "running")
            try vm.awaitProgress()
            try vm.kexec()
            #expect(try host.start(["-S"]).nothingIsFound(host.checkpoint))
        }
    }

    /// A save that is under way is carried out all the same, and is to be taken back.
    @Test func whatIsNotSavedWithinTheLimitHasAllGoOn() throws {
        let vms = try start()
        let prepare = try tool(["--prepare", "--limit", "0.000001", "--json"])
        #expect(try prepare.waitForExit() == .status(1))
        #expect(prepare.errors.contains("it was not saved within the limit"), "\(prepare.errors)")
        for (host, vm) in zip(hosts, vms) {
            #expect(try vm.qmp.status() == "running")
            try vm.awaitProgress()
            try vm.kexec()
            #expect(try host.start(["-S"]).nothingIsFound(host.checkpoint))
        }
    }

    @Test func aVMThatIsNotReadyIsNamed() throws {
        let process = try ChildProcess(
            try hosts[0].arguments(second(hosts[0]), enabled: false))
        let vm = LiveUpdateTests.VM(process: process, socket: sockets[0])
        try vm.awaitProgress()
        let check = try ChildProcess([
            "\(Products.directory)/baton-ctl", "host-update", "--check", "--qmp", hosts[0].directory.file("tool"),
        ])
        #expect(try check.waitForExit() == .status(1))
        #expect(check.errors.contains("Start it with -cpr-enable liveupdate"), "\(check.errors)")
        for words in [[], ["--check", "--prepare"], ["--prepare", "--limit", "0"], ["--check", "--records", "here"]] {
            let bad = try ChildProcess(["\(Products.directory)/baton-ctl", "host-update"] + words)
            #expect(try bad.waitForExit() == .status(64), "\(words)")
        }
        try vm.end()
    }

    // MARK: The service manager's store

    /// What the manager is told of a descriptor.
    private func stored(_ socket: NotifySocket) throws -> Int32 {
        while true {
            let message = try socket.next()
            if message.text == "FDSTORE=1\nFDNAME=liveupdate" { return try #require(message.descriptor) }
            if let descriptor = message.descriptor { close(descriptor) }
        }
    }
    private func awaitMessage(_ text: String, _ socket: NotifySocket) throws {
        while true {
            let message = try socket.next()
            if let descriptor = message.descriptor { close(descriptor) }
            if message.text == text { return }
        }
    }

    @Test func theServiceManagerKeepsTheSession() throws {
        let host = hosts[0], socket = try NotifySocket(directory)
        let environment = ["NOTIFY_SOCKET": socket.path, "FDSTORE": "8"]
        func start(
            _ more: [String] = [], prefix: [String] = [], descriptors: [Int32: Int32] = [:]
        ) throws -> LiveUpdateTests.VM {
            unlink(host.directory.file("qmp"))
            return LiveUpdateTests.VM(
                process: try ChildProcess(
                    host.kernel() + prefix + (try host.arguments(more)), environment: environment,
                    descriptors: descriptors),
                socket: host.directory.file("qmp"))
        }
        let removed = "FDSTOREREMOVE=1\nFDNAME=liveupdate"
        let vm = try start()
        try vm.awaitProgress()
        try vm.save(host.checkpoint)
        close(try stored(socket))
        try vm.qmp.execute("cont")
        try awaitMessage(removed, socket)
        try vm.save(host.checkpoint)
        let stopped = try vm.count()
        let outgoing = try stored(socket)
        try vm.kexec()
        close(outgoing)

        // One that waits for its state is ended, and so is the session's holder, as the service's processes are.
        let waiting = try start(["-S"])
        let session = try stored(socket)
        #expect(try waiting.count() == stopped)
        let holder = try Self.process(named: "baton-holder", child: waiting.process)
        kill(try #require(holder), SIGKILL)
        try waiting.end()
        // It comes back as sockets do.
        let script = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=other:liveupdate exec \"$@\""
        let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
        defer { close(null) }
        let next = try start(["-S"], prefix: ["sh", "-c", script, "sh"], descriptors: [3: null, 4: session])
        close(session)
        #expect(try next.count() == stopped)
        try next.load(host.checkpoint)
        try awaitMessage(removed, socket)
        try next.awaitProgress()
        try next.end()
        #expect(try FileManager.default.contentsOfDirectory(atPath: host.directory.file("sessions")).isEmpty)
    }

    /// The process of a name that has the same session as a VM.
    private static func process(named name: String, child: ChildProcess) throws -> pid_t? {
        let numbers = try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { pid_t($0) }
        return numbers.first { number in
            guard let comm = try? String(contentsOfFile: "/proc/\(number)/comm", encoding: .utf8), comm == name + "\n",
                let line = FileManager.default.contents(atPath: "/proc/\(number)/cmdline")
            else { return false }
            let own = child.arguments.drop { $0 != Products.baton }.joined(separator: "\0")
            return String(decoding: line, as: UTF8.self).hasPrefix(own)
        }
    }
}
