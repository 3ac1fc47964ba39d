import BatonRuntime
import Foundation

/// The update of one VM.
struct UpdateOfOne {
    /// What became of an update that took place, or of a trial.
    struct Result {
        /// For people; ends in a newline.
        var text: String
        /// The new VMM's, from `query-cpr`.
        var pid: Int64?
        var update: Int64?
        var version: String?
        /// What CPR_UPDATED said: the pause and its phases in microseconds.
        var times: JSONObject?
        /// What was to be known before there was no way back.
        var warnings: [String] = []
        var wasChecked = false

        var pause: Int64? { times?["pause-us"]?.intValue }

        func json(name: String) -> JSONObject {
            var object: JSONObject = ["name": .string(name), "result": .string(wasChecked ? "checked" : "updated")]
            if let pid { object["pid"] = .int(pid) }
            if let update { object["update"] = .int(update) }
            if let version { object["version"] = .string(version) }
            if let times { object["times"] = .object(times) }
            if !warnings.isEmpty { object["warnings"] = .array(warnings.map { .string($0) }) }
            return object
        }
    }

    /// What an update goes through, in this order, for a bar; a trial of its own ends after the first.
    static let steps = ["preflight", "save", "exec", "load", "commit"]

    let machine: Machine
    let options: Update
    /// Is told of each step.
    let onStep: (String) -> Void

    /// - Throws: why the guest is still with the old VMM, or why nothing is known.
    func carryOut() throws -> Result {
        var times: JSONObject?
        let monitor = try machine.connect(milliseconds: options.timeoutMs) { event, data in
            if event == "CPR", let phase = data["phase"]?.stringValue { onStep(phase) }
            if event == "CPR_UPDATED" { times = data }
        }
        guard let before = try monitor.execute("query-cpr").objectValue else {
            throw VMMError("no answer to query-cpr")
        }
        var arguments: JSONObject = ["timeout-ms": .int(options.timeoutMs)]
        if let mode = options.mode { arguments["mode"] = .string(mode) }
        if let channel = options.channel { return try handOver(monitor, channel, arguments) }
        arguments["argv"] = .array(try commandLine(before).map { .string($0) })
        if options.check { return try check(monitor, arguments) }
        arguments["preflight"] = .bool(options.preflight)
        if options.preflight { onStep("preflight") }
        do {
            try monitor.execute("cpr-update", arguments)
        } catch let error as VMMError {
            let pid = try? monitor.execute("query-cpr").objectValue?["pid"]?.intValue
            throw VMMError(
                error.message,
                hint: "The guest is still with the old VMM (process \(pid.map(String.init) ?? "unknown")).")
        }
        // It comes with the guest's first steps, for which a busy machine may take its time.
        try monitor.takeEvents(milliseconds: 10_000) { times != nil }
        var result = try describe(monitor, times)
        result.warnings = (before["warnings"]?.arrayValue ?? []).compactMap(\.stringValue)
        return result
    }

    private func check(_ monitor: MonitorConnection, _ arguments: JSONObject) throws -> Result {
        onStep("preflight")
        let answer = try monitor.execute("cpr-preflight", arguments).objectValue
        let output = TerminalText.escaped(answer?["output"]?.stringValue ?? "", keepingLines: true)
        let time = answer?["time-us"]?.intValue ?? 0
        return Result(
            text: output + "the new VMM could take the guest over (start-up \(time) us)\n", wasChecked: true)
    }

    /// To a VMM that runs already. The monitor stays with the old one, which ends.
    private func handOver(_ monitor: MonitorConnection, _ channel: String, _ arguments: JSONObject) throws -> Result {
        var arguments = arguments
        arguments["channel"] = .string(channel)
        if let peerUid = options.peerUid { arguments["peer-uid"] = .int(peerUid) }
        do {
            try monitor.execute("cpr-update", arguments)
        } catch let error as VMMError {
            throw VMMError(error.message, hint: "The guest is still with the old VMM.")
        }
        return Result(
            text: "updated: the guest is with the VMM that waited at \(TerminalText.escaped(channel))\n")
    }

    /// The new VMM's arguments.
    private func commandLine(_ now: JSONObject) throws -> [String] {
        var result = options.argv
        if result.isEmpty { result = (now["argv"]?.arrayValue ?? []).compactMap(\.stringValue) }
        guard !result.isEmpty else {
            throw VMMError("the VMM does not tell its command line; give the new one after --")
        }
        if let binary = options.binary { result[0] = binary }
        return result
    }

    private func describe(_ monitor: MonitorConnection, _ times: JSONObject?) throws -> Result {
        let now = try monitor.execute("query-cpr").objectValue
        let pid = now?["pid"]?.intValue ?? 0
        let generation = now?["generation"]?.intValue ?? 0
        var text = "updated: process \(pid), update \(generation) of this guest\n"
        for (name, value) in times?.members ?? [] {
            let label = TerminalText.escaped(name == "pause-us" ? "pause" : "  \(name.dropLast(3))")
            let padding = String(repeating: " ", count: max(1, 16 - label.count))
            text += "\(label)\(padding)\(String(format: "%8.3f ms", Double(value.intValue ?? 0) / 1000))\n"
        }
        let version = now?["history"]?.arrayValue?.last?.objectValue?["to-version"]?.stringValue
        return Result(text: text, pid: pid, update: generation, version: version, times: times)
    }
}
