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
    var timeout = 5400.0

    @Flag(help: "First build the kernel that iommufd and the liveupdate cases need, if it is not in the cache.")
    var buildKernel = false

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
            if buildKernel { try LabKernelBuild.build(files.own) { print($0) } }
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
        let vmm = try RunCommand.locate(vmm: vmm)
        let base =
            [own, "lab", "--inside", directory.path, "--vmm", vmm, "--cache", cache]
            + ["--updates", "\(updates)"]
        var failed = false
        for (setup, group) in labs(files) {
            for item in group { try item.prepare(files, vmm: vmm, cache: cache, directory) }
            let host = LabHost(files: files, directory: directory, setup: setup)
            let command = base + group.flatMap { ["--only", $0.rawValue] }
            do {
                let status = try host.run(command, seconds: start + timeout - Clock.now) { print($0) }
                failed = failed || status != 0
            } catch {
                print("FAIL: lab \(group.map(\.rawValue).joined(separator: ", ")) — \(error)")
                failed = true
            }
        }
        print(String(format: "lab: %@ after %.0f s", failed ? "FAILED" : "all passed", Clock.now - start))
        if failed { throw ExitCode.failure }
    }

    /// The labs to boot, one after the other, with the cases for each.
    private func labs(_ files: LabFiles) -> [(LabHost.Setup, [LabCase])] {
        LabHost.Setup.allCases.flatMap { setup -> [(LabHost.Setup, [LabCase])] in
            let all = cases.filter { item in
                guard item.setup == setup else { return false }
                guard let obstacle = item.obstacle(files) else { return true }
                print("skipped: lab \(item.rawValue) — \(obstacle)")
                return false
            }
            let alone = all.filter(\.isAlone).map { (setup, [$0]) }, together = all.filter { !$0.isAlone }
            return (together.isEmpty ? [] : [(setup, together)]) + alone
        }
    }

    /// In the lab: each case, and a line for it.
    private func runInside(_ files: LabFiles, directory: String) throws {
        guard access("/dev/kvm", R_OK | W_OK) == 0 else { throw Failure.system("the lab has no /dev/kvm") }
        let context = LabCase.Context(
            vmm: try RunCommand.locate(vmm: vmm), files: files, directory: directory, updates: updates)
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
