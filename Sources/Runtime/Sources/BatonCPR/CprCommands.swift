import BatonBase
import BatonQMP

/// The CPR commands of the monitors.
extension CprController {
    /// Registers `cpr-save`, `cpr-exec`, `cpr-load`, `cpr-update`,
    /// `cpr-preflight` and `query-cpr`, in QMP and HMP.
    public func registerCommands() throws(VMMError) {
        try registerSteps()
        try registerUpdate()
        try registerQuery()
        vm.commands.addEvent("CPR", data: .object(name: "CprPhaseChange", members: [QMPMember("phase", .string)]))
        vm.commands.addEvent(
            "CPR_PROGRESS",
            data: .object(name: "CprProgress", members: [QMPMember("written", .int), QMPMember("total", .int)]))
        vm.commands.addEvent("CPR_UPDATED", data: CprController.timesType)
        vm.commands.addEvent(
            "CPR_HANDED_OVER", data: .object(name: "CprHandedOver", members: [QMPMember("pid", .int)]))
        vm.commands.addEvent(
            "CPR_ROLLED_BACK",
            data: .object(
                name: "CprRolledBack",
                members: [
                    QMPMember("reason", .string), QMPMember("pid", .int),
                ]))
        let thread = QMPType.object(
            name: "CpuThread", members: [QMPMember("cpu-index", .int), QMPMember("thread-id", .int)])
        vm.commands.addEvent(
            "CPU_THREADS_CHANGED",
            data: .object(name: "CpuThreadsChanged", members: [QMPMember("cpus", .array(thread))]))
    }

    // MARK: Save, exec, load

    private func registerSteps() throws(VMMError) {
        try addFileCommand("cpr-save", help: "save the VM state to a file, in a CPR mode") {
            [unowned self] file, mode throws(VMMError) in try save(to: file, mode: mode)
        }
        try addFileCommand("cpr-load", help: "load the VM state from a file, in a CPR mode") {
            [unowned self] file, mode throws(VMMError) in try load(from: file, mode: mode)
        }
        try vm.commands.add(
            QMPCommand(
                "cpr-exec",
                arguments: [QMPMember("argv", .array(.string)), QMPMember("close-connection", .bool, optional: true)]
            ) { [unowned self] arguments throws(VMMError) in
                try exec(
                    CprController.argv(arguments), closesConnection: arguments["close-connection"]?.boolValue ?? false)
                return [:]
            })
        try vm.commands.add(
            HMPCommand("cpr-exec", parameters: "command", help: "replace the VMM by a command, after cpr-save") {
                [unowned self] line throws(VMMError) in
                try exec(try ShellWords.split(line))
                return ""
            })
    }

    /// A command that takes a file and a mode. The modes are whatever modules
    /// provide, so their names are not an enumeration that could be known here.
    private func addFileCommand(
        _ name: String, help: String, _ body: @escaping (_ file: String, _ mode: String) throws(VMMError) -> Void
    ) throws(VMMError) {
        try vm.commands.add(
            QMPCommand(name, arguments: [QMPMember("filename", .string), QMPMember("mode", .string)]) {
                arguments throws(VMMError) in
                try body(arguments["filename"]?.stringValue ?? "", arguments["mode"]?.stringValue ?? "")
                return [:]
            })
        try vm.commands.add(
            HMPCommand(name, parameters: "filename mode", help: help) { line throws(VMMError) in
                let words = try ShellWords.split(line)
                guard words.count == 2 else { throw VMMError("usage: \(name) FILE MODE") }
                try body(words[0], words[1])
                return ""
            })
    }

    // MARK: Update and preflight

