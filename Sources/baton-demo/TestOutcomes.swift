import Foundation

/// What became of each test of a run, read from the lines that Swift Testing prints.
struct TestOutcomes {
    /// A test, and why it was skipped or may fail.
    struct Note: Hashable {
        let test: String
        let reason: String
    }

    private(set) var passed = 0
    private(set) var failed = 0
    /// What was wrong, as the tests that fail say it: the file, the line and the expectation.
    private(set) var issues: [Note] = []
    private(set) var skipped: [Note] = []
    /// Known issues, as `withKnownIssue` lists them.
    private(set) var expectedFailures: [Note] = []
    /// Tests that have begun and not ended, with how often.
    private var running: [String: Int] = [:]
    /// A reason of several lines, of which the last is still to come.
    private var unfinished: (test: String, reason: String)?
    /// A known issue, whose reason is in the lines behind.
    private var knownIssue: Note?

    /// Takes a line of the output, without its end.
    mutating func read(_ line: String) {
        if let (test, reason) = unfinished { return readReason(of: test, reason + " " + line) }
        if let issue = knownIssue {
            if line.hasPrefix("↳ ") { return knownIssue = Note(test: issue.test, reason: String(line.dropFirst(2))) }
            noteKnownIssue()
        }
        guard let match = line.wholeMatch(of: Self.pattern) else { return }
        let (name, event, text) = (String(match.1), match.2, String(match.3))
        guard name != "run", !name.hasPrefix("run with "), !name.hasPrefix("case passing ") else { return }
        switch event {
        case "started": running[name, default: 0] += 1
        case "skipped" where text.hasPrefix(": "): readReason(of: name, String(text.dropFirst(2)))
        case "skipped": skipped.append(Note(test: name, reason: "no reason was given"))
        // The first few say enough.
        case "recorded an issue" where issues.count(where: { $0.test == name }) >= 3: break
        case "recorded an issue": issues.append(Note(test: name, reason: text.trimmingPrefix(" ").description))
        case "recorded a known issue": knownIssue = Note(test: name, reason: text)
        case "passed after":
            end(name)
            passed += 1
        case "was cancelled after":
            end(name)
            readReason(of: name, text.range(of: ": ").map { String(text[$0.upperBound...]) } ?? "")
        default:
            end(name)
            failed += 1
        }
    }

    /// Swift Testing's own lines begin with a symbol. A test is there by its display name, in quotes, or as a
    /// function; of one with arguments the number of its cases may follow.
    private static let pattern =
        #/
        [^\x20-\x7e] \s Test \s (".*?" | [^"].*?) (?:\s with \s \d+ \s test \s cases?)? \s
        (started | skipped | recorded\san\sissue | recorded\sa\sknown\sissue
         | passed\safter | failed\safter | was\scancelled\safter) (.*)
        /#

    /// To be called behind the last line.
    mutating func finish() {
        noteKnownIssue()
        if let (test, reason) = unfinished { skipped.append(Note(test: test, reason: reason)) }
        unfinished = nil
    }

    /// Tests whose end was not printed: the process crashed in one of them.
    var unended: [String] { running.keys.sorted() }

    /// The table for the end of the output.
    var table: String {
        var lines: [String] = []
        func list(_ word: String, _ notes: [Note]) {
            for note in notes.sorted(by: { ($0.reason, $0.test) < ($1.reason, $1.test) }) {
                lines.append("\(word): \(note.test) — \(note.reason)")
            }
        }
        list("skipped", skipped)
        list("expected to fail", expectedFailures)
        // The last, as who sees only the end of the output needs these.
        list("failed", issues)
        for test in unended { lines.append("without an end: \(test)") }
        var total = "\(passed) passed, \(failed) failed, \(skipped.count) skipped"
        if !expectedFailures.isEmpty { total += ", \(Set(expectedFailures.map(\.test)).count) with expected failures" }
        if !unended.isEmpty { total += ", \(unended.count) without an end" }
        return (lines + [total]).joined(separator: "\n")
    }

    // MARK: Parts of a line

    private mutating func end(_ name: String) {
        running[name] = running[name].flatMap { $0 > 1 ? $0 - 1 : nil }
    }

    private mutating func noteKnownIssue() {
        if let knownIssue, !expectedFailures.contains(knownIssue) { expectedFailures.append(knownIssue) }
        knownIssue = nil
    }

    /// A reason is in quotes, and ends with the quote at the end of a line.
    private mutating func readReason(of test: String, _ text: String) {
        guard text.count < 2 || text.last != "\"", text.count < 4000 else {
            unfinished = nil
            return skipped.append(Note(test: test, reason: String(text.dropFirst().dropLast())))
        }
        unfinished = (test, text)
    }
}
