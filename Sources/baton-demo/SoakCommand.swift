import ArgumentParser
import Foundation
import Harness
import ProcessSupport
import Soak

/// `baton-demo soak`: guests of both accelerators under load, to whose VMMs something is done all the time, in random order.
struct SoakCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "soak",
        abstract:
            "Updates, kills, full disks, slow clients, hot plug and more, in random order, until something is lost.",
        discussion: """
            Each step is a line. The same seed gives the same steps. After each, the VM is looked at from all sides. When \
            something is wrong, the steps are done again with fewer and fewer of them; what is left is a script for \
            --script. Steps and their options are in testing.md.
            """)

    @Option(help: "The VMM to run (default: baton beside this program).")
    var vmm: String?

    @Option(help: "The seed of the steps (default: random; it is printed).")
    var seed: UInt64?

    @Option(help: "Go on for so many hours.")
    var hours: Double?

    @Option(help: "Go on for so many minutes (default: 10, unless there are hours or steps).")
    var minutes: Double?

    @Option(help: "End after so many steps.")
    var steps: Int?

    @Option(help: ArgumentHelp("Do the steps of this file, instead of random ones.", valueName: "file"))
    var script: String?

    @Option(
        help: ArgumentHelp(
            "A machine, of \(SoakCommand.list(SoakMachine.Kind.allCases)); may be given again (default: all that can run here).",
            valueName: "name"))
    var machine: [SoakMachine.Kind] = []

    @Option(help: "Seconds that anything may take that is due at once.")
    var timeout = 60.0

    @Option(help: "The directory for scripts and logs of a failure (default: .cache/soak/SEED).")
    var keep: String?

    @Option(help: "Look for a shorter script for so many minutes at most (0: not at all).")
    var shrinkMinutes = 20.0

    func validate() throws {
        guard script == nil || seed == nil && steps == nil && hours == nil && minutes == nil else {
            throw ValidationError("a script has its own steps: no --seed, --steps, --hours or --minutes with --script")
        }
    }

    func run() throws {
        setvbuf(stdout, nil, Int32(_IOLBF), 0)
        let vmm = try RunCommand.locate(vmm: vmm)
        let directory = try TemporaryDirectory.scratch()
        defer { withExtendedLifetime(directory) {} }
        let guests = buildGuests(in: directory)
        // Not before: clang would have the signals blocked.
        let interruption = Interruption()
        let configuration = SoakMachine.Configuration(
            vmm: vmm, diskGuest: guests.paths.first, servedGuest: guests.paths.last, timeout: timeout)
        let script = try script.map { try SoakScript.parse(try String(contentsOfFile: $0, encoding: .utf8)) }
        let kinds = try choose(script, without: guests.problem)
        let seed = seed ?? UInt64.random(in: 0...UInt64(UInt32.max))
        let heading = self.script.map { ["of \($0)"] } ?? ["seed \(seed), machines \(Self.list(kinds))"]
        print(
            self.script.map { "the steps of \($0)" }
                ?? "seed \(seed): baton-demo soak --seed \(seed) does the same steps")
        let soak = Soak(
            configuration, directory: keep ?? ".cache/soak/\(seed)",
            shrinking: Soak.Shrinking(tries: 200, seconds: shrinkMinutes * 60), interruption: interruption,
            say: { print($0) })
        if let script {
            var rest = script[...]
            return try soak.run(kinds, heading: heading) { _ in rest.popFirst() }
        }
        var plan = SoakPlan(seed: seed, machines: kinds, without: Self.impossible())
        let limit = (hours.map { $0 * 3600 } ?? 0) + (minutes.map { $0 * 60 } ?? 0)
        let seconds = hours == nil && minutes == nil ? (steps == nil ? 600 : Double.infinity) : limit
        var left = steps ?? Int.max
        try soak.run(kinds, heading: heading) { over in
            left -= 1
            return left >= 0 && over < seconds ? plan.next() : nil
        }
    }

    /// - Returns: the images for a disk of the VMM's and for one that a process of its own serves; or why there are none.
    private func buildGuests(in directory: TemporaryDirectory) -> (paths: [String], problem: String) {
        let (disk, served) = (directory.file("soak.bin"), directory.file("soak-served.bin"))
        do {
            let builder = try GuestBuilder()
            try builder.build(.soak, to: disk)
            try builder.build(.soak, definitions: ["SERVED"], to: served)
        } catch { return ([], "\(error)") }
        return ([disk, served], "")
    }

    private static func list(_ kinds: [SoakMachine.Kind]) -> String { kinds.map(\.rawValue).joined(separator: ", ") }

    /// The machines that are wanted, and that can run here; says which ones cannot.
    private func choose(_ script: [SoakStep]?, without diskProblem: String) throws -> [SoakMachine.Kind] {
        var obstacles: [SoakMachine.Kind: String] = [:]
        if SearchPath.find(StorageProcess.program) == nil {
            obstacles[.served] = "there is no \(StorageProcess.program) (Debian's package qemu-system-common)"
        }
        if !diskProblem.isEmpty { (obstacles[.disk], obstacles[.served]) = (diskProblem, diskProblem) }
        if let obstacle = HarnessMachine.kvm.obstacle { obstacles[.kvm] = obstacle }
        let wanted = SoakMachine.Kind.allCases.filter { kind in
            script.map { $0.contains { $0.machine == kind } } ?? (machine.isEmpty || machine.contains(kind))
        }
        for kind in wanted {
            guard let obstacle = obstacles[kind] else { continue }
            guard script == nil, machine.isEmpty else { throw Failure("no machine '\(kind.rawValue)': \(obstacle)") }
            print("without the machine '\(kind.rawValue)': \(obstacle)")
        }
        let kinds = wanted.filter { obstacles[$0] == nil }
        guard !kinds.isEmpty else { throw Failure("no machine, and so nothing to do") }
        return kinds
    }

    /// What cannot be done here; says why.
    private static func impossible() -> Set<SoakAction> {
        guard geteuid() != 0 else { return [] }
        print("without '\(SoakAction.fullDisk.rawValue)': only root may mount a small file system")
        return [.fullDisk]
    }
}

extension SoakMachine.Kind: ExpressibleByArgument {}
