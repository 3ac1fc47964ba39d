/// Splits a line into words as a POSIX shell does, without expanding anything:
/// blanks separate, `'…'`, `"…"` and `\` quote. HMP's commands take their
/// arguments this way.
public enum ShellWords {
    /// - Throws: an error for a quote that is not closed.
    public static func split(_ line: String) throws(VMMError) -> [String] {
        var words: [String] = []
        var word: [UInt8]?
        var quote: UInt8?
        var bytes = Array(line.utf8)[...]
        while let byte = bytes.popFirst() {
            if byte == UInt8(ascii: "\\") && quote != UInt8(ascii: "'") {
                guard let next = bytes.popFirst() else { throw VMMError("unfinished '\\' at the end of the line") }
                word = (word ?? []) + [next]
            } else if let open = quote {
                if byte == open { quote = nil } else { word?.append(byte) }
            } else if byte == UInt8(ascii: "'") || byte == UInt8(ascii: "\"") {
                quote = byte
                word = word ?? []
            } else if byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") {
                if let done = word { words.append(String(decoding: done, as: UTF8.self)) }
                word = nil
            } else {
                word = (word ?? []) + [byte]
            }
        }
        if let quote { throw VMMError("unfinished quote \(Unicode.Scalar(quote))") }
        if let done = word { words.append(String(decoding: done, as: UTF8.self)) }
        return words
    }
}
