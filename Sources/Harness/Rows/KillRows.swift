import Foundation
import ProcessSupport

/// The end of the successor at every point until it owns the guest.
extension Harness {
    static let killRows = [
        failure("kill-before-exec", "SIGKILL between the exec and the new VMM's first instruction") { machine in
            [try machine.script("kill -KILL $$")]
        },
        failure("kill-modules", "SIGKILL while the new VMM loads its modules", probe: "register kill") { $0.arguments },
        failure("segfault-modules", "a segfault while the new VMM loads its modules", probe: "register segv") {
            $0.arguments
        },
        failure("exit-modules", "the new VMM exits while it loads its modules", probe: "register exit") {
            $0.arguments
        },
        failure("refused-modules", "a module of the new VMM refuses to register", probe: "register throw") {
            $0.arguments
        },
        failure("hang-modules", "the new VMM hangs while it loads its modules", probe: "register stop", timeout: 1500) {
            $0.arguments
        },
        failure("kill-load", "SIGKILL before the devices take their state", probe: "load kill") { $0.arguments },
        failure("segfault-load", "a segfault before the devices take their state", probe: "load segv") { $0.arguments },
        failure("refused-load", "a preserver of the new VMM refuses the state", probe: "load throw") { $0.arguments },
        failure(
            "hang-load", "the new VMM hangs before the devices take their state", probe: "load stop", timeout: 1500
        ) {
            $0.arguments
        },
        Row("hang-load-three-steps", "the new VMM hangs in cpr-load", .executes) { harness in
            try failDuringLoad(harness, "load stop")
        },
        failure(
            "kill-load-failed", "SIGKILL while the new VMM tells that it refused the state", probe: "load-failed kill"
        ) {
            $0.successor(["--checkpoint", Tampering.olderState.rawValue])
        },
        failure("refused-save", "a preserver refuses while the guest is being saved", probe: "save throw") {
            $0.arguments
        },
        failure("refused-exec", "a preserver refuses just before the exec", probe: "exec throw") { $0.arguments },
        leftBehind("hang-save", "a preserver blocks while the guest is being saved", probe: "save block"),
        leftBehind("hang-exec", "a preserver blocks at the change of hands", probe: "exec block"),
        Row("kill-waiting", "SIGKILL while the new VMM waits for cpr-load", .executes) { harness in
            let machine = try harness.machine()
            let state = try machine.stateBeforeFailure()
            try machine.save()
            try machine.exec()
            machine.process.signal(SIGKILL)
            return try machine.expectTakenBackByEvent(state)
        },
        Row("kill-load-three-steps", "SIGKILL during cpr-load", .executes) { harness in
            try failDuringLoad(harness, "load kill")
        },
        Row(
            "kill-any-time", "SIGKILL of the new VMM at times spread over its start, until it owns the guest", .executes
        ) {
            harness in try killAtAnyTime(harness)
        },
    ]

    /// The client of cpr-load has no answer to expect: the old VMM never had the command.
    private static func failDuringLoad(_ harness: Harness, _ probe: String) throws -> String {
        var options = Machine.Options()
        options.probe = true
        let machine = try harness.machine(options)
        let state = try machine.stateBeforeFailure()
        try machine.save()
        try machine.exec()
        try machine.arm(probe)
        try machine.qmp.executeWithoutAnswer(
            "cpr-load", ["filename": machine.checkpoint, "mode": harness.configuration.mode])
        return try machine.expectTakenBackByEvent(state)
    }

    /// Kills the new VMM at times after the command. The probe stops it before
    /// the devices take their state, so that every kill comes before it owns
    /// the guest.
    private static func killAtAnyTime(_ harness: Harness) throws -> String {
        var options = Machine.Options()
        options.probe = true
        let machine = try harness.machine(options)
        let steps = 20
        var seen: [String: Int] = [:]
        for step in 0..<steps {
            try machine.expectConnections()
            let count = try machine.count()
            let pid = try machine.expectOneProcess()
            machine.qmp.discardEvents()
            let last: String
            do {
                last = try machine.updateAndKill(pid, name: "harness-\(step)", after: UInt32(step) * 700)
            } catch { throw Failure("step \(step): \(error)") }
            seen[last, default: 0] += 1
            let now = try machine.count()
            try require(now >= count, "step \(step): the guest had counted to \(count) and is at \(now)")
            try machine.expectProgress(past: now)
        }
        try machine.expectConnections()
        return "killed \(steps) times; last heard of in "
            + seen.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }.joined(separator: ", ")
    }
}

