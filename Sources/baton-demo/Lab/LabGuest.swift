import Foundation
import ProcessSupport

/// A machine under KVM in the lab, whose Linux works on all that it has (`Tests/Guests/lab/lab.c`).
final class LabGuest {
    /// What the guest has: nothing, or a disk and two network cards that are joined outside, on virtio-mmio or
    /// virtio-pci.
    enum Devices: Equatable {
        case none, mmio, pci
        /// As with `pci`, and devices of the lab's by their addresses: an edu and an NVMe disk.
        case passedThrough([String])
    }

    /// What the guest's program says each second.
    struct Report {
        let boot: String
        /// The guest's uptime, and the lab's clock when it was read here, in seconds.
        let uptime: Double, time: Double
        /// How often each kind of work was done.
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
            time = Clock.now
            work = words.compactMapValues { Int($0) }.filter { LabGuest.kinds.contains($0.key) }
        }
    }

    fileprivate static let kinds: Set = [
        "blocks", "frames", "sleeps", "alarms", "signals", "rounds", "readings", "passed-blocks", "transfers",
    ]

    let session: Session
    private let arguments: [String]
    private(set) var reports: [Report] = []
    /// What it said when its work began.
    private(set) var introduction: String?
    /// Lines of its kernel's log, of level "warning" or worse, that came since.
    private(set) var kernelLines: [String] = []
    private var failure: String?
    private let devices: Devices

    /// - Parameter initrd: with the program and its modules, as `makeInitrd` makes it.
    init(vmm: String, kernel: String, initrd: String, cpus: Int, devices: Devices, directory: TemporaryDirectory) throws
    {
        self.devices = devices
        let socket = directory.file("qmp.sock"), isPCI = ![.none, .mmio].contains(devices)
        var arguments = [
            vmm, "-M", "microvm,memory-backend=ram\(isPCI ? ",pcie=on" : "")", "-accel", "kvm", "-cpu",
            "host",
            "-smp", "\(cpus)", "-m", "512M", "-object", "memory-backend-memfd,id=ram,size=512M,share=on",
            "-cpr-enable", "restart", "-only-cpr-capable", "-kernel", kernel, "-initrd", initrd,
            "-append", Self.commandLine, "-nodefaults", "-display", "none", "-serial", "stdio", "-monitor", "none",
            "-qmp", "unix:\(socket),server=on,wait=off",
        ]
        if devices != .none {
            let disk = try directory.writeSparse("disk.img", size: 8 << 20), bus = isPCI ? "pci" : "device"
            arguments += [
                "-drive", "file=\(disk),format=raw,if=none,id=disk", "-device", "virtio-blk-\(bus),drive=disk",
            ]
            for (end, other) in [("a", "b"), ("b", "a")] {
                let addresses =
                    "local.type=unix,local.path=\(directory.file(end)),"
                    + "remote.type=unix,remote.path=\(directory.file(other))"
                arguments += [
                    "-netdev", "dgram,id=\(end),\(addresses)", "-device", "virtio-net-\(bus),netdev=\(end)",
                ]
            }
        }
        if case .passedThrough(let addresses) = devices {
            for address in addresses { arguments += ["-device", "vfio-pci,host=\(address)"] }
        }
        self.arguments = arguments
        session = try Session(arguments: arguments, socketPath: socket, directory: directory.path)
        session.console.onLine = { [unowned self] in read($0) }
    }

    /// In an emulated KVM each character on the console, and each calibration against a timer, takes a while.
    private static let commandLine =
        "console=ttyS0 reboot=t panic=-1 quiet init_on_alloc=0 mitigations=off random.trust_cpu=on "
        + "cryptomgr.notests nokaslr no_timer_check net.ifnames=0"

    static let initrdName = "guest-initrd"

    /// The guest's initrd: its program, and the modules of its devices.
    static func makeInitrd(files: LabFiles, directory: TemporaryDirectory) throws {
        let program = directory.file("lab-init")
        try GuestBuilder().buildLabProgram(to: program)
        var archive = CpioArchive()
        archive.addDirectory("modules")
        archive.addFile("init", mode: 0o755, contents: try Data(contentsOf: URL(fileURLWithPath: program)))
        let modules = try files.guest.modules(
            ["virtio_mmio", "virtio_blk", "virtio_net", "uio_pci_generic", "nvme"], busybox: files.busybox)
        for (number, module) in modules.enumerated() {
            archive.addFile("modules/\(number).ko", mode: 0o644, contents: module)
        }
        try directory.write(initrdName, archive.finished())
    }

    private var hasOwnDevices: Bool { devices != .none }
    private var hasPassedThrough: Bool { if case .passedThrough = devices { true } else { false } }

    private func read(_ line: String) {
        if line.contains("lab: FAIL") { failure = failure ?? line }
        if let range = line.range(of: "lab: works ") { introduction = String(line[range.upperBound...]) }
        if let range = line.range(of: "lab: kernel ") { kernelLines.append(String(line[range.upperBound...])) }
        if let report = Report(line) { reports.append(report) }
    }

    private func wait(for what: String, seconds: Double, until condition: () throws -> Bool) throws {
        try session.wait(for: what, seconds: seconds) {
            if let failure { throw Failure(failure) }
            return try condition()
        }
    }

    /// Waits until the guest's program works, with all that it is to have.
    func boot(cpus: Int) throws {
        try session.connect()
        try wait(for: "report of the guest's program", seconds: 240) { !reports.isEmpty }
        let (own, passed) = (hasOwnDevices ? 1 : 0, hasPassedThrough ? 1 : 0)
        let expected = "cpus=\(cpus) disk=\(own) cards=\(2 * own) edu=\(passed) clock=kvm-clock"
        guard introduction == expected else {
            throw Failure("the guest works with '\(introduction ?? "")', not '\(expected)'")
        }
    }

    /// Replaces the VMM, and waits until the guest has gone on with all of its work.
    func update() throws {
        guard let before = reports.last else { throw Failure("the guest has not begun") }
        let process = try session.peerProcess()
        // The limits are for machines, not for an emulator of one.
        try session.command("cpr-update", ["argv": arguments, "timeout-ms": 100_000, "downtime-ms": 20_000])
        guard try session.peerProcess() == process, session.process.pid == process else {
            throw Failure("the VMM has another PID than \(process)")
        }
        try awaitWork(since: before)
    }

    /// Waits until each kind of work was done more often than in an earlier report.
    func awaitWork(since before: Report) throws {
        let kinds = Self.kinds.filter {
            switch $0 {
            case "blocks", "frames": hasOwnDevices
            case "passed-blocks", "transfers": hasPassedThrough
            default: true
            }
        }
        func idle() -> [String] {
            kinds.filter { reports.last?.work[$0] ?? 0 <= before.work[$0] ?? 0 }.sorted()
        }
        do {
            try wait(for: "further work of the guest", seconds: 120) { idle().isEmpty }
        } catch {
            throw Failure("\(error)\nwhat stands still: \(idle().joined(separator: ", "))")
        }
    }

    /// Has the guest end, and checks that nothing was lost since it began: it never booted again, its clock goes at
    /// the pace of the lab's, and its kernel has nothing to complain about.
    func finish() throws {
        session.console.type("end\n".utf8)
        try session.waitForEnd()
        if let failure { throw Failure(failure) }
        let complaints = kernelLines.filter { !Self.isOfEmulation($0) }
        guard complaints.isEmpty else { throw Failure("its kernel says: \(complaints.joined(separator: "; "))") }
        guard let first = reports.first, let last = reports.last else { throw Failure("it said nothing") }
        guard reports.allSatisfy({ $0.boot == first.boot }) else { throw Failure("it has booted again") }
        for (before, after) in zip(reports, reports.dropFirst()) where after.uptime < before.uptime {
            throw Failure("its uptime was \(before.uptime) s, and then \(after.uptime) s")
        }
        let apart = (last.uptime - first.uptime) - (last.time - first.time)
        guard abs(apart) < Self.tolerance else {
            throw Failure("its clock is \(apart) s off after \(last.time - first.time) s")
        }
    }

    /// How long a report may take to come, in seconds: the console is slow, and the machine may be busy.
    private static let tolerance = 3.0

    /// Linux compares kvm-clock with the time-stamp counter over some microseconds, and in an emulator a reading may
    /// take as long: it finds a skew without any update, too. The guest's program compares them over seconds.
    private static func isOfEmulation(_ line: String) -> Bool {
        line.hasPrefix("clocksource: ")
            && ["frequency skew", "kvm-clock interval", "tsc interval"].contains { line.contains($0) }
    }
}
