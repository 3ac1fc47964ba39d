import ProcessSupport

/// What became of a row.
public enum Verdict: Equatable, Sendable {
    /// With what was seen.
    case passed(String)
    /// With what was wrong.
    case failed(String)
    /// The mode does not promise what the row is about.
    case notPromised

    public var word: String {
        switch self {
        case .passed: "pass"
        case .failed: "FAIL"
        case .notPromised: "not promised"
        }
    }
    public var detail: String {
        switch self {
        case .passed(let text), .failed(let text): text
        case .notPromised: ""
        }
    }
}

/// What a mode may promise, as `query-cpr` spells it.
public enum Promise: String, CaseIterable, Sendable {
    /// A new VMM that the mode executes has the old one's PID.
    case samePID = "same-pid"
    /// The mode executes the new VMM itself.
    case executes
    /// The mode hands the guest over to a VMM that runs already.
    case connects
    case keepsConnections = "keeps-connections"
    case survivesHostReboot = "survives-host-reboot"
    /// The guest stays in memory while the host replaces its kernel.
    case survivesHostUpdate = "survives-host-update"
    /// Follows from the others: the guest goes from one living VMM to another.
    case handsOver = "hands-over"
    /// Follows from the others: `cpr-save` makes a checkpoint that a client has loaded.
    case saves

    /// What follows from promises that a mode makes.
    static func implied(by promises: [Promise]) -> [Promise] {
        (promises.contains(.executes) || promises.contains(.connects) ? [.handsOver] : [])
            + (promises.contains(.executes) || promises.contains(.survivesHostReboot) ? [.saves] : [])
    }
}

/// One row of the table: one thing that is checked.
public struct Row: Sendable {
    public let name: String
    /// What is checked, in a few words.
    public let subject: String
    /// What a mode must promise for the row to be about it.
    public let promises: [Promise]
    /// Does it. Returns what was seen; throws what was wrong.
    let check: @Sendable (Harness) throws -> String

    init(
        _ name: String, _ subject: String, _ promises: Promise..., check: @escaping @Sendable (Harness) throws -> String
    ) {
        self.name = name
        self.subject = subject
        self.promises = promises
        self.check = check
    }
}

/// Throws `text` unless `condition` holds.
package func require(_ condition: Bool, _ text: @autoclosure () -> String) throws {
    if !condition { throw Failure(text()) }
}
