import Foundation
import ProcessSupport

/// A machine under KVM in the lab, whose Linux works on all that it has (`Tests/Guests/lab/lab.c`).
final class LabGuest {
    /// What the guest's program says each second.
    struct Report: Codable {
        let boot: String
        /// The guest's uptime, and the lab's time of day when it was read here, in seconds.
        let uptime: Double, time: Double
        /// How often each kind of work was done, and the longest that some took, in us.
        let work: [String: Int]

        fileprivate init?(_ line: String) {
            guard let range = line.range(of: "lab: report ") else { return nil }
            var words: [String: String] = [:]
            for word in line[range.upperBound...].split(separator: " ") {
                let parts = word.split(separator: "=", maxSplits: 1)
                if parts.count == 2 { words[String(parts[0])] = String(parts[1]) }
            }
            guard let boot = words["boot"], let uptime = words["uptime-ms"].flatMap({ Double($0) }) else { return nil }
            self.boot = boot
            self.uptime = uptime / 1000
            time = Date().timeIntervalSince1970
            work = words.compactMapValues { Int($0) }.filter { $0.key != "uptime-ms" }
        }
    }

    /// Changes when the guest goes to another process.
    var session: Session { didSet { listen() } }
    let machine: LabMachine
    let arguments: [String]
    let directory: TemporaryDirectory
    let socket: String
    /// The first is the oldest.
    private(set) var reports: [Report]
    /// What it said when its work began.
    private var introduction: String?
    /// Lines of its kernel's log, of level "warning" or worse, that came since.
    private var kernelLines: [String] = []
    private var failure: String?
    /// What it took the longest to go on with after an update, and how long, in seconds.
    private var slowest: (work: String, seconds: Double) = ("", 0)
    /// The pauses of updates, in us.
    private var pauses: (execs: [Int], handovers: [Int]) = ([], [])

    /// Starts a VMM with a guest that is to boot, or, with `earlier`, one that waits for a guest's state.
    /// - Parameter earlier: what the guest has said in another process.
    init(_ machine: LabMachine, _ context: LabCase.Context, earlier: [Report] = []) throws {
        self.machine = machine
        reports = earlier
        directory = try TemporaryDirectory.scratch()
        socket = directory.file("qmp.sock")
        arguments = try machine.arguments(
            vmm: context.vmm, kernel: machine.kernel.files(context.files).image,
            initrd: "\(context.directory)/\(machine.kernel.initrdName)", directory: directory, socket: socket)
        session = try Session(
            arguments: arguments + (earlier.isEmpty ? [] : ["-S"]), socketPath: socket, directory: directory.path)
        listen()
    }

    /// The guest's initrd: its program, and the modules of its devices.
    static func makeInitrd(_ kernel: LabMachine.Kernel, files: LabFiles, directory: TemporaryDirectory) throws {
        let program = directory.file("lab-init")
        try GuestBuilder().buildLabProgram(to: program)
        var archive = CpioArchive()
        archive.addDirectory("modules")
        archive.addFile("init", mode: 0o755, contents: try Data(contentsOf: URL(fileURLWithPath: program)))
        let modules = try kernel.files(files).modules(kernel.modules, busybox: files.busybox)
        for (number, module) in modules.enumerated() {
            archive.addFile("modules/\(number).ko", mode: 0o644, contents: module)
        }
        try directory.write(kernel.initrdName, archive.finished())
    }

    private func listen() { session.console.onLine = { [unowned self] in read($0) } }

    private func read(_ line: String) {
        if line.contains("lab: FAIL") { failure = failure ?? line }
        if let range = line.range(of: "lab: works ") { introduction = String(line[range.upperBound...]) }
        if let range = line.range(of: "lab: kernel ") { kernelLines.append(String(line[range.upperBound...])) }
        if let report = Report(line) { reports.append(report) }
    }

    func wait(for what: String, seconds: Double, until condition: () throws -> Bool) throws {
        try session.wait(for: what, seconds: seconds) {
            if let failure { throw Failure(failure) }
            return try condition()
        }
    }

    /// Waits until the guest's program works, with all that it is to have.
    func boot() throws {
        try session.connect()
        try wait(for: "report of the guest's program", seconds: 240) { !reports.isEmpty }
        guard introduction == machine.introduction else {
            throw Failure("the guest works with '\(introduction ?? "")', not '\(machine.introduction)'")
        }
    }

