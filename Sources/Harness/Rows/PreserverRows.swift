import Foundation
import ProcessSupport

/// What a preserver must hold, whatever it keeps.
extension Harness {
    static let preserverRows = [
        Row("preserver-registers", "query-cpr lists the preserver") { harness in
            let machine = try harness.machine()
            let names = try machine.query("query-cpr")["preservers"] as? [String] ?? []
            for name in harness.configuration.preservers {
                try require(names.contains(name), "query-cpr lists \(names) and not '\(name)'")
            }
            return names.joined(separator: " ")
        },
        Row(
            "preserver-descriptors", "its descriptors are in query-cpr during the update, and stay the same open files",
            .executes
        ) {
            harness in
            let machine = try harness.machine()
            try machine.save()
            // Chardevs save theirs only at the exec: what is there now is the preservers'.
            let old = try machine.preservedDescriptors()
            let held = try Descriptors(of: try machine.statedPID(), numbers: Array(old.values))
            try machine.exec()
            let new = try machine.preservedDescriptors()
            for key in old.keys { try require(new[key] != nil, "the new VMM's query-cpr lacks '\(key)'") }
            try machine.load()
            try held.expectKept(by: try machine.statedPID())
            try machine.expectProgress(past: try machine.count())
            return old.isEmpty
                ? "it preserves none in this VM (give it devices: arguments behind --)" : "\(old.keys.sorted())"
        },
        Row("preserver-leaks", "updates open, lose and close no descriptor, its own or another's", .executes) {
            harness in
            let machine = try harness.machine()
            let held = try Descriptors(of: try machine.statedPID()) { $0.hasPrefix("socket:") || $0.hasSuffix("/ptmx") }
            try machine.go(.oneStep)
            let descriptors = try machine.descriptors()
            for _ in 0..<5 {
                try machine.go(.oneStep)
                try machine.go(.threeSteps)
            }
            try machine.expectDescriptors(descriptors)
            try held.expectKept(by: try machine.statedPID())
            try machine.expectConnections()
            return "\(descriptors.values.reduce(0, +)) descriptors before and after 10 updates"
        },
        preserverFailure(
            "preserver-after-failed-save", "a save that another preserver ends leaves it as it was", "save throw"),
        preserverFailure(
            "preserver-after-failed-exec", "an exec that another preserver ends leaves it as it was", "exec throw"),
        preserverFailure("preserver-after-rollback", "a new VMM that dies leaves it as it was", "load kill"),
        Row("preserver-save-taken-back", "cont after cpr-save leaves it as it was", .executes) { harness in
            let machine = try harness.machine()
            let state = try machine.stateBeforeFailure()
            for _ in 0..<3 {
                try machine.save()
                try machine.execute("cont")
            }
            try machine.expectTakenBack(state)
            return "three saves taken back"
        },
    ]

    private static func preserverFailure(_ name: String, _ subject: String, _ probe: String) -> Row {
        failure(name, subject, probe: probe) { $0.arguments }
    }
}

extension Machine {
    /// `query-cpr`'s descriptors, by name and id.
    fileprivate func preservedDescriptors() throws -> [String: Int32] {
        let list = try query("query-cpr")["fds"] as? [[String: Any]] ?? []
        return Dictionary(
            list.map { ("\($0["name"] ?? "") \($0["id"] ?? "")", Int32($0["fd"] as? Int ?? -1)) },
            uniquingKeysWith: { first, _ in first })
    }
}
