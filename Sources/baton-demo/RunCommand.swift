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

    @Option(help: "default (the built-in SBI), none, or a firmware file.")
    var bios = "default"

    @Option(help: "The machine's interrupt controllers: none (a PLIC), aplic, or aplic-imsic.")
    var aia: String?

    @Flag(help: "Put the guest's disk on PCI.")
    var pci = false

    @Option(help: "How often to replace the VMM.")
    var restarts = 3

    @Option(help: "debian, counter (our own bare-metal guest), or auto: debian unless it cannot be had.")
    var guest = GuestChoice.auto

    @Option(help: "Directory to keep downloads in.")
    var cache = ".cache"

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
        let guest = try chooseGuest(directory: directory, progress: progress)

        let socketPath = directory.file("qmp.sock")
        let arguments = Self.commandLine(
            vmm: try Self.locate(vmm: vmm), guest: guest, bios: bios, directory: directory, socketPath: socketPath,
            cpr: !withoutCpr, aia: aia)
        progress.say("booting \(guest.name) under \(arguments[0])")
        let session = try Session(arguments: arguments, socketPath: socketPath, directory: directory.path)
        let demonstration = Demonstration(
            session: session, guest: guest, arguments: arguments, checkpoint: directory.file("checkpoint"),
            progress: progress)
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

    private func chooseGuest(directory: TemporaryDirectory, progress: Progress) throws -> Guest {
        if guest == .counter { return try .counter(directory: directory) }
        do {
            let files = try DebianInstaller(cache: cache).obtain { progress.say($0) }
            return try .debian(files: files, directory: directory, pci: pci)
        } catch {
            guard guest == .auto else { throw error }
            progress.say("Debian's kernel is not to be had, so a bare-metal guest of our own counts instead:\n\(error)")
            return try .counter(directory: directory)
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
        vmm: String, guest: Guest, bios: String, directory: TemporaryDirectory, socketPath: String, cpr: Bool = true,
        aia: String? = nil
    ) -> [String] {
        [
            vmm, "-name", "baton-demo", "-machine", "virt,memory-backend=ram" + (aia.map { ",aia=\($0)" } ?? ""),
            "-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-m", "512M",
        ] + (cpr ? ["-cpr-enable", "restart"] : []) + ["-bios", bios] + guest.arguments + [
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
