import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl update`: replaces a running VMM, in one step.
struct Update: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Replaces a VMM under its running guest.",
        discussion: """
            Without a command line the new VMM gets the one that the running VMM was started with; --binary then says \
            which binary. The new VMM is tried beside the guest first. With --channel the guest goes to a VMM that \
            somebody has started already, with a command line of its own. Whatever goes wrong, the guest runs on in \
            the old VMM, and the exit status is 1.
            """)

    @Option(help: "The monitor: a unix socket's path, or HOST:PORT.")
    var qmp: String

    @Option(help: "The new VMM; by default the program that runs now, or what has taken its place on disk.")
    var binary: String?

    @Option(help: "The CPR mode; by default the first enabled one that fits.")
    var mode: String?

    @Option(help: "The unix socket at which a new VMM waits that runs already (-incoming); for the mode transfer.")
    var channel: String?

    @Option(help: "The number of the user that the VMM at --channel runs as; by default the old VMM's, or root.")
    var peerUid: Int64?

    @Option(help: "Milliseconds that each stage may take.")
    var timeoutMs: Int64 = 10_000

    @Flag(inversion: .prefixedNo, help: "Try the new VMM beside the running guest first.")
    var preflight = true

    @Flag(help: "Only try the new VMM; do not update.")
    var check = false

    @Argument(parsing: .postTerminator, help: "The new command line, from the program's name on.")
    var argv: [String] = []

    func run() throws {
        do {
            try update()
        } catch let error as VMMError {
            Progress.end()
            let text = TerminalText.escaped(error.description, keepingLines: true)
            FileHandle.standardError.write(Data("baton-ctl: \(text)\n".utf8))
            throw ExitCode.failure
        }
    }

    private func update() throws {
        var report: JSONObject?
        let monitor = try MonitorConnection(qmp, milliseconds: timeoutMs) { event, data in
            if event == "CPR", let phase = data["phase"]?.stringValue { Progress.show(phase) }
            if event == "CPR_UPDATED" { report = data }
        }
        guard let before = try monitor.execute("query-cpr").objectValue else {
            throw VMMError("no answer to query-cpr")
        }
        var arguments: JSONObject = ["timeout-ms": .int(timeoutMs)]
        if let mode { arguments["mode"] = .string(mode) }
        if let channel {
            guard argv.isEmpty, binary == nil, !check else {
                throw VMMError("--channel names a VMM that runs already: there is no command line to give or to check")
            }
            return try handOver(monitor, channel, arguments)
        }
        arguments["argv"] = .array(try commandLine(before).map { .string($0) })
        if check {
            Progress.show("preflight")
            let result = try monitor.execute("cpr-preflight", arguments).objectValue
            Progress.end()
            if let output = result?["output"]?.stringValue, !output.isEmpty {
                print(TerminalText.escaped(output, keepingLines: true), terminator: "")
            }
            print("the new VMM could take the guest over (start-up \(result?["time-us"]?.intValue ?? 0) us)")
            return
        }
        // Before there is no way back.
        for warning in (before["warnings"]?.arrayValue ?? []).compactMap(\.stringValue) {
            FileHandle.standardError.write(Data("baton-ctl: warning: \(warning)\n".utf8))
        }
        arguments["preflight"] = .bool(preflight)
        if preflight { Progress.show("preflight") }
        do {
            try monitor.execute("cpr-update", arguments)
        } catch let error as VMMError {
            let pid = try? monitor.execute("query-cpr").objectValue?["pid"]?.intValue
            throw VMMError(
                error.message,
                hint: "The guest is still with the old VMM (process \(pid.map(String.init) ?? "unknown")).")
        }
        // It comes with the guest's first steps, for which a busy machine may take its time.
        try monitor.takeEvents(milliseconds: 10_000) { report != nil }
        Progress.end()
        printSummary(report, try monitor.execute("query-cpr").objectValue)
    }

    /// To a VMM that runs already. The monitor stays with the old one, which ends.
    private func handOver(_ monitor: MonitorConnection, _ channel: String, _ arguments: JSONObject) throws {
        var arguments = arguments
        arguments["channel"] = .string(channel)
        if let peerUid { arguments["peer-uid"] = .int(peerUid) }
        do {
            try monitor.execute("cpr-update", arguments)
        } catch let error as VMMError {
            throw VMMError(error.message, hint: "The guest is still with the old VMM.")
        }
        Progress.end()
        print("updated: the guest is with the VMM that waited at \(TerminalText.escaped(channel))")
    }

    /// The new VMM's arguments.
    private func commandLine(_ now: JSONObject) throws -> [String] {
        var result = argv
        if result.isEmpty { result = (now["argv"]?.arrayValue ?? []).compactMap(\.stringValue) }
        guard !result.isEmpty else {
            throw VMMError("the VMM does not tell its command line; give the new one after --")
        }
        if let binary { result[0] = binary }
        return result
    }

    private func printSummary(_ report: JSONObject?, _ now: JSONObject?) {
        let pid = now?["pid"]?.intValue ?? 0
        let generation = now?["generation"]?.intValue ?? 0
        print("updated: process \(pid), update \(generation) of this guest")
        guard let report else { return }
        for (name, value) in report.members {
            let label = TerminalText.escaped(name == "pause-us" ? "pause" : "  \(name.dropLast(3))")
            let padding = String(repeating: " ", count: max(1, 16 - label.count))
            let time = String(format: "%8.3f ms", Double(value.intValue ?? 0) / 1000)
            print("\(label)\(padding)\(time)")
        }
    }
}

/// The line that tells how far an update is: one line that grows, on the
/// standard error.
private enum Progress {
    nonisolated(unsafe) private static var isOpen = false

    static func show(_ step: String) {
        write(isOpen ? " > \(step)" : step)
        isOpen = true
    }

    static func end() {
        if isOpen { write("\n") }
        isOpen = false
    }

    private static func write(_ text: String) {
        FileHandle.standardError.write(Data(TerminalText.escaped(text, keepingLines: true).utf8))
    }
}