    private func registerUpdate() throws(VMMError) {
        let common = [
            QMPMember("mode", .string, optional: true), QMPMember("timeout-ms", .int, optional: true),
        ]
        try vm.commands.add(
            QMPCommand(
                "cpr-update",
                arguments: common + [
                    QMPMember("argv", .array(.string), optional: true), QMPMember("channel", .string, optional: true),
                    QMPMember("peer-uid", .int, optional: true),
                    QMPMember("preflight", .bool, optional: true), QMPMember("close-connection", .bool, optional: true),
                    QMPMember("downtime-ms", .int, optional: true),
                ]
            ) { [unowned self] arguments throws(VMMError) in
                let mode = enabledModes.first { $0.name == arguments["mode"]?.stringValue }
                let takesChannel = mode?.promises.contains(.connects) == true
                try update(
                    try CprController.target(arguments, missing: takesChannel ? "channel" : "argv"),
                    try CprController.options(arguments))
                // There is nothing left to do but to answer.
                vm.end()
                return [:]
            })
        try vm.commands.add(
            QMPCommand(
                "cpr-preflight", arguments: [QMPMember("argv", .array(.string))] + common,
                returns: .object(
                    name: "CprPreflight", members: [QMPMember("time-us", .int), QMPMember("output", .string)])
            ) { [unowned self] arguments throws(VMMError) in
                let report = try preflight(CprController.argv(arguments), try CprController.options(arguments))
                return ["time-us": .int(report.duration / 1000), "output": .string(report.output)]
            })
        try vm.commands.add(
            HMPCommand("cpr-update", parameters: "command", help: "replace the VMM by a command, in one step") {
                [unowned self] line throws(VMMError) in
                try update(.command(try ShellWords.split(line)), UpdateOptions())
                return ""
            })
        try vm.commands.add(
            HMPCommand(
                "cpr-preflight", parameters: "command", help: "try a new VMM beside the running guest, for an update"
            ) { [unowned self] line throws(VMMError) in
                let report = try preflight(try ShellWords.split(line), UpdateOptions())
                return report.output + "the new VMM could take the guest over (\(report.duration / 1000) us)\n"
            })
    }

    private static func argv(_ arguments: JSONObject) -> [String] {
        (arguments["argv"]?.arrayValue ?? []).compactMap(\.stringValue)
    }

    /// What the arguments of `cpr-update` say of the new VMM.
    /// - Parameter missing: what the mode needs if there is nothing.
    private static func target(_ arguments: JSONObject, missing: String) throws(VMMError) -> Target {
        let peer = arguments["peer-uid"]?.intValue
        guard let channel = arguments["channel"]?.stringValue else {
            guard arguments["argv"] != nil else { throw VMMError("Parameter '\(missing)' is missing") }
            guard peer == nil else { throw VMMError("Parameter 'peer-uid' is for a 'channel' only") }
            return .command(argv(arguments))
        }
        guard arguments["argv"] == nil else {
            throw VMMError("'argv' and 'channel' arguments are mutually exclusive")
        }
        guard arguments["preflight"]?.boolValue != true else {
            throw VMMError(
                "a VMM that runs already cannot be tried",
                hint: "It starts while the guest runs in any case. Leave preflight out.")
        }
        guard peer.map({ (0..<Int64(UInt32.max)).contains($0) }) ?? true else {
            throw VMMError("Parameter 'peer-uid' expects a user's number, not \(peer ?? 0)")
        }
        return .channel(channel, peer: peer.map { UInt32($0) })
    }

    private static func options(_ arguments: JSONObject) throws(VMMError) -> UpdateOptions {
        var options = UpdateOptions()
        options.mode = arguments["mode"]?.stringValue
        options.preflight = arguments["preflight"]?.boolValue ?? options.preflight
        options.closesConnection = arguments["close-connection"]?.boolValue ?? options.closesConnection
        if let limit = arguments["downtime-ms"]?.intValue {
            guard (1...3_600_000).contains(limit) else {
                throw VMMError("Parameter 'downtime-ms' expects a number from 1 to 3600000, not \(limit)")
            }
            options.downtime = limit * 1_000_000
        }
        if let limit = arguments["timeout-ms"]?.intValue {
            guard (1...3_600_000).contains(limit) else {
                throw VMMError("Parameter 'timeout-ms' expects a number from 1 to 3600000, not \(limit)")
            }
            options.limit = limit * 1_000_000
        }
        return options
    }
}
