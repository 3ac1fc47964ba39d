import Glibc

/// Messages to the person who started the VMM, in QEMU's format, on standard error.
public enum Report {
    /// The program's name before each message.
    public nonisolated(unsafe) static var program = "baton"
    /// A guest, a client or a peer can cause warnings at will.
    nonisolated(unsafe) private static var budget = LineBudget(burst: 1000, perSecond: 100)

    public static func error(_ error: VMMError) {
        line("\(program): \(error.message)", .error)
        if let hint = error.hint { line(hint, .error) }
    }
    /// Warnings and what follows are limited to 100 a second, and 1,000 at once; how many were left out is said with
    /// the next one.
    public static func warning(_ message: String) { limited("\(program): warning: \(message)", .warning) }
    public static func info(_ message: String) { limited("\(program): info: \(message)", .info) }

    private static func limited(_ text: String, _ level: LogLevel) {
        guard budget.take(at: EventLoop.now) else { return }
        let lost = budget.takeSuppressed()
        if lost > 0 { line("\(program): warning: \(lost) messages suppressed", .warning) }
        line(text, level)
    }

    private static func line(_ text: String, _ level: LogLevel) {
        // A message may quote a file, a peer or the guest. Each of its lines is one of the journal's.
        let prefix = LogPrefix.text(level, to: 2)
        var text = TerminalText.escaped(text, keepingLines: true).split(
            separator: "\n", omittingEmptySubsequences: false
        )
        .map { prefix + $0 + "\n" }.joined()
        text.withUTF8 { _ = Glibc.write(2, $0.baseAddress, $0.count) }
    }
}
