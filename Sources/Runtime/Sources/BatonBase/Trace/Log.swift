import Glibc

/// QEMU's `-d` items that this VMM has.
public struct LogMask: OptionSet {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Accesses by the guest that the device or the architecture forbids.
    public static let guestErrors = LogMask(rawValue: 1)
    /// Functions that the guest asked for and that are not implemented.
    public static let unimp = LogMask(rawValue: 2)
    /// Exceptions and interrupts as a CPU takes them.
    public static let int = LogMask(rawValue: 4)
    /// Trace events enabled with `-trace`.
    public static let trace = LogMask(rawValue: 8)

    /// Name, mask and help text of each item, for `-d help`.
    public static let items: [(name: String, mask: LogMask, help: String)] = [
        (
            "guest_errors", .guestErrors,
            "log when the guest OS does something invalid (eg accessing a non-existent register)"
        ),
        ("unimp", .unimp, "log unimplemented functionality"),
        ("int", .int, "show interrupts/exceptions in short format"),
        ("trace:PATTERN", .trace, "enable trace events"),
    ]
}

/// The log of `-d`, `-trace` and `-D`: one line an event, to standard error or
/// the file of `-D`.
public enum Log {
    /// What is logged. Read on every refusal of a guest's access, so a plain word.
    public nonisolated(unsafe) static var mask: LogMask = []
    nonisolated(unsafe) static var fd: Int32 = 2
    nonisolated(unsafe) static var patterns: [String] = []
    /// How many lines of each kind there may be: the guest can cause them at will.
    nonisolated(unsafe) private static var budgets = [
        "guest_errors": LineBudget(burst: 1000, perSecond: 100), "unimp": LineBudget(burst: 1000, perSecond: 100),
        "int": LineBudget(burst: 100_000, perSecond: 10_000), "trace": LineBudget(burst: 100_000, perSecond: 10_000),
        "helper": LineBudget(burst: 200, perSecond: 20),
    ]

    /// Logs an access by the guest that is not allowed.
    @inline(__always)
    public static func guestError(_ message: @autoclosure () -> String) {
        if mask.contains(.guestErrors), admits("guest_errors") { writeLine(message(), .info) }
    }

    /// Logs a function that is not implemented.
    @inline(__always)
    public static func unimplemented(_ message: @autoclosure () -> String) {
        if mask.contains(.unimp), admits("unimp") { writeLine(message(), .info) }
    }

    /// Logs a line that a program which the VMM has started wrote to its standard error.
    public static func helper(_ name: String, _ line: String) {
        if admits("helper") { writeLine("\(name): \(line)") }
    }

    /// Logs a trace event that `-trace` enabled: `NAME MESSAGE`.
    @inline(__always)
    public static func trace(_ event: StaticString, _ message: @autoclosure () -> String) {
        if mask.contains(.trace) { traceSlow(event.description, message()) }
    }

    /// Logs an exception or interrupt. The caller looks at the mask.
    @inline(never)
    public static func interrupt(_ message: @autoclosure () -> String) {
        if admits("int") { writeLine(message()) }
    }

    @inline(never)
    private static func traceSlow(_ event: String, _ message: String) {
        guard patterns.contains(where: { matches(Array(event.utf8)[...], Array($0.utf8)[...]) }), admits("trace")
        else { return }
        writeLine("\(event) \(message)")
    }

    /// Whether another line of a kind may be written; says first how many were not.
    @inline(never)
    private static func admits(_ kind: String) -> Bool {
        guard var budget = budgets[kind] else { return true }
        defer { budgets[kind] = budget }
        guard budget.take(at: EventLoop.now) else { return false }
        let lost = budget.takeSuppressed()
        if lost > 0 { writeLine("log: \(lost) \(kind) messages suppressed") }
        return true
    }

    /// Enables the trace events that a glob pattern (`*` only, as QEMU's) names.
    public static func enableTrace(_ pattern: String) {
        patterns.append(pattern)
        mask.insert(.trace)
    }

    /// Parses the argument of `-d`: items joined by commas.
    public static func enable(items argument: String) throws(VMMError) {
        for item in argument.split(separator: ",") {
            if item.hasPrefix("trace:") {
                enableTrace(String(item.dropFirst(6)))
            } else if let known = LogMask.items.first(where: { $0.name == item }) {
                mask.insert(known.mask)
            } else {
                throw VMMError("Invalid parameter '\(item)'", hint: "Use -d help to list the log items.")
            }
        }
    }

    /// Sends the log to the end of a file, a device or a FIFO: the argument of `-D`.
    public static func open(file path: String) throws(VMMError) {
        fd = try FD.openFile(path, O_WRONLY | O_CREAT | O_APPEND, kinds: kinds, mode: 0o644).release()
    }

    private static let kinds: [FileKind] = [.regular, .characterDevice, .fifo]

    /// For a trial, which opens none.
    public static func check(file path: String) throws(VMMError) {
        try FD.checkWritable(path, kinds: kinds, mayBeAsked: true)
    }

    /// At the end of the process: says what has not been said of lines that were not written.
    public static func finish() {
        for kind in budgets.keys.sorted() {
            let lost = budgets[kind]?.takeSuppressed() ?? 0
            if lost > 0 { writeLine("log: \(lost) \(kind) messages suppressed") }
        }
    }

    /// The names of all trace events, for `-trace help`.
    public static let events = [
        "anon_memfd_alloc", "cpr_commit", "cpr_exec", "cpr_load", "cpr_preflight", "cpr_rehearsal", "cpr_save",
        "cpr_volatile_ram",
        "handle_qmp_command", "module_load", "module_log", "module_method_ignored", "monitor_qmp_respond",
        "net_backend_disconnect", "net_backend_drop",
    ]

    /// Writes one line, whatever its kind's number. What the guest or a file says in it cannot control a terminal.
    @inline(never)
    private static func writeLine(_ text: String, _ level: LogLevel = .debug) {
        var line = LogPrefix.text(level, to: fd) + TerminalText.escaped(text) + "\n"
        line.withUTF8 { _ = Glibc.write(fd, $0.baseAddress, $0.count) }
    }

    private static func matches(_ text: ArraySlice<UInt8>, _ pattern: ArraySlice<UInt8>) -> Bool {
        guard let first = pattern.first else { return text.isEmpty }
        if first == UInt8(ascii: "*") {
            let rest = pattern.dropFirst()
            if rest.isEmpty { return true }
            return (text.startIndex...text.endIndex).contains { matches(text[$0...], rest) }
        }
        guard let head = text.first, head == first else { return false }
        return matches(text.dropFirst(), pattern.dropFirst())
    }
}
