import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl shutdown`: ends a VM as its guest wants it, and within a limit in any case.
struct Shutdown: ReportingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Presses a VM's power button, waits for the guest, and ends the VM when that takes too long.",
        discussion: "A guest that is paused cannot see the button: its VM is ended at once.")

    @Argument(help: "The VM.", completion: MachineDirectory.names)
    var name: String?

    @OptionGroup var choice: MachineChoice

    @Option(help: "Seconds that the guest may take; 0 ends the VM at once.")
    var limit: Double = 60

    @Option(help: "Milliseconds within which the VM must answer.")
    var timeoutMs: Int64 = 10_000

    @Flag(help: "Print JSON.")
    var json = false

    func execute() throws {
        let machine = try choice.machine(name)
        var isDown = false
        let monitor = try machine.connect(milliseconds: timeoutMs) { event, _ in
            if event == "SHUTDOWN" { isDown = true }
        }
        let isRunning = try monitor.execute("query-status").objectValue?["running"]?.boolValue ?? false
        if isRunning, limit > 0 {
            try monitor.execute("system_powerdown")
            let end = EventLoop.now + Int64(min(limit, 1e6) * 1e9)
            try untilClosed {
                while !isDown, EventLoop.now < end {
                    let left = Int32(clamping: (end - EventLoop.now + 999_999) / 1_000_000)
                    try monitor.takeEvents(milliseconds: left) { isDown || EventLoop.now >= end }
                }
            }
        }
        let wasForced = !isDown
        // With -no-shutdown the VMM stays.
        try untilClosed {
            try monitor.execute("quit")
            while true { try monitor.takeEvents(milliseconds: 1000) { false } }
        }
        if json {
            print(JSON.object(["name": .string(machine.name), "forced": .bool(wasForced)]).text())
        } else {
            let how = wasForced ? "ended without its guest" : "shut down by its guest"
            print(TerminalText.escaped("\(machine.name): \(how)"))
        }
    }

    /// The VMM closes its monitors when it ends.
    private func untilClosed(_ body: () throws -> Void) throws {
        do { try body() } catch is MonitorConnection.Closed {}
    }
}
