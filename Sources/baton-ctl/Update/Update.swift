import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl update`: replaces a running VMM, in one step, or all of the host's, one after the other.
struct Update: ReportingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Replaces a VMM under its running guest.",
        discussion: """
            Without a command line the new VMM gets the one that the running VMM was started with; --binary then says \
            which binary. The new VMM is tried beside the guest first. With --channel the guest goes to a VMM that \
            somebody has started already, with a command line of its own. Whatever goes wrong, the guest runs on in \
            the old VMM, and the exit status is 1.

            With --all every VM is updated that 'baton-ctl list' shows, --jobs at a time, until one update has failed.
            """)

    @Argument(help: "The VM.", completion: MachineDirectory.names)
    var name: String?

    @Flag(help: "All VMs.")
    var all = false

    @OptionGroup var choice: MachineChoice

    @Option(help: "With --all: how many are updated at a time.")
    var jobs = 1

    @Flag(help: "With --all: go on after a failure.")
    var keepGoing = false

    @Flag(help: "With --all: leave VMs alone whose binary is still the installed one.")
    var outdatedOnly = false

    @Option(help: "The new VMM; by default the program that runs now, or what has taken its place on disk.")
    var binary: String?

    @Option(help: "The CPR mode; by default the first enabled one that fits.")
    var mode: String?

    @Option(help: "The unix socket at which a new VMM waits that runs already (-incoming); for the mode transfer.")
    var channel: String?

    @Option(help: "The number of the user that the VMM at --channel runs as; by default the old VMM's, or root.")
    var peerUid: Int64?

    @Option(help: "Milliseconds that each stage may take.")
    var timeoutMs: Int64 = 10_000

    @Flag(inversion: .prefixedNo, help: "Try the new VMM beside the running guest first.")
    var preflight = true

    @Flag(help: "Only try the new VMM; do not update.")
    var check = false

    @Flag(help: "Print JSON, one object a VM.")
    var json = false

    @Argument(parsing: .postTerminator, help: "The new command line, from the program's name on.")
    var argv: [String] = []

    func validate() throws {
        guard jobs >= 1 else { throw ValidationError("--jobs is at least 1") }
        guard !all || (name == nil && choice.qmp == nil && channel == nil && argv.isEmpty) else {
            throw ValidationError(
                "--all takes neither a VM, nor --qmp, --channel or a command line: each VM has its own")
        }
        guard channel == nil || (argv.isEmpty && binary == nil && !check) else {
            throw ValidationError(
                "--channel names a VM that runs already: there is no command line to give or to check")
        }
    }

    func execute() throws {
        if all { return try updateAll() }
        let line = ProgressLine()
        let update = UpdateOfOne(machine: try choice.machine(name), options: self) { line.show($0) }
        let result: UpdateOfOne.Result
        do {
            defer { line.end() }
            result = try update.carryOut()
        } catch {
            guard json, let text = Complaint.text(error) else { throw error }
            print(JSON.object(["name": .string(update.machine.name), "error": .string(text)]).text())
            throw ExitCode.failure
        }
        for warning in result.warnings { Complaint.print("warning: \(warning)") }
        print(
            json ? JSON.object(result.json(name: update.machine.name)).text() : result.text,
            terminator: json ? "\n" : "")
    }

    private func updateAll() throws {
        let updates = UpdateOfAll(machines: choice.directory.all(), options: self)
        let failed = updates.carryOut()
        if json {
            for line in updates.json { print(JSON.object(line).text()) }
        } else {
            print(updates.table.text, terminator: "")
        }
        for failure in updates.failures { Complaint.print(failure) }
        if failed { throw ExitCode.failure }
    }
}

/// The line that tells how far one update is: it grows, on the standard error.
private final class ProgressLine {
    private var isOpen = false

    func show(_ step: String) {
        write(isOpen ? " > \(step)" : step)
        isOpen = true
    }

    func end() {
        if isOpen { write("\n") }
        isOpen = false
    }

    private func write(_ text: String) {
        FileHandle.standardError.write(Data(TerminalText.escaped(text, keepingLines: true).utf8))
    }
}
