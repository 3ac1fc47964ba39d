import Foundation
import ProcessSupport

/// A successor is tried beside the running guest, which must not notice.
extension Harness {
    static let preflightRows = [
        Row(
            "preflight-passes", "a preflight of a good command passes, and neither guest nor client notices", .executes
        ) { harness in
            let machine = try harness.machine()
            let state = try machine.stateBeforeFailure()
            let report = try machine.expectUnnoticed { try machine.preflight(machine.arguments) }
            try machine.expectDescriptors(state.descriptors)
            if let reason = try machine.update(preflight: true) {
                throw Failure("an update with preflight fails: \(reason)")
            }
            try machine.expectProgress(past: state.count)
            try machine.expectConnections()
            return report
        },
        Row("preflight-paused", "a preflight changes no page of a paused guest's RAM", .executes) { harness in
            let machine = try harness.machine()
            let count = try machine.stop()
            let before = try RAMSnapshot(machine)
            let report = try machine.preflight(machine.arguments)
            try before.expectEqual(to: try RAMSnapshot(machine))
            try machine.expectStopped(at: count, "paused")
            try machine.execute("cont")
            try machine.expectLooksFine()
            return report
        },
        Row(
            "preflight-refuses",
            "a preflight tells what would fail, and an update with it fails before the guest stops", .executes
        ) {
            harness in
            let machine = try harness.machine()
            let state = try machine.stateBeforeFailure()
            var lost = machine.arguments
            guard let device = lost.firstIndex(of: "virtio-rng-device") else { throw Failure("no device to leave out") }
            lost.removeSubrange(device - 1...device)
            let bad: [(what: String, argv: [String])] = [
                ("a binary that does not exist", ["/nonexistent/baton"]),
                ("a script that exits 1", [try machine.script("exit 1")]),
                ("a wrong option", machine.arguments + ["-no-such-option"]),
                ("a module that is not there", machine.arguments + ["-module", "/nonexistent/libmode-none.so"]),
                ("another size of RAM", machine.arguments.map { $0.replacingOccurrences(of: "16M", with: "32M") }),
                ("a hart more", machine.arguments + ["-smp", "2"]),
                ("a device less", lost),
                ("a binary that hangs", ["sleep", "1000"]),
            ]
            var reasons: [String] = []
            for (what, argv) in bad {
                reasons.append(
                    try machine.expectUnnoticed {
                        do {
                            _ = try machine.preflight(argv, timeout: 400)
                        } catch let refusal as QMPClient.Refusal {
                            return refusal.text
                        }
                        throw Failure("the preflight of \(what) passed")
                    })
                _ = try machine.expectUnnoticed {
                    guard let reason = try machine.update(argv, timeout: 400, preflight: true) else {
                        throw Failure("an update with preflight to \(what) was done")
                    }
                    return reason
                }
            }
            try machine.expectTakenBack(state)
            return "\(bad.count) kinds; \(reasons[2])"
        },
    ]
}

extension Machine {
    /// - Returns: what it reports.
    fileprivate func preflight(_ argv: [String], timeout: Int = 10_000) throws -> String {
        let report =
            try execute(
                "cpr-preflight", ["argv": argv, "mode": configuration.mode, "timeout-ms": timeout]) as? [String: Any]
        return "\(report?["time-us"] ?? "?") us"
    }

    /// The guest runs on in the same process, and no client is told anything.
    fileprivate func expectUnnoticed(_ body: () throws -> String) throws -> String {
        let pid = try expectOneProcess()
        let before = try count()
        let generation = try query("query-cpr")["generation"] as? Int
        qmp.discardEvents()
        let result = try body()
        _ = try status()
        let events = qmp.events.compactMap { $0["event"] as? String }
        try require(!events.contains("STOP") && !events.contains("CPR_ROLLED_BACK"), "events came: \(events)")
        try require(try expectOneProcess() == pid, "the PID changed")
        try require(try query("query-cpr")["generation"] as? Int == generation, "it was counted as an update")
        try expectProgress(past: before)
        try expectConnections()
        return result
    }
}
