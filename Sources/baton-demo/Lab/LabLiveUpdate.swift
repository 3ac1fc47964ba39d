import Foundation
import Glibc
import ProcessSupport

/// Mode liveupdate over kexecs of the lab's Linux, under a riscv64 Debian on CPUs in software: guest RAM goes through
/// them in the kernel's own hands. The guest boots outside, where that takes seconds, and comes into the lab by mode
/// reboot. The case runs anew in each Linux, and finds in the lab's shared directory how far it is.
struct LabLiveUpdate {
    /// Of the lab's Linux, under one guest.
    static let kexecs = 5
    private static let name = "lab-debian"
    /// Seconds: the guest says its time of day in whole ones.
    private static let tolerance = 1.5
    /// Seconds that the guest's clocks may take to be right.
    private static let catchUpLimit = 30.0

    /// What the guest's shell says of its clocks.
    private struct Sample: Codable {
        let boot: String
        /// Seconds: the guest's uptime and time of day.
        let uptime: Double, time: Double
        /// The lab's time of day when the guest was asked, and when it had answered, which takes it seconds.
        let asked: Double, answered: Double
        /// Lines of its kernel's log about CPUs that stood still.
        let complaints: Int

        /// - Parameter asked: when the guest was.
        init?(_ line: String, asked: Double) {
            let words = line.split(separator: " ")
            guard words.count == 5, words[0] == "baton-clock", let uptime = Double(words[1]),
                let time = Double(words[2]), let complaints = Int(words[4])
            else { return nil }
            (boot, self.uptime, self.time, self.complaints) = (String(words[3]), uptime, time, complaints)
            self.asked = asked
            answered = Date().timeIntervalSince1970
        }

        // The sum keeps the echo of what is typed from looking like the answer.
        static let question =
            "echo baton-$(echo clock) $(cut -d' ' -f1 /proc/uptime) $(date +%s) $(cat /proc/sys/kernel/random/boot_id) "
            + "$(dmesg | grep -ciE 'lockup|stall|hung task')\n"
    }

    /// What is known of the guest from one Linux to the next.
    private struct Progress: Codable {
        var kexecs = 0
        var report: GuestReport?
        var samples: [Sample] = []
        /// By phases, as the VMM has measured it.
        var pauses: [String] = []
    }

    private let directory: String
    private let arguments: [String]
    private let scratch: TemporaryDirectory
    private var record: String { "\(directory)/live-progress.json" }
    private static func checkpoint(_ directory: String) -> String { "\(directory)/live-checkpoint" }

    // MARK: Outside

    /// Boots the guest, and saves it.
    static func prepare(_ files: LabFiles, vmm: String, cache: String, directory: TemporaryDirectory) throws {
        try GuestBuilder().buildKexecProgram(to: directory.file(LabHost.kexecProgram))
        let installer = try DebianInstaller(cache: cache).obtain { print($0) }
        let guest = try Guest.debian(.virt, files: installer, directory: directory)
        try LabLiveUpdateFailures.prepare(directory: directory)
        let scratch = try TemporaryDirectory.scratch()
        let line = arguments(
            vmm: vmm, guest: guest.arguments, socket: scratch.file("qmp.sock"), sandbox: "paths=\(directory.path)")
        let session = try Session(arguments: line, socketPath: scratch.file("qmp.sock"), directory: scratch.path)
        let checker = ReportChecker(model: guest.model)
        session.console.onReport = { checker.check($0) }
        try session.connect()
        try session.wait(for: "reports of the guest's program", seconds: 240) { checker.checked >= 2 }
        if let error = checker.error { throw Failure(error) }
        try session.command("cpr-save", ["filename": checkpoint(directory.path), "mode": "reboot"])
        session.console.drain()
        var progress = Progress()
        progress.report = session.console.report
        try JSONEncoder().encode(progress).write(to: URL(fileURLWithPath: directory.file("live-progress.json")))
        try JSONEncoder().encode(guest.arguments).write(to: URL(fileURLWithPath: directory.file("live-guest.json")))
        try session.command("quit")
        try session.waitForEnd()
    }

    private static func arguments(vmm: String, guest: [String], socket: String, sandbox: String) -> [String] {
        // Each byte of it takes its time in the lab.
        let machine = GuestMachine.virt.options(bios: "default").map {
            $0.replacingOccurrences(of: "512M", with: "256M")
        }
        return [vmm, "-name", name] + machine + ["-cpr-enable", "reboot,liveupdate"] + guest
            + [
                "-sandbox", sandbox,
                "-nographic", "-serial", "stdio", "-monitor", "none", "-rtc", "base=utc,clock=host",
                "-qmp", "unix:\(socket),server=on,wait=off",
            ]
    }

    // MARK: In the lab

    private init(_ context: LabCase.Context) throws {
        directory = context.directory
        try LabHost.mountShared(directory)
        scratch = try TemporaryDirectory.scratch()
        let guest = try JSONDecoder().decode(
            [String].self, from: Data(contentsOf: URL(fileURLWithPath: "\(directory)/live-guest.json")))
        arguments = Self.arguments(
            vmm: context.vmm, guest: guest, socket: scratch.file("qmp.sock"), sandbox: "on,paths=\(directory)")
    }

