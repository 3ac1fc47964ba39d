import ProcessSupport
import Testing

/// Does something that a trial is part of. Now and then, in about one of three runs of the whole suite, a trial does not
/// come to its end, and the preflight is refused when its time is over (Sources/Documentation/known-limits.md). That is
/// noted, and it is done once more; any other refusal is thrown.
public func exceptForALateTrial(_ body: () throws -> Void) throws {
    var isLate = false
    try withKnownIssue("a trial that does not come to its end", isIntermittent: true) {
        do { try body() } catch let refusal as QMPClient.Refusal {
            isLate = refusal.text.hasPrefix("preflight failed: the new VMM did not ")
            throw refusal
        }
    } matching: { _ in
        isLate
    }
    if isLate { try body() }
}
