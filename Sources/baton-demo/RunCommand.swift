import ArgumentParser
import Foundation
import ProcessSupport

/// `baton-demo run`: the demonstration from end to end.
struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Boots a guest, replaces the VMM under it, and opens the guest's console.")

    enum GuestChoice: String, CaseIterable, ExpressibleByArgument {
        case auto, debian, counter
    }

    @Flag(help: "End after the restarts, with status 0 only if nothing was lost.")
    var batch = false

    @Option(help: "The VMM to run (default: baton beside this program).")
    var vmm: String?

    enum MachineChoice: String, CaseIterable, ExpressibleByArgument {
        case auto, virt, microvm
    }

    @Option(help: "virt (riscv64), microvm (x86-64, needs KVM), or auto: microvm where Linux runs under KVM.")
    var machine = MachineChoice.auto

    @Option(help: "Of virt: default (the built-in SBI), none, or a firmware file.")
    var bios = "default"

    @Option(help: "The interrupt controllers of virt: none (a PLIC), aplic, or aplic-imsic.")
    var aia: String?

    @Flag(help: "Put the guest's disk on PCI.")
    var pci = false

    @Option(help: "How often to replace the VMM.")
    var restarts = 3

    @Option(help: "debian, counter (our own bare-metal guest, on virt), or auto: debian unless it cannot be had.")
    var guest = GuestChoice.auto

    @Option(help: "Directory to keep downloads in.")
    var cache = ".cache"

    @Option(help: "More for the command line of Debian's kernel.")
    var append = ""

    @Option(help: "Seconds that the guest may take to boot.")
    var bootTimeout = 240.0

    @Option(help: "Keep the guest's disk, logs and so on in this directory.")
    var keep: String?

    @Flag(help: "Start the VMM without -cpr-enable, so that another one can run the guest.")
    var withoutCpr = false

    func run() throws {
        setvbuf(stdout, nil, Int32(_IOLBF), 0)
        let progress = Progress()
        let directory = try TemporaryDirectory.scratch()
        defer { preserve(directory) }
        let vmm = try Self.locate(vmm: vmm)
        let (machine, guest) = try chooseGuest(
            on: try chooseMachine(vmm: vmm, progress: progress), directory: directory, progress: progress)

        let socketPath = directory.file("qmp.sock")
        let arguments = Self.commandLine(
            vmm: vmm, machine: machine.options(bios: bios, aia: aia, pci: pci), guest: guest, directory: directory,
            socketPath: socketPath, cpr: !withoutCpr)
        progress.say("booting \(guest.name) under \(arguments[0])")
        let session = try Session(arguments: arguments, socketPath: socketPath, directory: directory.path)
        let demonstration = Demonstration(
            session: session, guest: guest, arguments: arguments, progress: progress)
        try demonstration.boot(seconds: bootTimeout)
        for number in 0..<max(restarts, 0) { try demonstration.restart(number: number + 1) }
        try demonstration.tryShell()
        progress.say(
            "\(restarts) restart\(restarts == 1 ? "" : "s"), nothing lost: \(demonstration.reportsChecked) "
                + "reports of the guest, all in order and with the right checksum")

        if batch {
            try session.command("quit")
            try session.waitForEnd()
        } else {
            progress.say(
                guest.hasShell
                    ? "this is the guest's console; its program runs on: cat /run/baton-demo.status. Ctrl-A X quits."
                    : "this is the guest's console. Ctrl-A X quits.")
            InteractiveConsole(session: session).run()
        }
    }

    /// Whether something was asked for that `virt` alone has.
    private var needsVirt: Bool { bios != "default" || aia != nil || guest == .counter }

    private func chooseMachine(vmm: String, progress: Progress) throws -> GuestMachine {
        if machine == .virt || machine == .auto && needsVirt { return .virt }
        guard !needsVirt else {
            throw Failure("firmware, AIA and the counting guest are for the machine virt, not for microvm")
        }
        guard let problem = try KVMProbe(vmm: vmm).problem() else { return .microvm }
        guard machine == .auto else {
            throw Failure("\(problem); MACHINE=virt shows a riscv64 guest on any host")
        }
        progress.say("\(problem), so the riscv64 guest is shown")
        return .virt
    }

    /// The guest, and the machine that it is for: another one if nobody insists and the first has no guest.
    private func chooseGuest(
        on machine: GuestMachine, directory: TemporaryDirectory, progress: Progress
    ) throws -> (GuestMachine, Guest) {
        if guest == .counter { return (.virt, try .counter(directory: directory)) }
        do {
            let files = try DebianInstaller(cache: cache, architecture: machine.architecture).obtain {
                progress.say($0)
            }
            return (machine, try .debian(machine, files: files, directory: directory, pci: pci, append: append))
        } catch {
            guard guest == .auto, self.machine != .microvm else { throw error }
            let missing = "Debian's \(machine.architecture) kernel is not to be had"
            guard machine == .virt else {
                progress.say("\(missing), so the riscv64 guest is shown:\n\(error)")
                return try chooseGuest(on: .virt, directory: directory, progress: progress)
            }
            progress.say("\(missing), so a bare-metal guest of our own counts instead:\n\(error)")
            return (machine, try .counter(directory: directory))
        }
    }

    /// The VMM's path: as asked for, or beside this program.
    static func locate(vmm: String?) throws -> String {
        let own = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
        let path = vmm ?? own.path + "/baton"
        guard let found = Tool.find(path) else { throw Failure("\(path): no such VMM; run make first") }
        return URL(fileURLWithPath: found).path
    }

    static func commandLine(
        vmm: String, machine: [String], guest: Guest, directory: TemporaryDirectory, socketPath: String,
        cpr: Bool = true
    ) -> [String] {
        [vmm, "-name", "baton-demo"] + machine
            + (cpr ? ["-cpr-enable", "restart", "-sandbox", "paths=\(directory.path)"] : [])
            + guest.arguments + [
                "-nographic", "-serial", "stdio", "-monitor", "none",
                "-qmp", "unix:\(socketPath),server=on,wait=off", "-pidfile", directory.file("pid"),
            ]
    }

    private func preserve(_ directory: TemporaryDirectory) {
        guard let keep else { return }
        try? FileManager.default.createDirectory(atPath: keep, withIntermediateDirectories: true)
        for name in ["console.log", "vmm.log", "disk.img", "checkpoint", "demo", "counter.bin"] {
            try? FileManager.default.removeItem(atPath: "\(keep)/\(name)")
            try? FileManager.default.copyItem(atPath: directory.file(name), toPath: "\(keep)/\(name)")
        }
    }
}
