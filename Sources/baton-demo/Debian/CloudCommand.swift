import ArgumentParser
import Foundation
import ProcessSupport

/// `baton-demo cloud`: Debian by UEFI with cloud-init's seed, and an SSH session that stays while the VMM is replaced.
struct CloudCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cloud",
        abstract: "Boots Debian by UEFI and GRUB with a seed for cloud-init, and replaces the VMM under an SSH session."
    )

    @OptionGroup var debian: DebianOptions

    @Option(help: "How often to replace the VMM.")
    var updates = 10

    @Option(help: "Harts of the guest.")
    var harts = 1

    func run() throws {
        setvbuf(stdout, nil, Int32(_IOLBF), 0)
        let progress = Progress()
        guard let image = try debian.image(progress: progress) else { return }
        let directory = try TemporaryDirectory.scratch()
        let machine = try debian.boot(image, in: directory, harts: harts, progress: progress)
        let boot = try machine.run("cat /proc/sys/kernel/random/boot_id")
        let echo = try SSHEcho(machine.ssh)
        func goesOn(past count: Int) throws {
            try machine.session.wait(for: "answer in the SSH session", seconds: 120) { try echo.count() > count + 1 }
        }
        try goesOn(past: 0)
        for number in 0..<max(updates, 0) {
            let before = try echo.count()
            let text = try machine.update(number: number + 1)
            try goesOn(past: try echo.count())
            progress.say("\(text), lines of the session \(before) -> \(try echo.count())")
        }
        let lines = try echo.count()
        guard try machine.run("cat /proc/sys/kernel/random/boot_id") == boot else {
            throw Failure("the guest has been booted anew")
        }
        try machine.shutDown()
        progress.say("\(updates) updates, and the SSH session stayed: \(lines) lines came back, each once and in order")
    }
}
