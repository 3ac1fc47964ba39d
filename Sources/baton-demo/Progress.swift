import Foundation

/// One line that is overwritten on a terminal, and left out anywhere else.
final class Progress {
    private let isTerminal = isatty(1) == 1
    private var shown = false
    private var last = 0.0

    /// Shows what goes on, at most ten times a second.
    func update(_ text: @autoclosure () -> String) {
        guard isTerminal, Clock.now - last > 0.1 else { return }
        last = Clock.now
        let visible = text().unicodeScalars.filter { $0.value >= 0x20 && $0.value != 0x7f }.prefix(100)
        var line = String.UnicodeScalarView()
        line.append(contentsOf: visible)
        write("\r\u{1b}[K" + String(line))
        shown = true
    }

    /// Says something that stays.
    func say(_ text: String) {
        write((shown ? "\r\u{1b}[K" : "") + text + "\n")
        shown = false
    }

    private func write(_ text: String) { FileHandle.standardOutput.write(Data(text.utf8)) }
}
