import Foundation
import TestSupport

/// A real `baton` that runs the counting guest, in RAM that this process
/// watches through a shared file.
final class CountingGuest {
    static let memorySize = 16 << 20
    /// Where the guest keeps its page, see Tests/Guests/counter.
    private static let page = 0x40_0000
    /// The same as the guest sees it: RAM begins at 0x80000000.
    static let pageAddress: UInt64 = 0x8000_0000 + UInt64(page)
    private static let magic: UInt64 = 0x544e_434e_4f54_4142

    let directory: TemporaryDirectory
    private(set) var process: ChildProcess
    let memory: SharedMemory
    private(set) var qmp: QMPClient
    let arguments: [String]
    var ramFile: String { directory.file("ram") }
    var checkpoint: String { directory.file("checkpoint") }

    /// For checkpoints, channels and what else comes later: from any of a test's directories.
    private static func sandbox(_ paths: [String]) -> [String] {
        ["-sandbox", ([TemporaryDirectory.parent] + paths).map { "paths=\($0)" }.joined(separator: ",")]
    }

    /// Builds one of the guests that keep such a page, or finds it in the cache.
    static func image(_ name: String = "counter") throws -> String {
        try GuestBuilder.flat("\(name)/\(name).c")
    }

    /// Starts the VMM and waits until the guest counts.
    /// - Parameter extra: arguments after those that every counting guest has.
    ///   - vmm: the program, and options that it always needs.
    ///   - environment, descriptors: of the process, see `ChildProcess`.
    ///   - paths: what the VM's sandbox has beside the tests' temporary directories; nil for no option about one.
    init(
        extra: [String] = ["-cpr-enable", "restart"], prefix: [String] = [], vmm: [String] = [Products.baton],
        guest: String = "counter", environment: [String: String] = [:], descriptors: [Int32: Int32] = [:],
        paths: [String]? = []
    ) throws {
        directory = try TemporaryDirectory()
        let ram = try directory.writeSparse("ram", size: Self.memorySize)
        arguments =
            vmm + [
                "-machine", "virt,memory-backend=ram", "-m", "16M",
                "-object", "memory-backend-file,id=ram,size=16M,mem-path=\(ram),share=on",
                "-bios", "none", "-kernel", try Self.image(guest),
                "-nodefaults", "-nographic", "-serial", "file:\(directory.file("serial"))",
                "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off",
            ] + (vmm[0].hasSuffix("/baton") ? paths.map(Self.sandbox) ?? [] : []) + extra
        process = try ChildProcess(prefix + arguments, environment: environment, descriptors: descriptors)
        memory = try SharedMemory(path: ram, writable: true)
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
        let (process, memory) = (self.process, self.memory)
        try eventually("the guest counts; \(process.report)") {
            memory.load(UInt64.self, at: Self.page) == Self.magic && memory.load(UInt64.self, at: Self.page + 8) > 0
        }
    }

    deinit { qmp.endVMM(startedAs: process) }

    /// Connects to whoever listens at the QMP socket now, as a new client.
    func reconnect() throws {
        // The socket of a process about to go may still have taken us.
        try eventually("a QMP server; \(process.report)") {
            guard let client = try? QMPClient(path: directory.file("qmp"), by: .seconds(30)) else { return false }
            qmp = client
            return true
        }
    }

    /// Starts the VMM again, with more arguments, once the one before has ended.
    func restart(_ more: [String]) throws {
        guard try startAgain(arguments + more) else { throw TestError("no VMM: \(process.report)") }
    }

    /// Starts a VMM in place of one that has ended or is about to, and connects to it.
    /// - Returns: whether it has become one, and not ended.
    @discardableResult
    func startAgain(_ command: [String], by deadline: Deadline = .patient) throws -> Bool {
        try process.waitForExit()
        process = try ChildProcess(command)
        guard let client = try? QMPClient(path: directory.file("qmp"), of: process, by: deadline) else { return false }
        qmp = client
        return true
    }

    /// A word of the guest's page.
    func word(_ index: Int) -> UInt64 { memory.load(UInt64.self, at: Self.page + 8 * index) }
    func setWord(_ index: Int, _ value: UInt64) { memory.store(value, at: Self.page + 8 * index) }

    var count: UInt64 { memory.load(UInt64.self, at: Self.page + 8) }
    /// The checksum that goes with a count while the guest stands still.
    var checksum: UInt64 { memory.load(UInt64.self, at: Self.page + (count & 1 == 0 ? 16 : 24)) }

