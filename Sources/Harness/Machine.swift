import Foundation
import HarnessSystem
import ProcessSupport

/// A VM under test: the VMM as a real process, with clients on everything that
/// it offers, and its guest's RAM as seen from outside.
package final class Machine {
    package struct Options {
        /// Whether the guest runs when `init` returns.
        package var starts = true
        /// Where the serial port goes.
        package var serialToFile = false
        /// RAM that ends with its process.
        package var volatileMemory = false
        /// `-cpr-enable`, and the modules.
        package var enables = true
        /// The harness' probe in the VMM.
        package var probe = false
        /// The preservers under test.
        package var preservers = true
        package var harts = 1
        /// An image that keeps the guest's page and writes its lines, in place of the guest.
        package var kernel: String?
        /// The image of the disk, of the caller's; one of `diskSize` bytes is made if nil.
        package var disk: String?
        package var diskSize = 1 << 20
        /// The arguments of the disk, in place of one in a file that the VMM has open, for files in the machine's directory.
        package var diskArguments: ((TemporaryDirectory) throws -> [String])?
        /// More arguments, for files in the machine's directory.
        package var more: (TemporaryDirectory) throws -> [String] = { _ in [] }

        package init(starts: Bool = true) { self.starts = starts }
    }

    static let memorySize = 16 << 20

    /// The guest.
    var guest: any GuestProgram.Type { configuration.machine.guest }
    package let configuration: HarnessConfiguration
    let options: Options
    package let directory: TemporaryDirectory
    package let arguments: [String]
    /// The mode of what is done next; at first the configuration's.
    package var mode: String
    /// Whether the mode promises it; else clients connect anew where needed.
    var keepsConnections = true
    package private(set) var process: ChildProcess
    package private(set) var qmp: QMPClient
    package private(set) var serial: SerialLine?
    package var monitor: StreamClient?
    private var memory: SharedMemory?

    var checkpoint: String { directory.file("checkpoint") }
    var logFile: String { directory.file("log") }
    var serialFile: String { directory.file("serial.txt") }
    var pidFile: String { directory.file("pid") }
    /// Where a new VMM waits for the guest.
    var channel: String { directory.file("channel") }
    private static let marker = "BATON_HARNESS_RUN"

    package init(_ configuration: HarnessConfiguration, _ options: Options) throws {
        self.configuration = configuration
        self.options = options
        mode = configuration.mode
        directory = try TemporaryDirectory()
        let image = try options.kernel ?? directory.write("guest.bin", Data(configuration.machine.guest.image()))
        let disk =
            try options.diskArguments?(directory)
            ?? Self.diskArguments(
                options.disk ?? directory.writeSparse("disk", size: options.diskSize))
        var arguments = [configuration.baton] + configuration.machine.arguments
        arguments += [
            "-m", "16M", "-smp", "\(options.harts)", "-kernel", image, "-nodefaults", "-nographic",
            "-name", URL(fileURLWithPath: directory.path).lastPathComponent,
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off",
            "-monitor", "unix:\(directory.file("hmp")),server=on,wait=off",
            "-chardev", "file,id=log,path=\(directory.file("log"))", "-chardev", "pty,id=pty",
            "-serial",
            options.serialToFile
                ? "file:\(directory.file("serial.txt"))" : "unix:\(directory.file("serial")),server=on,wait=off",
            // For checkpoints, channels and what else comes later.
            "-sandbox", "paths=\(directory.path)",
        ]
        arguments += disk + ["-device", "virtio-rng-device", "-pidfile", directory.file("pid")]
        if options.volatileMemory {
            arguments += ["-object", "memory-backend-ram,id=ram,size=16M"]
        } else if let type = configuration.memoryBackend {
            arguments += ["-object", "\(type),id=ram,size=16M"]
        } else {
            let ram = try directory.writeSparse("ram", size: Self.memorySize)
            arguments += ["-object", "memory-backend-file,id=ram,size=16M,mem-path=\(ram),share=on"]
        }
        // Guest RAM may be one of the modules' own.
        if options.enables || configuration.memoryBackend != nil {
            arguments += configuration.modules.flatMap { ["-module", $0] }
        }
        if options.enables { arguments += ["-cpr-enable", configuration.mode] }
        if options.probe { arguments += ["-module", try configuration.findModule("preserver-harness-probe")] }
        if options.preservers { arguments += configuration.arguments }
        arguments += try options.more(directory)
        self.arguments = arguments
        process = try Self.start(arguments + ["-S"], configuration, directory)
        do {
            let (process, socket) = (process, directory.file("qmp"))
            try eventually("the VMM listens", by: configuration.startDeadline) {
                guard process.isRunning else { throw Failure("the VMM ended") }
                return try ListeningSocket.exists(at: socket)
            }
            qmp = try QMPClient(path: socket, of: process, by: configuration.startDeadline)
            if !options.volatileMemory && configuration.memoryBackend == nil {
                memory = try SharedMemory(path: directory.file("ram"))
            }
            try connectOthers(fromStart: true)
            if options.starts {
                try execute("cont")
                try eventually("the guest counts", by: configuration.startDeadline) {
                    try self.isPrepared() && self.count() > 0
                }
            }
        } catch {
            _ = try? process.waitForExit(by: .seconds(0.1))
            let report = process.report
            Self.endAll(of: directory.path)
            throw Failure("\(error); \(report)")
        }
    }

    deinit { Self.endAll(of: directory.path) }

    private static func diskArguments(_ image: String) -> [String] {
        ["-drive", "file=\(image),format=raw,if=none,id=disk", "-device", "virtio-blk-device,drive=disk"]
    }

    private static func start(
        _ arguments: [String], _ configuration: HarnessConfiguration, _ directory: TemporaryDirectory
    ) throws -> ChildProcess {
        var environment = configuration.environment.merging(mark(directory.path)) { $1 }
        environment["BATON_HARNESS_PROBE"] = directory.file("probe")
        return try ChildProcess(arguments, environment: environment)
    }

    private func connectOthers(fromStart: Bool) throws {
        monitor = try StreamClient(socket: directory.file("hmp"), patience: configuration.timeout)
        try monitor?.expect("(baton) ")
        try connectSerial(fromStart: fromStart)
    }

    private func connectSerial(fromStart: Bool) throws {
        guard !options.serialToFile else { return }
        let client = try StreamClient(socket: directory.file("serial"), patience: configuration.timeout)
        serial = SerialLine(client, stepsPerLine: guest.stepsPerLine, fromStart: fromStart)
    }

    // MARK: Processes

    /// What a process has in its environment that is one of a machine's, and ends with that.
    package static func mark(_ directory: String) -> [String: String] { [marker: directory] }

    /// Every process that this VM's first one has left, by the mark in its
    /// environment: old and new VMMs, wrappers. Not the warden of its sandbox, which is there until there is none of them.
    package static func processes(of directory: String) -> [pid_t] {
        allProcesses(of: directory).filter { pid in
            (try? ProcFile.text("/proc/\(pid)/comm"))?.hasPrefix("baton-warden") != true
        }
    }

    private static func allProcesses(of directory: String) -> [pid_t] {
        let mark = Data("\(marker)=\(directory)\0".utf8)
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap { pid_t($0) }.filter { pid in
            guard let environment = try? Data(contentsOf: URL(fileURLWithPath: "/proc/\(pid)/environ")) else {
                return false
            }
            return environment.range(of: mark) != nil
        }
    }
    package func processes() -> [pid_t] { Self.processes(of: directory.path) }

    /// An old VMM goes on when the new one ends, so this goes on until none is left. A warden ends by itself then.
    package static func endAll(of directory: String) {
        for _ in 0..<1000 {
            if allProcesses(of: directory).isEmpty { return }
            for pid in processes(of: directory) { kill(pid, SIGKILL) }
            usleep(1000)
        }
    }

    /// The PID in the PID file.
    package func statedPID() throws -> pid_t {
        let text = try String(contentsOfFile: pidFile, encoding: .utf8)
        guard let pid = pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines)) else {
            throw Failure("the PID file holds '\(text)'")
        }
        return pid
    }

    // MARK: QMP

    @discardableResult
    package func execute(_ command: String, _ arguments: [String: Any] = [:]) throws -> Any {
        try qmp.execute(command, arguments, by: configuration.deadline)
    }
    package func query(_ command: String) throws -> [String: Any] { try execute(command) as? [String: Any] ?? [:] }
    package func status() throws -> String { try query("query-status")["status"] as? String ?? "" }

    /// What the VMM says against a command; nil when it carries it out.
    func refusal(_ command: String, _ arguments: [String: Any] = [:]) throws -> String? {
        do {
            try execute(command, arguments)
            return nil
        } catch let refusal as QMPClient.Refusal {
            try require(!refusal.text.isEmpty, "\(command) was refused without a reason")
            return refusal.text
        }
    }

    func humanCommand(_ line: String) throws -> String {
        try execute("human-monitor-command", ["command-line": line]) as? String ?? ""
    }

    /// Connects anew where the mode does not promise to keep connections.
    func reconnect(by deadline: Deadline? = nil) throws {
        qmp = try QMPClient(path: directory.file("qmp"), by: deadline ?? configuration.deadline)
        try connectOthers(fromStart: false)
    }

    /// Starts a VMM to wait for `cpr-load`, by default as the first was started.
    package func startAnew(_ arguments: [String]? = nil) throws {
        process = try Self.start((arguments ?? self.arguments) + ["-S"], configuration, directory)
        do {
            try reconnect(by: configuration.startDeadline)
        } catch {
            throw Failure("the new start: \(error); \(process.report)")
        }
    }

    /// Starts a VMM of this machine.
    func start(arguments: [String]) throws -> ChildProcess { try Self.start(arguments, configuration, directory) }

    /// The guest is in another process, which the monitors' clients have to find; the serial line's is connected still.
    package func goOn(with new: ChildProcess, reconnectsMonitor: Bool) throws {
        process = new
        qmp = try QMPClient(path: directory.file("qmp"), of: new, by: configuration.startDeadline)
        guard reconnectsMonitor else { return }
        monitor = try StreamClient(socket: directory.file("hmp"), patience: configuration.timeout)
        try monitor?.expect("(baton) ")
        if !keepsConnections { try connectSerial(fromStart: false) }
    }

    // MARK: The guest

    /// A word of guest RAM.
    package func word(_ address: UInt64) throws -> UInt64 {
        if let memory { return memory.load(UInt64.self, at: Int(address - configuration.machine.ramStart)) }
        return try qmp.guestWord(at: address, by: configuration.deadline)
    }
    func isPrepared() throws -> Bool { try word(guest.page) == Counting.magic }
    package func count() throws -> UInt64 { try word(guest.page + 8) }

    /// Where the guest stops now, for good: its count after `stop`.
    package func stop() throws -> UInt64 {
        try execute("stop")
        return try count()
    }
}
