import Foundation
import Harness
import ProcessSupport

/// Clients, disks and operators that are not as a VMM would like them.
extension SoakMachine {
    /// The guest stops when its disk has no room, and goes on when there is some.
    func fillDisk(updates: Bool) throws -> Outcome {
        guard let small else { return Outcome() }
        defer { small.empty() }
        try eventually("the guest stops, as its disk is full", by: machine.configuration.deadline) {
            try small.fill()
            try machine.serial?.read()
            return try machine.status() == "io-error"
        }
        let disks = try machine.execute("query-block") as? [[String: Any]] ?? []
        let statuses = disks.compactMap { $0["io-status"] as? String }
        try require(statuses.contains("nospace"), "query-block gives \(statuses) for a disk without room")
        if updates {
            try update()
            let status = try machine.status()
            try require(status == "io-error", "after the update the run state is '\(status)' and not 'io-error'")
        }
        small.empty()
        try machine.execute("cont")
        return Outcome(expected: updates ? ["CPR_UPDATED"] : [])
    }

    /// Each command that was sent before the update has its answer after it.
    func updateWithSlowMonitor(commands: Int) throws -> Outcome {
        guard let monitor = machine.monitor else { throw Failure("there is no human monitor") }
        try monitor.send(String(repeating: "info registers\n", count: commands))
        try update()
        for number in 0..<commands {
            let answer = try monitor.expect("(baton) ")
            try require(
                answer.hasPrefix("info registers"), "answer \(number) of the monitor is '\(answer.prefix(200))'")
        }
        return Outcome(expected: ["CPR_UPDATED"])
    }

    func updateWithSlowSerial(updates: Int) throws -> Outcome {
        for _ in 0..<updates { try update() }
        return Outcome(expected: updates > 0 ? ["CPR_UPDATED"] : [])
    }

    /// Clients of a monitor that others have: they say nothing, or half of a command, or wait over an update.
    func comeAndGo(count: Int) throws -> Outcome {
        let path = machine.directory.file("qmp2")
        var updates = 0
        for number in 0..<count {
            let client = try QMPClient(path: path, by: machine.configuration.deadline, negotiate: number % 3 != 0)
            switch number % 3 {
            case 0: break
            case 1: try client.send(#"{"execute": "query-st"#)
            default:
                try update()
                updates += 1
                let status = try client.status()
                try require(status == "running", "a client is told '\(status)' after an update")
            }
        }
        return Outcome(expected: updates > 0 ? ["CPR_UPDATED"] : [])
    }

    /// The guest stands still, over an update too.
    func stop(updates: Bool) throws -> Outcome {
        let count = try machine.stop()
        try machine.expectStopped(at: count, "paused")
        if updates {
            try update()
            try machine.expectStopped(at: count, "paused")
        }
        try machine.execute("cont")
        return Outcome(expected: Set(["STOP", "RESUME"]).union(updates ? ["CPR_UPDATED"] : []))
    }

    func reset() throws -> Outcome {
        try machine.serial?.read()
        forgetProgress()
        try machine.execute("system_reset")
        try machine.qmp.waitForEvent("RESET", by: machine.configuration.deadline)
        try eventually("the guest begins anew", by: machine.configuration.deadline) {
            try machine.serial?.read()
            return machine.serial?.hasBegunAnew == true
        }
        return Outcome()
    }

    /// What no VMM survives.
    func lose() -> Outcome {
        end()
        return Outcome()
    }
}