    /// What the checksum must be after `steps` steps: the sequence's power
    /// computed by doubling.
    static func expectedChecksum(after steps: UInt64) -> UInt64 {
        var multiplier: UInt64 = 6_364_136_223_846_793_005
        var increment: UInt64 = 1_442_695_040_888_963_407
        var value: UInt64 = 0
        var left = steps
        while left > 0 {
            if left & 1 == 1 { value = value &* multiplier &+ increment }
            increment = (multiplier &+ 1) &* increment
            multiplier = multiplier &* multiplier
            left >>= 1
        }
        return value
    }

    /// Has the guest stand still for a moment, in which its sum must go with its count.
    func expectRightSum() throws {
        try qmp.execute("stop")
        guard checksum == CountingGuest.expectedChecksum(after: count) else {
            throw TestError("the guest has lost something: its sum is not that of \(count) steps")
        }
        try qmp.execute("cont")
    }

    // MARK: The mode transfer

    /// Options of a VMM that waits for a guest at a channel.
    static func incoming(_ channel: String) -> [String] {
        [
            "-incoming",
            #"{"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": "\#(channel)"}}"#,
        ]
    }

    /// Starts a VMM that waits for a guest, and returns when it can be reached, or has ended.
    static func startWaiting(_ command: [String], at channel: String) throws -> ChildProcess {
        let process = try ChildProcess(command + incoming(channel))
        try eventually("it waits at its channel; \(process.report)") {
            try !process.isRunning || ListeningSocket.exists(at: channel)
        }
        return process
    }

    // MARK: Progress

    func waitForProgress(past old: UInt64) throws {
        try eventually("the counter passes \(old), it is at \(count); \(process.report)") { self.count > old }
    }

    // MARK: Updates in one step

    /// `cpr-update` without a preflight, which would find most of what goes wrong in tests.
    /// - Returns: the refusal, or "accepted".
    func update(_ argv: [String], timeout: Int = 10_000) -> String {
        refusal { try qmp.execute("cpr-update", ["argv": argv, "timeout-ms": timeout, "preflight": false]) }
    }

    /// Updates to a command that never becomes a VMM; returns when that has been executed.
    func updateToWhatHangs(timeout: Int) throws {
        let started = directory.file("started")
        let script = "touch \(started); while :; do sleep 0.02; done"
        try qmp.executeWithoutAnswer(
            "cpr-update", ["argv": ["bash", "-c", script], "preflight": false, "timeout-ms": timeout])
        try eventually("the exec") { FileManager.default.fileExists(atPath: started) }
    }

    /// The arguments of a counting guest in the background, with its files in a directory.
    static func daemonArguments(in directory: TemporaryDirectory) throws -> [String] {
        [
            Products.baton, "-machine", "virt,memory-backend=ram", "-m", "16M",
            "-object", "memory-backend-memfd,id=ram,size=16M", "-bios", "none", "-kernel", try image(),
            "-daemonize", "-serial", "file:\(directory.file("serial"))", "-pidfile", directory.file("pid"),
            "-cpr-enable", "restart", "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(directory.path)",
        ]
    }

    // MARK: The steps of a restart

    func save(mode: String = "restart") throws {
        try qmp.execute("cpr-save", ["filename": checkpoint, "mode": mode])
    }

    /// Executes the VMM anew, which answers on the same connection.
    func exec(_ argv: [String]? = nil) throws {
        try qmp.execute("cpr-exec", ["argv": argv ?? arguments + ["-S"]])
    }

    func load(mode: String = "restart") throws {
        try qmp.execute("cpr-load", ["filename": checkpoint, "mode": mode])
    }

    func openDescriptors() throws -> [String] {
        let directory = "/proc/\(process.pid)/fd"
        return try FileManager.default.contentsOfDirectory(atPath: directory)
            .map { (try? FileManager.default.destinationOfSymbolicLink(atPath: "\(directory)/\($0)")) ?? "" }
            // Sockets and pipes have numbers of their own in each process.
            .map { String($0.prefix { $0 != ":" }) }.sorted()
    }
}

/// What a QMP server says against a command: `accepted` when it says nothing.
func refusal(_ body: () throws -> Void) -> String {
    do {
        try body()
        return "accepted"
    } catch let refusal as QMPClient.Refusal {
        return refusal.text
    } catch {
        return "\(error)"
    }
}