    /// - Returns: what was seen, after the last kexec. At all others the lab's Linux ends in here.
    static func run(_ context: LabCase.Context) throws -> String {
        let lab = try LabLiveUpdate(context)
        var progress = try JSONDecoder().decode(
            Progress.self, from: Data(contentsOf: URL(fileURLWithPath: lab.record)))
        do {
            return try lab.go(&progress, context)
        } catch {
            throw Failure("after \(progress.kexecs) kexecs of the lab: \(error)")
        }
    }

    private func go(_ progress: inout Progress, _ context: LabCase.Context) throws -> String {
        let isFirst = progress.kexecs == 0
        let failures = try LabLiveUpdateFailures(context, directory: directory)
        if isFirst { try failures.beforeAnyKexec() }
        let model = DemoModel(), checker = ReportChecker(model: model, after: progress.report)
        var samples: [Sample] = []
        let session = try Session(
            arguments: arguments + ["-S"], socketPath: scratch.file("qmp.sock"), directory: scratch.path)
        session.console.onReport = { checker.check($0) }
        var asked = 0.0
        session.console.onLine = { if let sample = Sample($0, asked: asked) { samples.append(sample) } }
        try session.connect()
        let file = Self.checkpoint(directory)
        try session.command("cpr-load", ["filename": file, "mode": isFirst ? "reboot" : "liveupdate"], seconds: 600)
        guard try session.status() == "running" else {
            throw Failure("the VM is \(try session.status()) after cpr-load, and not running")
        }
        func awaitReports(_ count: Int) throws {
            let target = checker.checked + count
            try session.wait(for: "further report of the guest", seconds: 240) {
                if let error = checker.error { throw Failure(error) }
                return checker.checked >= target
            }
        }
        try awaitReports(2)
        if !isFirst, let pause = session.hostPause() { progress.pauses.append(pause) }
        // A long time comes to the guest in steps.
        let deadline = Clock.now + Self.catchUpLimit
        while true {
            samples = []
            asked = Date().timeIntervalSince1970
            session.console.type(Array(Sample.question.utf8))
            try session.wait(for: "answer of the guest's shell", seconds: 240) { !samples.isEmpty }
            do {
                try check(progress.samples + samples.prefix(1))
                break
            } catch {
                guard Clock.now < deadline else { throw error }
            }
        }
        progress.samples += samples.prefix(1)
        // Between stop and cont nothing is in flight.
        try session.command("stop")
        let records = try DiskImage(path: "\(directory)/disk.img").verify(
            model: model, atLeast: session.console.report?.count ?? 0)
        try session.command("cont")
        try awaitReports(1)

        guard progress.kexecs < Self.kexecs else {
            try session.command("quit")
            try session.waitForEnd()
            let refused = try failures.afterLastKexec()
            let last = progress.samples.last?.uptime ?? 0
            return "\(Self.kexecs) kexecs, nothing lost: uptime \(Int(last)) s and the same boot, memory right, "
                + "\(records) records on the disk; " + progress.pauses.joined(separator: "; ") + "; " + refused
        }
        var others: [AnyObject] = []
        if progress.kexecs == Self.kexecs - 1 { others = try failures.beforeLastKexec() }
        try session.command("cpr-save", ["filename": file, "mode": "liveupdate"], seconds: 300)
        session.console.drain()
        progress.kexecs += 1
        progress.report = session.console.report
        try JSONEncoder().encode(progress).write(to: URL(fileURLWithPath: record))
        // The VMMs wait on, and their sessions with them.
        return try withExtendedLifetime((session, others)) {
            try LabHost.restart(
                kexec: "\(directory)/\(LabHost.kexecProgram)", kernel: context.files.own, context.files,
                initrd: "\(directory)/\(LabHost.initrdName)")
        }
    }

    /// The guest's clocks go on, and its kernel has nothing to complain about.
    private func check(_ samples: [Sample]) throws {
        guard let first = samples.first, let last = samples.last else { return }
        guard last.boot == first.boot else { throw Failure("the guest has booted again") }
        guard last.complaints == first.complaints else {
            throw Failure("the guest's kernel says \(last.complaints - first.complaints) times that a CPU stood still")
        }
        // A Linux that starts reads its time of day from a clock of whole seconds.
        let tolerance = Self.tolerance + Double(samples.count)
        let passed = last.asked - first.answered - tolerance...last.answered - first.asked + tolerance
        guard passed.contains(last.uptime - first.uptime) else {
            throw Failure("the guest's uptime went on by \(last.uptime - first.uptime) s in \(passed) s")
        }
        guard (last.asked - tolerance...last.answered + tolerance).contains(last.time) else {
            throw Failure("the guest's time of day is \(last.time) at \(last.answered)")
        }
    }
}

extension Session {
    /// The guest's pause over an update of the host, with its parts, in seconds.
    func hostPause() -> String? { lastUpdate().flatMap { LabLiveUpdate.pause($0) } }
}

extension LabLiveUpdate {
    /// The guest's pause, with its parts, in seconds.
    /// - Parameter phases: as `query-cpr` has them.
    static func pause(_ phases: [String: Any]) -> String? {
        guard let total = phases["pause-us"] as? Int else { return nil }
        func seconds(_ names: String...) -> Double {
            Double(names.reduce(0) { $0 + (phases["\($1)-us"] as? Int ?? 0) }) / 1e6
        }
        return String(
            format: "pause %.1f s (save %.1f, kexec %.1f, boot %.1f, load %.1f)", Double(total) / 1e6,
            seconds("stop", "drain", "save"), seconds("kexec"), seconds("boot"),
            seconds("start-up", "map", "wait-load", "load", "resume"))
    }
}
