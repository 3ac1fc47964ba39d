import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl list`: the VMs of the host.
struct List: ReportingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Lists VMs: their processes, states, versions and last updates.",
        discussion: """
            A version marked with '*' is not the installed one any more: 'baton-ctl update' replaces it. The exit status \
            is 1 if a VM did not answer.
            """)

    @Argument(help: "VMs. (default: all)", completion: MachineDirectory.names)
    var name: [String] = []

    @OptionGroup var choices: MachineChoices

    @Option(help: "Milliseconds within which a VM must answer.")
    var timeoutMs: Int64 = 2000

    @Flag(help: "Print JSON, one object a VM.")
    var json = false

    func execute() throws {
        var table = Table([
            .init(title: "NAME"), .init(title: "PID", isNumber: true), .init(title: "STATE"),
            .init(title: "CPUS", isNumber: true), .init(title: "MEMORY", isNumber: true), .init(title: "ACCEL"),
            .init(title: "VERSION"), .init(title: "UPDATES", isNumber: true),
            .init(title: "LAST PAUSE", isNumber: true),
        ])
        var failures: [String] = []
        for machine in try choices.machines(name) {
            do {
                let status = try MachineStatus(try machine.connect(milliseconds: timeoutMs))
                if json {
                    var object: JSONObject = ["name": .string(machine.name)]
                    for (key, value) in status.json.members { object[key] = value }
                    print(JSON.object(object).text())
                } else {
                    table.add([
                        machine.name, String(status.pid), status.state, String(status.cpus),
                        Figure.bytes(Double(status.memory)), status.accelerator,
                        status.version + (status.isOutdated == true ? "*" : ""), String(status.updates),
                        status.pause.map(Figure.milliseconds) ?? "-",
                    ])
                }
            } catch {
                guard let text = Complaint.text(error) else { throw error }
                failures.append("\(machine.name): \(text)")
                if json {
                    print(JSON.object(["name": .string(machine.name), "error": .string(text)]).text())
                } else {
                    table.add([machine.name, "-", "no answer", "-", "-", "-", "-", "-", "-"])
                }
            }
        }
        if !json { print(table.text, terminator: "") }
        for failure in failures { Complaint.print(failure) }
        if !failures.isEmpty { throw ExitCode.failure }
    }
}
