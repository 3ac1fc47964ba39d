import ArgumentParser
import Foundation
import ProcessSupport

/// `baton-demo bench`: the figures behind `make bench`.
struct BenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench",
        abstract: "Measures guest instructions a second, start-up, and the guest's pause in a restart.")

    @Option(help: "The VMM to measure (default: baton beside this program).")
    var vmm: String?

    @Option(help: "How often to measure start-up and restart.")
    var repetitions = 20

    @Option(help: "Directory to keep downloads in.")
    var cache = ".cache"

    @Flag(help: "Measure the guest's pause in a restart only.")
    var pauseOnly = false

    @Option(help: "Of the pauses, measure only rows with TEXT in their names; may be given several times.")
    var row: [String] = []

    @Flag(help: "Measure a guest on KVM only.")
    var kvmOnly = false

    @Option(help: "Write a picture (SVG) of an update to this file.")
    var picture: String?

    @Flag(help: "Measure what the picture shows only.")
    var pictureOnly = false

    @Flag(help: "Measure disks only.")
    var disksOnly = false

    func run() throws {
        setvbuf(stdout, nil, Int32(_IOLBF), 0)
        let directory = try TemporaryDirectory.scratch()
        let baton = try RunCommand.locate(vmm: vmm)
        if kvmOnly { return try kvm(baton: baton, directory: directory) }
        if pictureOnly { return try draw(baton: baton, directory: directory) }
        if disksOnly { return try disks(baton: baton, directory: directory) }
        if !pauseOnly {
            try speed(baton: baton, directory: directory)
            try StartUpBenchmark(vmm: baton, repetitions: repetitions, directory: directory).run()
            try disks(baton: baton, directory: directory)
        }
        if row.isEmpty { try RestartBenchmark(vmm: baton, repetitions: repetitions, directory: directory).run() }
        try PauseBenchmark(
            vmm: baton, qemu: findQEMU(.riscv64), repetitions: repetitions, rows: row, directory: directory
        ).run()
        if row.isEmpty { try draw(baton: baton, directory: directory) }
        if !pauseOnly { try kvm(baton: baton, directory: directory) }
    }

    private func draw(baton: String, directory: TemporaryDirectory) throws {
        guard let picture else { return }
        let update = try UpdatePicture.measured(vmm: baton, repetitions: repetitions, directory: directory)
        try update.svg().write(toFile: picture, atomically: true, encoding: .utf8)
        print("a picture of an update: \(picture)")
    }

    /// Beside the installed QEMU, of whichever version, or else the one in the cache.
    private func disks(baton: String, directory: TemporaryDirectory) throws {
        let qemu = Tool.find("qemu-system-riscv64").map { [$0] } ?? findQEMU(.riscv64)?.command
        try BlockBenchmark(
            vmm: baton, qemu: qemu, repetitions: min(max(repetitions, 1), 5), directory: directory
        ).run()
    }

    private func findQEMU(_ target: QEMUInstallation.Target) -> QEMUInstallation? {
        do {
            return try QEMUInstallation.find(target, cache: cache) { print($0) }
        } catch {
            print("no \(target.program) with cpr-exec to measure beside: \(error)")
            return nil
        }
    }

    private func kvm(baton: String, directory: TemporaryDirectory) throws {
        if let obstacle = KVMBenchmark.obstacle { return print("KVM: skipped: \(obstacle)") }
        var benchmark = try KVMBenchmark(
            vmm: baton, qemu: findQEMU(.x86_64), repetitions: repetitions, directory: directory)
        try benchmark.run()
    }

    /// Runs the same image under both VMMs. Only baton counts instructions
    /// exactly; the other one's time is divided into the same number.
    private func speed(baton: String, directory: TemporaryDirectory) throws {
        let image = directory.file("bench.bin")
        try GuestBuilder().build(.bench, to: image)
        let own = try ComputeRun(vmm: baton, image: image, directory: directory)
        print("integer code (\(own.instructions / 1_000_000) million guest instructions, CoreMark-like):")
        func show(_ name: String, _ run: ComputeRun) {
            let rate = Double(own.instructions) / run.seconds / 1e6
            print(String(format: "  %-20@ %8.0f million a second  (%.2f s)", name as NSString, rate, run.seconds))
        }
        show("baton", own)
        guard let qemu = Tool.find("qemu-system-riscv64") else {
            print("  qemu-system-riscv64 is not installed")
            return
        }
        let other = try ComputeRun(vmm: qemu, image: image, directory: directory)
        show("qemu-system-riscv64", other)
        guard other.check == own.check else {
            throw Failure("the guests' results differ: \(own.check), \(other.check)")
        }
    }
}

/// One run of the bench guest.
struct ComputeRun {
    let seconds: Double
    let instructions: UInt64
    /// What the guest computed.
    let check: String

    init(vmm: String, image: String, directory: TemporaryDirectory) throws {
        let session = try Session(
            arguments: [
                vmm, "-machine", "virt", "-m", "64M", "-bios", "none", "-kernel", image, "-nographic",
                "-serial", "stdio", "-monitor", "none",
            ], socketPath: "", directory: directory.path)
        let console = session.console
        func line(_ marker: String) -> String? { console.recentLines.last { $0.contains("baton-bench: \(marker)") } }
        var begin = 0.0, end = 0.0
        try session.wait(for: "begin of the guest", seconds: 30) {
            begin = Clock.now
            return line("begin") != nil
        }
        try session.wait(for: "end of the guest", seconds: 300) {
            end = Clock.now
            return line("end") != nil
        }
        seconds = end - begin
        let words = (line("end") ?? "").split(separator: " ")
        func field(_ name: String) -> String? {
            words.first { $0.hasPrefix(name + "=") }.map { String($0.dropFirst(name.count + 1)) }
        }
        guard let count = field("instructions").flatMap({ UInt64($0, radix: 16) }), let crc = field("crc") else {
            throw Failure("the bench guest's last line is garbled")
        }
        instructions = count
        check = crc
    }
}
