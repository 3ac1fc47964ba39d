import Foundation
import ProcessSupport

/// Successors that fail: each leads back to the guest where it stopped, with
/// every connection open, and whoever asked is told why.
extension Harness {
    static let failureRows =
        [
            failure("fails-missing", "the new binary does not exist") { _ in ["/nonexistent/baton"] },
            failure("fails-not-executable", "the new binary is not executable") { machine in
                [try machine.directory.write("plain", "#!/bin/sh\n")]
            },
            failure("fails-script", "the new binary is a shell script that exits 1") { machine in
                [try machine.script("exit 1")]
            },
            failure("fails-segfault", "the new binary segfaults in its start") { machine in
                [try machine.script("kill -SEGV $$")]
            },
            failure("fails-hang", "the new binary hangs beyond the limit", timeout: 300) { _ in ["sleep", "1000"] },
            failure("fails-closed-descriptors", "a wrapper closes what the new VMM was to inherit") { machine in
                // A shell closes descriptors of one digit only; python may not be there.
                let closing = (3...9).map { "exec \($0)>&-" }.joined(separator: "; ")
                return [try machine.script("\(closing); exec \"$@\"")] + machine.arguments
            },
            failure("fails-module", "the new VMM lacks a module") {
                $0.arguments + ["-module", "/nonexistent/libmode-none.so"]
            },
            failure("fails-mode", "the new VMM has the mode not enabled") { machine in
                var rest = machine.arguments
                guard let at = rest.lastIndex(of: "-cpr-enable") else { throw Failure("no mode to leave out") }
                rest.removeSubrange(at...at + 1)
                return rest
            },
            failure("fails-option", "the new VMM gets a wrong option") { $0.arguments + ["-no-such-option"] },
            failure("fails-ram-size", "the new VMM gets another size of RAM") { machine in
                machine.arguments.map { $0.replacingOccurrences(of: "16M", with: "32M") }
            },
            failure("fails-lost-device", "the new VMM lacks a device that was saved") { machine in
                var rest = machine.arguments
                guard let at = rest.firstIndex(of: "virtio-rng-device") else { throw Failure("no device to leave out") }
                rest.removeSubrange(at - 1...at)
                return rest
            },
            failure("fails-more-harts", "the new VMM has a hart that was not saved") { machine in
                machine.arguments + ["-smp", "2"]
            },
        ]
        + Tampering.allCases.map { tampering in
            failure(
                "fails-checkpoint-\(tampering.rawValue)", "the new VMM finds a checkpoint that is \(tampering.words)"
            ) {
                machine in machine.successor(["--checkpoint", tampering.rawValue])
            }
        }

    /// - Parameter argv: the bad successor.
    static func failure(
        _ name: String, _ subject: String, probe: String? = nil, timeout: Int = 10_000,
        argv: @escaping @Sendable (Machine) throws -> [String]
    ) -> Row {
        Row(name, subject, .executes) { harness in
            var options = Machine.Options()
            options.probe = probe != nil
            let machine = try harness.machine(options)
            let state = try machine.stateBeforeFailure()
            if let probe { try machine.arm(probe) }
            let reason = try machine.update(try argv(machine), timeout: timeout)
            machine.disarm()
            guard let reason else { throw Failure("the update was reported as done") }
            try machine.expectTakenBack(state)
            return reason
        }
    }
}

extension Tampering {
    fileprivate var words: String {
        switch self {
        case .damaged: "damaged"
        case .truncated: "truncated"
        case .olderState: "of a hart's older state version"
        case .newerState: "of a hart's newer state version"
        case .unknownSection: "of a device that it does not know"
        case .foreign: "another file altogether"
        }
    }
}

extension Machine {
    /// What must be there again after a failure.
    struct StateBefore {
        var count: UInt64
        var descriptors: [String: Int]
    }

    func stateBeforeFailure() throws -> StateBefore {
        try expectConnections()
        let descriptors = try self.descriptors()
        qmp.discardEvents()
        return StateBefore(count: try count(), descriptors: descriptors)
    }

    /// The guest is back as if nothing had been tried, and the next update
    /// works.
    func expectTakenBack(_ before: StateBefore, way: Harness.Way = .oneStep) throws {
        let now = try count()
        try require(now >= before.count, "the guest had counted to \(before.count) and is at \(now)")
        try expectProgress(past: now)
        let pid = try expectOneProcess()
        if pid != process.pid {
            let event = try qmp.waitForEvent("CPR_ROLLED_BACK", by: configuration.deadline)
            try require(event["pid"] as? Int == Int(pid), "CPR_ROLLED_BACK says \(event), the PID is \(pid)")
            try require((event["reason"] as? String)?.isEmpty == false, "CPR_ROLLED_BACK gives no reason")
        }
        try expectConnections()
        try expectDescriptors(before.descriptors)
        try expectLooksFine()
        do { try go(way) } catch { throw Failure("after the failure a good update fails: \(error)") }
        try expectProgress(past: try count())
        try expectConnections()
        _ = try expectOneProcess()
    }

    /// A command that does something to itself or the state, and then executes
    /// the VMM.
    func successor(_ deeds: [String]) -> [String] { [configuration.tool, "successor"] + deeds + ["--"] + arguments }

    /// An executable shell script.
    func script(_ text: String) throws -> String {
        let path = try directory.write("script", "#!/bin/sh\n\(text)\n")
        chmod(path, 0o755)
        return path
    }

    // MARK: The probe

    private var probeFile: String { directory.file("probe") }

    /// Has the probe do something from now on: lines of `PHASE ACTION`.
    package func arm(_ instructions: String) throws { try directory.write("probe", instructions + "\n") }
    package func disarm() { unlink(probeFile) }

    /// Every phase that the probe has seen so far.
    func phasesSeen() -> [String] {
        let text = (try? String(contentsOfFile: probeFile + ".log", encoding: .utf8)) ?? ""
        return text.split(separator: "\n").map { String($0.prefix { $0 != " " }) }
    }
}
