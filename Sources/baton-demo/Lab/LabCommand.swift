import ArgumentParser
import Foundation
import ProcessSupport

/// `baton-demo lab`: Baton on a real KVM, which an emulated machine has (`LabHost`).
struct LabCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lab", abstract: "Runs Linux guests on KVM in an emulated PC, and replaces the VMM under them.",
        discussion: "The cases are:\n"
            + LabCase.allCases.map { "  \($0.rawValue): \($0.explanation)" }.joined(separator: "\n"))

    @Option(help: "The VMM to run (default: baton beside this program).")
    var vmm: String?

    @Option(name: .customLong("only"), help: "A case to run; may be repeated (default: all).")
    var only: [LabCase] = []

    @Option(help: "How often to replace the VMM under a guest at work.")
    var updates = 20

    @Option(help: "Directory to keep downloads in.")
    var cache = ".cache"

    @Option(help: "Seconds that all of it may take.")
    var timeout = 1800.0

    @Flag(help: "End with status 0 when the emulator or the kernels cannot be had.")
    var ifAvailable = false

    /// In the lab: the directory of `runLab`'s.
    @Option(help: .hidden)
    var inside: String?

    private var cases: [LabCase] { only.isEmpty ? LabCase.allCases : only }

    func run() throws {
        setvbuf(stdout, nil, Int32(_IOLBF), 0)
        let files: LabFiles
        do {
            files = try LabFiles.obtain(cache: cache) { print($0) }
        } catch {
            guard ifAvailable else { throw error }
            let reason = "\(error)".split(separator: "\n").joined(separator: "; ")
            for item in cases { print("skipped: lab \(item.rawValue) — \(reason)") }
            return
        }
        if let inside { try runInside(files, directory: inside) } else { try runLab(files) }
    }

    private func runLab(_ files: LabFiles) throws {
        let directory = try TemporaryDirectory.scratch(), start = Clock.now
        let own = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().path
        try LabGuest.makeInitrd(files: files, directory: directory)
        try LabFirmware.makeDisk(directory: directory)
        let command =
            [own, "lab", "--inside", directory.path, "--vmm", try RunCommand.locate(vmm: vmm), "--cache", cache]
            + ["--updates", "\(updates)"] + cases.flatMap { ["--only", $0.rawValue] }
        let status = try LabHost(files: files, directory: directory).run(command, seconds: timeout) { print($0) }
        print(String(format: "lab: %@ after %.0f s", status == 0 ? "all passed" : "FAILED", Clock.now - start))
        if status != 0 { throw ExitCode.failure }
    }

    /// In the lab: each case, and a line for it.
    private func runInside(_ files: LabFiles, directory: String) throws {
        guard access("/dev/kvm", R_OK | W_OK) == 0 else { throw Failure.system("the lab has no /dev/kvm") }
        let context = LabCase.Context(
            vmm: try RunCommand.locate(vmm: vmm), files: files, initrd: "\(directory)/\(LabGuest.initrdName)",
            disk: "\(directory)/\(LabFirmware.diskName)", updates: updates)
        var failed = false
        for item in cases {
            let start = Clock.now
            var line: String
            do {
                line = "pass: lab \(item.rawValue) — \(try item.run(context))"
            } catch {
                line = "FAIL: lab \(item.rawValue) — \(error)"
                failed = true
            }
            print(line + String(format: " (%.0f s)", Clock.now - start))
        }
        if failed { throw ExitCode.failure }
    }
}
