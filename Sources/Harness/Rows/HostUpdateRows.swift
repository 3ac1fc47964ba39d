import Foundation
import ProcessSupport

/// What a mode must hold that keeps a guest while the host replaces its kernel, as far as that can be seen in one kernel.
/// Where the host cannot keep any, each refusal must say so.
extension Harness {
    static let hostUpdateRows = [
        Row(
            "host-update-taken-back", "a guest that was kept goes on in the same process, as often as one likes",
            .survivesHostUpdate
        ) { harness in
            let machine = try harness.machine()
            if let obstacle = try machine.hostUpdateObstacle() { return obstacle }
            for _ in 0..<3 {
                try machine.save()
                let stopped = try machine.count()
                let status = try machine.status()
                try require(status == "save-vm", "the VM is \(status) after cpr-save")
                try machine.execute("cont")
                try require(try machine.count() >= stopped, "the guest went back")
                try machine.expectProgress(past: stopped)
            }
            return "kept and taken back 3 times"
        },
        Row(
            "host-update-unwritable-file", "a record that cannot be written leaves the guest running, and nothing kept",
            .survivesHostUpdate
        ) { harness in
            let machine = try harness.machine()
            if let obstacle = try machine.hostUpdateObstacle() { return obstacle }
            let text = try machine.expectRefusals(stopping: true) {
                try ["/nonexistent-directory/checkpoint", "/proc/checkpoint", ""].map {
                    try machine.saveRefusal(to: $0)
                }
            }
            // What is left of one that failed would be in the way of the next.
            try machine.save()
            try machine.execute("cont")
            try machine.expectProgress(past: try machine.count())
            return text
        },
        Row(
            "host-update-nothing-found",
            "cpr-load where no guest of the VM was kept is refused, and so is another guest in its place",
            .survivesHostUpdate
        ) { harness in
            let machine = try harness.machine()
            try machine.quit()
            try machine.startAnew()
            guard let text = try machine.loadRefusal(machine.checkpoint) else { throw Failure("it was taken") }
            try machine.expectNoOtherGuest()
            try machine.quit()
            // Who wants another guest says so by another start.
            try machine.startAnew()
            try machine.execute("cont")
            try machine.expectProgress(past: try machine.count())
            return text
        },
    ]

}

extension Machine {
    /// Why the host keeps no guest, as the mode says it; nil if it may.
    /// - Throws: when the save is not refused with that before the guest stops.
    fileprivate func hostUpdateObstacle() throws -> String? {
        let modes = try query("query-cpr")["modes"] as? [[String: Any]] ?? []
        let mode = modes.first { $0["name"] as? String == configuration.mode }
        guard let blocker = (mode?["blockers"] as? [String])?.first else { return nil }
        let text = try expectRefusals(stopping: false) { [try saveRefusal()] }
        try require(text == blocker, "cpr-save says '\(text)', and query-cpr '\(blocker)'")
        return "refused: \(text)"
    }
}
