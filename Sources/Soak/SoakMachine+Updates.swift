import Foundation
import Harness
import ProcessSupport

/// Updates of all kinds, good ones and others.
extension SoakMachine {
    /// - Returns: what its clients have seen of it.
    func carryOut(_ step: SoakStep) throws -> Outcome {
        switch step.action {
        case .update: try update(step)
        case .kill: try killNewVMM(after: UInt32(clamping: step.number("after")))
        case .steps: try threeSteps(step["then"].flatMap(StepsEnd.init(rawValue:)))
        case .transfer: try transfer(step)
        case .reboot: try reboot()
        case .fullDisk: try fillDisk(updates: step["update"] != nil)
        case .slowMonitor: try updateWithSlowMonitor(commands: Int(step.number("commands")))
        case .slowSerial: try updateWithSlowSerial(updates: Int(step.number("updates")))
        case .slowStorage: try slowStorage(step["during"].flatMap(StandstillDeed.init(rawValue:)))
        case .plug: try plug(step["what"].flatMap(Pluggable.init(rawValue:)))
        case .unplug: try unplug(step["what"].flatMap(Pluggable.init(rawValue:)), updates: step["update"] != nil)
        case .stop: try stop(updates: step["update"] != nil)
        case .reset: try reset()
        case .clients: try comeAndGo(count: Int(step.number("count")))
        case .lose: lose()
        }
    }

    /// Milliseconds that a good update, and the pause in it, may take: as long as anything, as what is looked for is what gets
    /// lost, and the host may be busy.
    private var milliseconds: Int { Int(machine.configuration.timeout * 1000) }

    /// A good update.
    func update(preflight: Bool = true) throws {
        let reason = try machine.update(timeout: milliseconds, downtime: milliseconds, preflight: preflight)
        if let reason { throw Failure("a good update fails: \(reason)") }
    }

    private func update(_ step: SoakStep) throws -> Outcome {
        let preflight = step["preflight"] != "off"
        if let fault = step["fault"].flatMap(SuccessorFault.init(rawValue:)) {
            var random = SeededGenerator(seed: step.number("seed"))
            // Less than the libraries of any VMM take.
            let command = fault.command(machine.arguments, tooFewMegabytes: 8...24, using: &random)
            return try expectRefusal(
                try machine.update(command, timeout: fault.milliseconds, preflight: preflight), of: fault.rawValue)
        }
        if let probe = step["probe"].flatMap(SoakProbe.init(rawValue:)) {
            try machine.arm(probe.instruction)
            defer { machine.disarm() }
            let reason = try machine.update(timeout: probe.hangs ? 1500 : 30_000, preflight: preflight)
            return try expectRefusal(reason, of: probe.rawValue)
        }
        try update(preflight: preflight)
        return Outcome(expected: ["CPR_UPDATED"])
    }

    /// The new VMM has not got the guest; the event comes if that ran.
    private func expectRefusal(_ reason: String?, of fault: String) throws -> Outcome {
        try require(reason != nil, "a new VMM with the fault '\(fault)' has the guest")
        return Outcome(allowed: ["CPR_ROLLED_BACK"])
    }

    private func killNewVMM(after microseconds: UInt32) throws -> Outcome {
        kills += 1
        _ = try machine.updateAndKill(try machine.statedPID(), name: "soak-\(kills)", after: microseconds)
        return Outcome(allowed: ["CPR_ROLLED_BACK"])
    }

    func threeSteps(_ end: StepsEnd?) throws -> Outcome {
        try machine.save()
        if end == .cont {
            try machine.execute("cont")
            return Outcome()
        }
        let pid = try machine.statedPID()
        try machine.exec()
        switch end {
        case nil:
            try machine.load()
            return Outcome(expected: ["CPR_UPDATED"])
        case .cancel: try machine.execute("migrate_cancel")
        case .kill, .cont: kill(pid, SIGKILL)
        }
        try machine.qmp.waitForEvent("CPR_ROLLED_BACK", by: machine.configuration.deadline)
        return Outcome()
    }

    // MARK: To another process

    private func transfer(_ step: SoakStep) throws -> Outcome {
        machine.mode = "transfer"
        defer { machine.mode = "restart" }
        if let fault = step["fault"].flatMap(TransferFault.init(rawValue:)) {
            try transferInVain(fault)
            return Outcome(allowed: ["CPR_ROLLED_BACK"])
        }
        if let probe = step["probe"].flatMap(SoakProbe.init(rawValue:)) {
            defer { machine.disarm() }
            _ = try machine.transferInVain(to: machine.arguments, timeout: probe.hangs ? 1500 : 30_000) {
                try machine.arm(probe.instruction)
            }
            return Outcome(allowed: ["CPR_ROLLED_BACK"])
        }
        return try transfer()
    }

    /// A good transfer.
    func transfer() throws -> Outcome {
        machine.mode = "transfer"
        defer { machine.mode = "restart" }
        let new = try machine.startWaiting()
        let old = Set(processes()).subtracting([new.pid])
        if let reason = try machine.transfer(timeout: milliseconds, downtime: milliseconds) {
            throw Failure("a good transfer fails: \(reason)")
        }
        try eventually("of the processes \(processes()) \(old) end", by: machine.configuration.deadline) {
            old.isDisjoint(with: processes())
        }
        try machine.goOn(with: new, reconnectsMonitor: true)
        return Outcome(allowed: ["CPR_UPDATED"], keepsDescriptors: false)
    }

    private func transferInVain(_ fault: TransferFault) throws {
        var arguments = machine.arguments
        switch fault {
        case .nobody:
            try require(try machine.transfer() != nil, "a guest was transferred to nobody")
        case .killed: _ = try machine.transferInVain(to: arguments, SIGKILL)
        case .stopped: _ = try machine.transferInVain(to: arguments, SIGSTOP, timeout: 700)
        case .lacksADevice:
            guard let at = arguments.firstIndex(of: "virtio-rng-device") else {
                throw Failure("no device to leave out")
            }
            arguments.removeSubrange(at - 1...at)
            _ = try machine.transferInVain(to: arguments)
        case .otherMemory:
            _ = try machine.transferInVain(to: arguments.map { $0.replacingOccurrences(of: "16M", with: "32M") })
        }
    }

    /// A checkpoint needs a command line with what is plugged, so that goes first.
    private func reboot() throws -> Outcome {
        let gone = try unplugAll()
        machine.mode = "reboot"
        defer { machine.mode = "restart" }
        try machine.save()
        var outcome = try rebootFromCheckpoint()
        outcome.allowed.formUnion(gone)
        return outcome
    }

    /// The guest, which has been saved, goes on in a VMM that starts anew.
    func rebootFromCheckpoint() throws -> Outcome {
        machine.mode = "reboot"
        defer { machine.mode = "restart" }
        try machine.execute("quit")
        try eventually("the processes \(processes()) end", by: machine.configuration.deadline) { processes().isEmpty }
        try machine.startAnew()
        try machine.load()
        return Outcome(allowed: ["CPR_UPDATED"], keepsDescriptors: false)
    }
}