    /// Waits until each kind of work was done more often than in an earlier report.
    func awaitWork(since before: Report) throws {
        let start = Clock.now
        var idle: [String] = []
        do {
            try wait(for: "further work of the guest", seconds: 120) {
                let still = machine.work.filter { reports.last?.work[$0] ?? 0 <= before.work[$0] ?? 0 }.sorted()
                if !still.isEmpty { idle = still }
                return still.isEmpty
            }
        } catch {
            throw Failure("\(error)\nwhat stands still: \(idle.joined(separator: ", "))")
        }
        let took = Clock.now - start
        if took > slowest.seconds { slowest = (idle.joined(separator: ", "), took) }
    }

    /// Has the guest end, and checks that nothing was lost since it began: it never booted again, its clock goes at
    /// the pace of the lab's, and its kernel has nothing to complain about.
    /// - Parameter restarts: of the lab's Linux, meanwhile.
    func finish(restarts: Int = 0) throws {
        session.console.type("end\n".utf8)
        try session.waitForEnd()
        if let failure { throw Failure(failure) }
        let complaints = kernelLines.filter { !Self.isOfEmulation($0) && (restarts == 0 || !Self.isOfPause($0)) }
        guard complaints.isEmpty else { throw Failure("its kernel says: \(complaints.joined(separator: "; "))") }
        guard let first = reports.first, let last = reports.last else { throw Failure("it said nothing") }
        guard reports.allSatisfy({ $0.boot == first.boot }) else { throw Failure("it has booted again") }
        for (before, after) in zip(reports, reports.dropFirst()) where after.uptime < before.uptime {
            throw Failure("its uptime was \(before.uptime) s, and then \(after.uptime) s")
        }
        let apart = (last.uptime - first.uptime) - (last.time - first.time)
        // A Linux that starts reads its time of day from a clock of whole seconds.
        guard abs(apart) < Self.tolerance + Double(restarts) else {
            throw Failure("its clock is \(apart) s off after \(last.time - first.time) s")
        }
    }

    /// Takes note of how long the guest stood still in the last update.
    func notePause() {
        guard let phases = session.lastUpdate(), let exec = phases["exec-pause-us"] as? Int,
            let handover = phases["pause-us"] as? Int
        else { return }
        pauses.execs.append(exec)
        pauses.handovers.append(handover)
    }

    /// The pauses' medians.
    var pauseSummary: String {
        guard !pauses.execs.isEmpty else { return "" }
        let exec = pauses.execs.sorted()[pauses.execs.count / 2]
        let handover = pauses.handovers.sorted()[pauses.handovers.count / 2]
        return String(format: "; pauses %.1f and %.1f ms", Double(exec) / 1000, Double(handover) / 1000)
    }

    /// What was done, for the case's line.
    var summary: String {
        guard let last = reports.last else { return "" }
        let longest = last.work.filter { $0.key.hasPrefix("longest-") && $0.value > 0 }.sorted { $0.key < $1.key }
        let done = last.work.filter { machine.work.contains($0.key) }.sorted { $0.key < $1.key }
        return done.map { "\($0.value) \($0.key)" }.joined(separator: ", ") + "; "
            + longest.map { "\($0.key.dropLast(3).replacingOccurrences(of: "-", with: " ")) \($0.value / 1000) ms" }
            .joined(separator: ", ")
            + String(format: "; at work again after at most %.0f s (%@)", slowest.seconds, slowest.work) + pauseSummary
    }

    /// How long a report may take to come, in seconds: the console is slow, and the machine may be busy.
    private static let tolerance = 3.0

    /// Linux compares kvm-clock with the time-stamp counter over some microseconds, and in an emulator a reading may
    /// take as long: it finds a skew without any update, too. The guest's program compares them over seconds.
    private static func isOfEmulation(_ line: String) -> Bool {
        line.hasPrefix("clocksource: ")
            && ["frequency skew", "kvm-clock interval", "tsc interval"].contains { line.contains($0) }
    }

    /// A card that had a frame in hand over more than five seconds.
    private static func isOfPause(_ line: String) -> Bool {
        line.hasPrefix("virtio_net ") && ["NETDEV WATCHDOG", "TX timeout"].contains { line.contains($0) }
    }
}
