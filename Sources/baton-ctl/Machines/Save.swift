import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl save`: a checkpoint of a VM's guest.
struct Save: ReportingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Stops a VM's guest and saves it to a file.",
        discussion: """
            The guest goes on by 'cont' on a monitor. With --end its VM ends, and a new one started with \
            -incoming file:FILE goes on with it. The mode must be enabled in the VM (-cpr-enable). This program opens the \
            file, so the VM's sandbox need not have it.
            """)

    @Argument(help: "The VM.", completion: MachineDirectory.names)
    var name: String?

    @OptionGroup var choice: MachineChoice

    @Option(help: ArgumentHelp("The file, which is replaced when the new one is whole.", valueName: "file"))
    var to: String

    @Option(help: "The mode, which says what the guest can come through.")
    var mode = "reboot"

    @Flag(help: "End the VM then.")
    var end = false

    @Option(help: "Milliseconds within which the VM must answer; the save itself may take as long as it likes.")
    var timeoutMs: Int64 = 10_000

    func execute() throws {
        let machine = try choice.machine(name)
        let monitor = try machine.connect(milliseconds: timeoutMs)
        let path = to.hasPrefix("/") ? to : "\(FileManager.default.currentDirectoryPath)/\(to)"
        try monitor.save(to: path, mode: mode)
        print(TerminalText.escaped("\(machine.name): saved to \(path)"))
        guard end else { return }
        do {
            try monitor.execute("quit")
            while true { try monitor.takeEvents(milliseconds: 1000) { false } }
        } catch is MonitorConnection.Closed {}
    }
}
