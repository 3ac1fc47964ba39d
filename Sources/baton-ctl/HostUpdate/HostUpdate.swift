import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl host-update`: what is to be done with the host's VMs before it executes a new kernel.
struct HostUpdate: ReportingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Gets the host's VMs ready for a new kernel of the host.",
        discussion: """
            --check says of each VM whether it would come through the execution of a new kernel (kexec), and why not. \
            --prepare stops and saves all of them at the same time; if one cannot be saved within the limit, all of them \
            go on, and the exit status is 1. Then execute the new kernel; --undo has the VMs go on if that does not \
            happen. In the new kernel start the VMs as ever: each finds its guest.
            """)

    @Argument(help: "VMs. (default: all)", completion: MachineDirectory.names)
    var name: [String] = []

    @OptionGroup var choices: MachineChoices

    @Flag(help: "Only say whether the VMs would come through.")
    var check = false

    @Flag(help: "Save all VMs, or none.")
    var prepare = false

    @Flag(help: "Have VMs go on that were prepared.")
    var undo = false

    @Option(help: "Seconds within which all VMs must be saved.")
    var limit: Double = 60

    @Option(help: ArgumentHelp("Where the record of each VM is written, as NAME.checkpoint.", valueName: "directory"))
    var records = "/var/lib/baton"

    @Option(help: "Milliseconds within which a VM must answer.")
    var timeoutMs: Int64 = 10_000

    @Flag(help: "Print JSON, one object a VM.")
    var json = false

    func validate() throws {
        guard [check, prepare, undo].filter({ $0 }).count == 1 else {
            throw ValidationError("say --check, --prepare or --undo")
        }
        guard limit > 0, limit <= 86_400 else { throw ValidationError("--limit is above 0 and at most 86400") }
        guard records.hasPrefix("/") else { throw ValidationError("--records is an absolute path") }
    }

    func execute() throws {
        let candidates = try choices.machines(name).map { HostUpdateCandidate($0, milliseconds: timeoutMs) }
        // Who looks in the wrong place must not take that for well.
        if candidates.isEmpty { Complaint.print("there are no VMs in \(choices.directory.path)") }
        let phase = HostUpdatePhase(candidates: candidates)
        if undo {
            phase.carryOut { try $0.goOn() }
        } else {
            phase.carryOut { try $0.check() }
            if prepare, !phase.hasFailed {
                let deadline = EventLoop.now + Int64(limit * 1e9), records = records
                phase.carryOut { try $0.save(to: records, by: deadline) }
                if phase.hasFailed { phase.carryOutWhereDone { try $0.goOn() } }
            }
        }
        report(candidates)
        if phase.hasFailed { throw ExitCode.failure }
    }

    private func report(_ candidates: [HostUpdateCandidate]) {
        var table = Table([.init(title: "NAME"), .init(title: "RESULT"), .init(title: "SAVE", isNumber: true)])
        for candidate in candidates {
            let result = candidate.result
            if json {
                var object: JSONObject = ["name": .string(candidate.machine.name), "result": .string(result)]
                if let reason = candidate.failure { object["error"] = .string(reason) }
                if let time = candidate.savedIn { object["save-us"] = .int(time) }
                print(JSON.object(object).text())
            } else {
                let time = candidate.savedIn.map { Figure.milliseconds(microseconds: $0) } ?? "-"
                table.add([candidate.machine.name, result, time])
            }
        }
        if !json { print(table.text, terminator: "") }
        for candidate in candidates {
            if let reason = candidate.failure { Complaint.print("\(candidate.machine.name): \(reason)") }
        }
    }
}

/// One thing that is done with all VMs at the same time.
final class HostUpdatePhase: @unchecked Sendable {
    private let candidates: [HostUpdateCandidate]
    var hasFailed: Bool { candidates.contains { $0.failure != nil } }

    init(candidates: [HostUpdateCandidate]) { self.candidates = candidates }

    func carryOut(_ step: @escaping @Sendable (HostUpdateCandidate) throws -> Void) { carryOut(candidates, step) }

    /// With those only whose last step went well, or may have; what fails in others stays said.
    func carryOutWhereDone(_ step: @escaping @Sendable (HostUpdateCandidate) throws -> Void) {
        carryOut(candidates.filter(\.isStopped), step)
    }

    private func carryOut(
        _ candidates: [HostUpdateCandidate], _ step: @escaping @Sendable (HostUpdateCandidate) throws -> Void
    ) {
        let group = DispatchGroup()
        for candidate in candidates {
            group.enter()
            // Each is used by its own thread until all have ended.
            Thread.detachNewThread {
                candidate.attempt(step)
                group.leave()
            }
        }
        group.wait()
    }
}
