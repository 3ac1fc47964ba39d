import Foundation

/// The macro language of manual pages, mdoc(7).
enum Mdoc {
    /// Text on lines of its own, a sentence each: nothing of it is a macro or an escape.
    static func text(_ text: String) -> String {
        text.replacing(#/([.!?]) (?=[A-Z('\-])/#) { "\($0.1)\n" }
            .split(separator: "\n", omittingEmptySubsequences: false)
            .map { line in
                let escaped = escape(line.trimmingCharacters(in: .whitespaces))
                return escaped.hasPrefix(".") || escaped.hasPrefix("'") ? "\\&\(escaped)" : escaped
            }.map { $0.isEmpty ? ".Pp\n" : "\($0)\n" }.joined()
    }

    /// An argument of a macro: one word, and not a macro itself.
    static func word(_ text: String) -> String {
        "\"\\&\(escape(text).replacingOccurrences(of: "\"", with: "\\(dq"))\""
    }

    /// What could be a hyphen of a broken word is a minus, to be copied from the page.
    private static func escape(_ text: String) -> String {
        text.replacingOccurrences(of: "\\", with: "\\e").replacingOccurrences(of: "-", with: "\\-")
    }

    /// A list of `NAME   what it is`, a line each, as baton's `help` prints it; other lines are left out.
    static func list(of help: String) -> String {
        var result = ".Bl -tag -width Ds\n"
        for line in help.split(separator: "\n") where line.hasPrefix("  ") {
            let parts = line.split(separator: " ", maxSplits: 1)
            guard let name = parts.first else { continue }
            result += ".It Cm \(word(String(name)))\n"
            if parts.count > 1 { result += text(String(parts[1])) }
        }
        return result + ".El\n"
    }
}
