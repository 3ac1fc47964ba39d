/// Text for a terminal or a log that may come from a guest, a file or a peer.
public enum TerminalText {
    /// The text with all that controls a terminal, or turns its reading direction, written as what it is (`\\x1b`);
    /// other characters stay.
    /// - Parameter keepingLines: whether ends of lines and tabs stay too.
    public static func escaped(_ text: String, keepingLines: Bool = false) -> String {
        func isHarmless(_ scalar: Unicode.Scalar) -> Bool {
            if keepingLines && (scalar == "\n" || scalar == "\t") { return true }
            switch scalar.value {
            case 0x20..<0x7f: return true
            case ..<0xa0: return false
            // Marks, embeddings, overrides and isolates of direction, and the separators of lines and paragraphs.
            case 0x61c, 0x200e, 0x200f, 0x2028...0x202e, 0x2066...0x2069: return false
            default: return true
            }
        }
        if text.unicodeScalars.allSatisfy(isHarmless) { return text }
        var result = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            if isHarmless(scalar) {
                result.append(scalar)
            } else if let short = ["\n": "\\n", "\r": "\\r", "\t": "\\t"][scalar] {
                result.append(contentsOf: short.unicodeScalars)
            } else {
                let digits = String(scalar.value, radix: 16)
                let padding = String(repeating: "0", count: max(0, 2 - digits.utf8.count))
                let text = scalar.value < 0x100 ? "\\x\(padding)\(digits)" : "\\u{\(digits)}"
                result.append(contentsOf: text.unicodeScalars)
            }
        }
        return String(result)
    }
}
