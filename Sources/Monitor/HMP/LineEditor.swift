/// Edits one line as it is typed: erasing, and the lines typed before.
struct LineEditor {
    enum Result {
        /// To be shown.
        case echo(String)
        /// The line is complete.
        case line(String)
    }

    /// Bytes that a line may have; what is more is ignored.
    private static let lineLimit = 4095
    private static let historyLimit = 64

    private enum State { case text, escape, bracket }

    private var line: [UInt8] = []
    private var state = State.text
    private var afterReturn = false
    private var history: [[UInt8]] = []
    private var historyIndex = 0

    /// The line so far, to be shown again after a prompt.
    var text: String { String(decoding: line, as: UTF8.self) }

    /// The bytes of the line, for a session that goes on elsewhere.
    var bytes: [UInt8] { line }
    mutating func restore(_ bytes: [UInt8]) { line = Array(bytes.prefix(Self.lineLimit)) }

    mutating func clear() {
        line = []
        state = .text
        historyIndex = history.count
    }

    mutating func feed(_ byte: UInt8) -> Result? {
        // A line may end in CR, LF or both.
        let followsReturn = afterReturn
        afterReturn = byte == 13
        switch state {
        case .escape:
            state = byte == UInt8(ascii: "[") || byte == UInt8(ascii: "O") ? .bracket : .text
            return nil
        case .bracket:
            if (0x40...0x7E).contains(byte) { state = .text }
            if byte == UInt8(ascii: "A") { return recall(historyIndex - 1) }
            if byte == UInt8(ascii: "B") { return recall(historyIndex + 1) }
            return nil
        case .text: break
        }
        switch byte {
        case 10 where followsReturn: return nil
        case 10, 13: return finish()
        case 8, 127: return erase(1)
        case 21, 3: return erase(line.count)
        case 23: return erase(lastWord)
        case 16: return recall(historyIndex - 1)
        case 14: return recall(historyIndex + 1)
        case 27:
            state = .escape
            return nil
        case 0..<32: return nil
        default:
            guard line.count < Self.lineLimit else { return nil }
            line.append(byte)
            // Bytes of one character are shown together, once it is whole.
            return byte < 0x80 ? .echo(String(Unicode.Scalar(byte))) : echoWholeCharacter()
        }
    }

    private func echoWholeCharacter() -> Result? {
        var start = line.count - 1
        while start > 0, line[start] & 0xC0 == 0x80, line.count - start < 4 { start -= 1 }
        return String(validating: line[start...], as: UTF8.self).map { .echo($0) }
    }

    private mutating func finish() -> Result {
        let text = self.text
        if !line.isEmpty, history.last != line {
            history.append(line)
            if history.count > Self.historyLimit { history.removeFirst() }
        }
        clear()
        return .line(text)
    }

    private var lastWord: Int {
        let blanks = line.reversed().prefix { $0 == 32 }.count
        return blanks + line.dropLast(blanks).reversed().prefix { $0 != 32 }.count
    }

    private mutating func erase(_ count: Int) -> Result? {
        var columns = 0
        for _ in 0..<count {
            guard var last = line.popLast() else { break }
            while last & 0xC0 == 0x80, let previous = line.popLast() { last = previous }
            columns += 1
        }
        return columns == 0 ? nil : .echo(String(repeating: "\u{8} \u{8}", count: columns))
    }

    private mutating func recall(_ index: Int) -> Result? {
        guard index >= 0, index <= history.count else { return nil }
        let columns = line.count { $0 & 0xC0 != 0x80 }
        historyIndex = index
        line = index < history.count ? history[index] : []
        return .echo(String(repeating: "\u{8} \u{8}", count: columns) + text)
    }
}
