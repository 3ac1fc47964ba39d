import Foundation
import ProcessSupport

/// What happens while the new VMM starts and the old one runs the guest: between the
/// exec and the change of hands. The probe stops the new VMM there, until it is let go on.
extension Harness {
    static let meanwhileRows = [
        meanwhile("meanwhile-guest", "the guest runs on while the new VMM starts, and its clients are served") {
            machine in
            // QMP waits for the update.
            let count = try machine.countShown()
            try eventually("the guest counts on from \(count)", by: machine.configuration.deadline) {
                try machine.countShown() > count + 1000
            }
            try machine.expectConnections()
            return .goesOver("running")
        },
        meanwhile("meanwhile-client", "a client that comes while the new VMM starts is served by both") { machine in
            machine.monitor = nil
            let monitor = try StreamClient(
                socket: machine.directory.file("hmp"), patience: machine.configuration.timeout)
            try monitor.expect("(baton) ")
            machine.monitor = monitor
            return .goesOver("running")
        },
        meanwhile("meanwhile-half-line", "what a client has typed while the new VMM starts is not lost") { machine in
            try machine.tell("info st", prompt: "info st")
            return .goesOver("running", then: "atus\n", shows: "VM status: running")
        },
        meanwhile("meanwhile-stop", "a guest that is stopped while the new VMM starts goes over stopped") { machine in
            try machine.tell("stop\n")
            return .goesOver("paused")
        },
        meanwhile("meanwhile-save", "a save is refused while the new VMM starts") { machine in
            let answer = try machine.tell("cpr-save \(machine.checkpoint) \(machine.configuration.mode)\n")
            try require(answer.contains("an update is under way"), "cpr-save was answered '\(answer)'")
            return .goesOver("running")
        },
        meanwhile("meanwhile-cancel", "migrate_cancel ends the update while the new VMM starts") { machine in
            try machine.tell("migrate_cancel\n")
            return .staysHere("it was cancelled")
        },
        meanwhile("meanwhile-quit", "quit ends the VM, and the new VMM with it") { machine in
            try machine.monitor?.send("quit\n")
            return .ends
        },
        meanwhile("meanwhile-signal", "SIGTERM to the VM's process ends the VM, also while that is the new VMM's") {
            machine in
            machine.process.signal(SIGTERM)
            return .ends
        },
    ]

    /// What is to come of the update.
    enum Outcome {
        /// With that run state; and what a client types then shows a text.
        case goesOver(String, then: String? = nil, shows: String? = nil)
        /// With that reason.
        case staysHere(String)
        case ends
    }

    private static func meanwhile(
        _ name: String, _ subject: String, _ body: @escaping @Sendable (Machine) throws -> Outcome
    ) -> Row {
        Row(name, subject, .executes, .keepsConnections) { harness in
            var options = Machine.Options()
            options.probe = true
            let machine = try harness.machine(options)
            let state = try machine.stateBeforeFailure()
            try machine.startAndHold()
            let outcome = try body(machine)
            machine.disarm()
            machine.process.signal(SIGCONT)
            return try machine.expect(outcome, state)
        }
    }
}

extension Machine {
    /// Begins an update, whose new VMM stops while it loads its modules.
    fileprivate func startAndHold() throws {
        try arm("register stop")
        let loaded = phasesSeen().count { $0 == "register" }
        try qmp.executeWithoutAnswer(
            "cpr-update",
            ["argv": arguments, "mode": configuration.mode, "preflight": false, "timeout-ms": 60_000])
        try eventually("the new VMM loads its modules", by: configuration.startDeadline) {
            self.phasesSeen().count { $0 == "register" } > loaded
        }
        try awaitStop(of: process.pid)
    }

    /// Types something into the human monitor.
    /// - Returns: what is shown until the prompt comes.
    @discardableResult
    fileprivate func tell(_ text: String, prompt: String = "(baton) ") throws -> String {
        guard let monitor else { throw Failure("there is no monitor") }
        try monitor.send(text)
        return try monitor.expect(prompt)
    }

    /// The guest's count, as the human monitor shows it.
    fileprivate func countShown() throws -> UInt64 {
        let shown = try tell("xp /1gx \(guest.page + 8)\n")
        guard let word = shown.split(separator: " ").last(where: { $0.hasPrefix("0x") }),
            let count = UInt64(word.dropFirst(2).prefix { $0.isHexDigit }, radix: 16)
        else { throw Failure("xp showed '\(shown)'") }
        return count
    }

    fileprivate func expect(_ outcome: Harness.Outcome, _ before: StateBefore) throws -> String {
        switch outcome {
        case .goesOver(let status, let typed, let shown):
            guard try answer()?["return"] != nil else { throw Failure("the update failed") }
            try require(try statedPID() == process.pid, "the guest has stayed in the old VMM")
            let found = try self.status()
            try require(found == status, "the run state is '\(found)' and not '\(status)'")
            if let typed, let shown {
                let answer = try tell(typed)
                try require(answer.contains(shown), "the monitor showed '\(answer)'")
            }
            if status == "paused" { try execute("cont") }
            try expectProgress(past: max(before.count, try count()))
            try expectConnections()
            _ = try expectOneProcess()
            return "gone over, \(status)"
        case .staysHere(let reason):
            let event = try qmp.waitForEvent("CPR_ROLLED_BACK", by: configuration.deadline)
            let error = try answer()?["error"] as? [String: Any]
            let text = error?["desc"] as? String ?? ""
            try require(text.contains(reason), "the update was answered '\(text)'")
            // `expectTakenBack` wants one, too.
            qmp.putBack(["event": "CPR_ROLLED_BACK", "data": event])
            try expectTakenBack(before)
            return text
        case .ends:
            let exit = try process.waitForExit(by: configuration.deadline)
            try require(exit == .status(0), "the VM's process ended with \(exit)")
            try eventually("of the processes \(processes()) none is left", by: configuration.deadline) {
                self.processes().isEmpty
            }
            return "ended, with status 0"
        }
    }
}
