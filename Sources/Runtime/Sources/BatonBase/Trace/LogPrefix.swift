import CBaton
import Glibc

/// How much a message matters, by syslog(3)'s numbers.
public enum LogLevel: Int {
    case error = 3
    case warning = 4
    case info = 6
    case debug = 7
}

/// What each line of the log and each message begins with: what `-msg` asks for, and the level for systemd's journal.
/// Set at the start, before there is another thread.
public enum LogPrefix {
    /// `-msg timestamp=on`: the time in UTC, as ISO 8601 has it, to the microsecond.
    public nonisolated(unsafe) static var hasTimestamp = false
    /// `-msg guest-name=on`: the name of the guest; nil for none.
    public nonisolated(unsafe) static var guestName: String?
    /// Whether standard error is a stream of the journal's, which reads a line's level from `<N>` before it.
    nonisolated(unsafe) private static var errorIsJournal = false

    /// Looks whether standard error goes to the journal: whoever started the process then names the stream by device
    /// and inode in JOURNAL_STREAM, which stays true until standard error is something else (systemd.exec(5)).
    public static func findJournal() {
        var status = stat()
        guard let stream = getenv("JOURNAL_STREAM"), fstat(2, &status) == 0 else { return }
        errorIsJournal = String(cString: stream) == "\(status.st_dev):\(status.st_ino)"
    }

    /// What comes before a line.
    /// - Parameter fd: where the line goes.
    static func text(_ level: LogLevel, to fd: Int32) -> String {
        var text = fd == 2 && errorIsJournal ? "<\(level.rawValue)>" : ""
        if hasTimestamp { text += timestamp(cbaton_realtime_ns()) + " " }
        // Whoever named the guest may have had another terminal in mind.
        if let guestName { text += TerminalText.escaped(guestName) + " " }
        return text
    }

    /// As QEMU writes it: `2026-11-28T05:06:42.000123Z`.
    /// - Parameter nanoseconds: since 1970, in UTC.
    package static func timestamp(_ nanoseconds: Int64) -> String {
        var seconds = time_t(nanoseconds / 1_000_000_000)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        func padded(_ value: Int, _ width: Int) -> String {
            let digits = String(value)
            return String(repeating: "0", count: max(0, width - digits.utf8.count)) + digits
        }
        let date = [
            padded(Int(parts.tm_year) + 1900, 4), padded(Int(parts.tm_mon) + 1, 2), padded(Int(parts.tm_mday), 2),
        ].joined(separator: "-")
        let time = [parts.tm_hour, parts.tm_min, parts.tm_sec].map { padded(Int($0), 2) }.joined(separator: ":")
        return "\(date)T\(time).\(padded(Int(nanoseconds % 1_000_000_000 / 1000), 6))Z"
    }
}