extension Harness {
    /// A module that blocks in the VMM which has the guest: that goes on, calls nothing
    /// of the module any more, and refuses each later update with the reason.
    private static func leftBehind(_ name: String, _ subject: String, probe: String) -> Row {
        Row(name, subject, .executes) { harness in
            var options = Machine.Options()
            options.probe = true
            let machine = try harness.machine(options)
            let state = try machine.stateBeforeFailure()
            try machine.arm(probe)
            let reason = try machine.update(timeout: 1500)
            machine.disarm()
            guard let reason else { throw Failure("the update was reported as done") }
            let now = try machine.count()
            try require(now >= state.count, "the guest had counted to \(state.count) and is at \(now)")
            try machine.expectProgress(past: now)
            _ = try machine.expectOneProcess()
            try machine.expectConnections()
            let words = "did not come back within"
            try require(reason.contains(words), "the update failed otherwise: \(reason)")
            let next = try machine.update() ?? "no reason: it was updated"
            try require(next.contains(words), "the next update fails otherwise: \(next)")
            try machine.expectProgress(past: try machine.count())
            return reason
        }
    }
}

extension Machine {
    /// The successor was killed after it had answered: only an event can tell.
    fileprivate func expectTakenBackByEvent(_ state: StateBefore) throws -> String {
        let event = try qmp.waitForEvent("CPR_ROLLED_BACK", by: configuration.deadline)
        disarm()
        let pid = try statedPID()
        try require(event["pid"] as? Int == Int(pid), "CPR_ROLLED_BACK says \(event), the PID file \(pid)")
        // `expectTakenBack` wants an event of its own.
        qmp.putBack(["event": "CPR_ROLLED_BACK", "data": event])
        try expectTakenBack(state)
        return event["reason"] as? String ?? ""
    }

    /// Begins an update, and kills the new VMM before it can own the guest.
    /// - Parameters:
    ///   - pid: the VMM's.
    ///   - name: by which the new VMM is known; no other has it.
    ///   - microseconds: the kill's time after the command, as soon as there is a new VMM.
    /// - Returns: the last that the probe has seen of it: a phase, or `exec`.
    package func updateAndKill(_ pid: pid_t, name: String, after microseconds: UInt32) throws -> String {
        try arm("load stop")
        defer { disarm() }
        let phases = phasesSeen().count
        // The old VMM is not to end it before.
        let limits = ["timeout-ms": 60_000, "downtime-ms": 60_000]
        let request: [String: Any] = ["argv": arguments + ["-name", name], "mode": mode, "preflight": false]
        try qmp.executeWithoutAnswer("cpr-update", request.merging(limits) { first, _ in first })
        usleep(microseconds)
        kill(pid, SIGSTOP)
        let deadline = configuration.deadline
        while try !isSuccessorWhenStopped(pid, name) {
            // Still the old one, which must live.
            kill(pid, SIGCONT)
            guard !deadline.hasPassed else { throw Failure("gave up waiting for: the VMM \(pid) becomes the new one") }
            usleep(200)
            kill(pid, SIGSTOP)
        }
        let last = phasesSeen().dropFirst(phases).last ?? "exec"
        kill(pid, SIGKILL)
        guard let answer = try answer(), answer["error"] != nil else {
            throw Failure("the update that was killed was not answered with an error")
        }
        return last
    }

    /// Waits until a process that was sent SIGSTOP stands.
    /// - Returns: whether it is the successor with that name.
    fileprivate func isSuccessorWhenStopped(_ pid: pid_t, _ name: String) throws -> Bool {
        try awaitStop(of: pid)
        let line = try Data(contentsOf: URL(fileURLWithPath: "/proc/\(pid)/cmdline"))
        return line.range(of: Data("\0\(name)\0".utf8)) != nil
    }

    /// Waits until a process stands that was, or has, stopped.
    func awaitStop(of pid: pid_t) throws {
        try eventually("process \(pid) stops", by: configuration.deadline) {
            let stat = try String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8)
            return stat.split(separator: ")").last?.split(separator: " ").first == "T"
        }
    }

    /// The next message that is no event.
    func answer() throws -> [String: Any]? {
        let deadline = configuration.deadline
        while let message = try qmp.receive(by: deadline) {
            if message["event"] == nil { return message }
            guard !deadline.hasPassed else { throw Failure("gave up waiting for: the answer to cpr-update") }
        }
        return nil
    }
}
