import BatonRuntime
import Foundation
import TestSupport
import Testing

/// The log, which a guest can cause any number of lines in. It is the process' own, so one test at a time.
@Suite(.oneThread) struct LogTests {
    private let directory: TemporaryDirectory
    private let file: String

    init() throws {
        directory = try TemporaryDirectory()
        file = directory.file("log")
        try Log.open(file: file)
        Log.mask.insert(.guestErrors)
    }

    private func lines() throws -> [String] {
        try String(contentsOfFile: file, encoding: .utf8).split(separator: "\n").map(String.init)
    }

    @Test("After a flood of lines a later one is seen, and the flood itself is short and counted")
    func flood() throws {
        defer { Log.mask.remove(.guestErrors) }
        let count = 1_200_000
        for _ in 0..<count { Log.guestError("flood") }
        try eventually("a later line") {
            Log.guestError("later")
            return try lines().last == "later"
        }
        let all = try lines()
        #expect(all.count < 20_000, "\(all.count) lines")
        #expect(all.filter { $0 == "flood" }.count >= 100)
        let notice = try #require(all.last { $0.hasSuffix("guest_errors messages suppressed") })
        let suppressed = all.filter { $0.hasSuffix("messages suppressed") }
            .compactMap { Int($0.split(separator: " ")[1]) }.reduce(0, +)
        #expect(suppressed + all.filter { $0 == "flood" }.count >= count, "\(notice)")
    }

    @Test("What a guest says in a line does not control a terminal, nor begin another line")
    func escapes() throws {
        defer { Log.mask.remove(.guestErrors) }
        try eventually("a line") {
            Log.guestError("disk \u{1b}[2J\nforged: line\u{9b}")
            return try !lines().isEmpty
        }
        #expect(try lines().last == "disk \\x1b[2J\\nforged: line\\x9b")
    }

    @Test(
        "Text for a terminal keeps what can be read",
        arguments: [
            ("plain text", "plain text"),
            ("Grüße, 漢字 €", "Grüße, 漢字 €"), ("a\u{0}b", "a\\x00b"), ("\u{7f}", "\\x7f"),
            ("\u{85}", "\\x85"), ("\u{202e}x\u{2069}", "\\u{202e}x\\u{2069}"), ("a\nb\tc", "a\\nb\\tc"),
        ])
    func terminalText(text: String, shown: String) {
        Log.mask.remove(.guestErrors)
        #expect(TerminalText.escaped(text) == shown)
        #expect(TerminalText.escaped("a\nb\t\u{1b}", keepingLines: true) == "a\nb\t\\x1b")
    }
}
