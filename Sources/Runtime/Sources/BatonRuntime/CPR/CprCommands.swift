/// The CPR commands of the monitors.
extension CprController {
    /// Registers `cpr-save`, `cpr-exec`, `cpr-load`, `cpr-update` and
    /// `query-cpr`, in QMP and HMP.
    public func registerCommands() throws(VMMError) {
        // The modes are whatever modules provide, so their names are not an
        // enumeration that could be known here.
        let fileAndMode = [QMPMember("filename", .string), QMPMember("mode", .string)]
        let commands = vm.commands
        try commands.add(
            QMPCommand("cpr-save", arguments: fileAndMode) { [unowned self] arguments throws(VMMError) in
                try save(to: arguments["filename"]?.stringValue ?? "", mode: arguments["mode"]?.stringValue ?? "")
                return [:]
            })
        try commands.add(
            QMPCommand("cpr-load", arguments: fileAndMode) { [unowned self] arguments throws(VMMError) in
                try load(from: arguments["filename"]?.stringValue ?? "", mode: arguments["mode"]?.stringValue ?? "")
                return [:]
            })
        try commands.add(
            QMPCommand("cpr-exec", arguments: [QMPMember("argv", .array(.string))]) {
                [unowned self] arguments throws(VMMError) in
                try exec((arguments["argv"]?.arrayValue ?? []).compactMap(\.stringValue))
                return [:]
            })
        try commands.add(
            QMPCommand(
                "cpr-update",
                arguments: [
                    QMPMember("argv", .array(.string)), QMPMember("mode", .string, optional: true),
                    QMPMember("timeout-ms", .int, optional: true),
                ]
            ) { [unowned self] arguments throws(VMMError) in
                let limit = arguments["timeout-ms"]?.intValue ?? CprController.defaultStartLimit / 1_000_000
                guard (1...3_600_000).contains(limit) else {
                    throw VMMError("Parameter 'timeout-ms' expects a number from 1 to 3600000, not \(limit)")
                }
                try update(
                    (arguments["argv"]?.arrayValue ?? []).compactMap(\.stringValue),
                    mode: arguments["mode"]?.stringValue, startLimit: limit * 1_000_000)
                return [:]
            })
        commands.addEvent("CPR_UPDATED", data: CprController.timesType)
        commands.addEvent(
            "CPR_ROLLED_BACK", data: .object(name: "CprRolledBack", members: [
                QMPMember("reason", .string), QMPMember("pid", .int),
            ]))
        try commands.add(
            QMPCommand("query-cpr", returns: CprController.queryType) { [unowned self] _ in .object(query()) })

        try commands.add(
            HMPCommand("cpr-save", parameters: "filename mode", help: "save the VM state to a file, in a CPR mode") {
                [unowned self] line throws(VMMError) in
                let words = try CprController.words(line, count: 2, usage: "cpr-save FILE MODE")
                try save(to: words[0], mode: words[1])
                return ""
            })
        try commands.add(
            HMPCommand("cpr-load", parameters: "filename mode", help: "load the VM state from a file, in a CPR mode") {
                [unowned self] line throws(VMMError) in
                let words = try CprController.words(line, count: 2, usage: "cpr-load FILE MODE")
                try load(from: words[0], mode: words[1])
                return ""
            })
        try commands.add(
            HMPCommand("cpr-exec", parameters: "command", help: "replace the VMM by a command, after cpr-save") {
                [unowned self] line throws(VMMError) in
                try exec(try ShellWords.split(line))
                return ""
            })
        try commands.add(
            HMPCommand("cpr-update", parameters: "command", help: "replace the VMM by a command, in one step") {
                [unowned self] line throws(VMMError) in
                try update(try ShellWords.split(line), mode: nil, startLimit: CprController.defaultStartLimit)
                return ""
            })
        try commands.add(
            HMPCommand("info cpr", help: "show the CPR modes, preserved memory and file descriptors") {
                [unowned self] _ in describe()
            })
    }

    private static func words(_ line: String, count: Int, usage: String) throws(VMMError) -> [String] {
        let words = try ShellWords.split(line)
        guard words.count == count else { throw VMMError("usage: \(usage)") }
        return words
    }

    /// Microseconds, see `UpdateTimes.report`.
    private static let timesType = QMPType.object(
        name: "CprUpdateTimes",
        members: [
            "pause-us", "save-us", "wait-exec-us", "exec-us", "start-up-us", "wait-load-us", "load-us", "resume-us",
        ].map { QMPMember($0, .int) })

    private static let queryType = QMPType.object(
        name: "CprInfo",
        members: [
            QMPMember("enabled-modes", .array(.string)),
            QMPMember("awaits-load", .bool),
            QMPMember("generation", .int),
            QMPMember("fds", .array(.object(name: "CprFd", members: [
                QMPMember("name", .string), QMPMember("id", .int), QMPMember("fd", .int),
            ]))),
            QMPMember("ram", .array(.object(name: "CprRam", members: [
                QMPMember("name", .string), QMPMember("used-length", .int), QMPMember("max-length", .int),
                QMPMember("alignment", .int), QMPMember("fd", .int),
            ]))),
            QMPMember("last-update", timesType, optional: true),
        ])

    private func query() -> JSONObject {
        var result = JSONObject()
        result["enabled-modes"] = .array(enabledModes.map { .string($0.name) })
        result["awaits-load"] = .bool(awaitsLoad)
        result["generation"] = JSON(times.generation)
        result["fds"] = .array(
            fds.entries.map { ["name": .string($0.name), "id": JSON($0.id), "fd": .int(Int64($0.fd))] })
        result["ram"] = .array(
            memory.records.current.map {
                [
                    "name": .string($0.name), "used-length": JSON($0.usedLength), "max-length": JSON($0.maxLength),
                    "alignment": JSON($0.alignment), "fd": .int(Int64($0.fd)),
                ]
            })
        if let report = times.report { result["last-update"] = report }
        return result
    }

    private func describe() -> String {
        var text = "modes: " + (enabledModes.isEmpty ? "none" : enabledModes.map(\.name).joined(separator: " ")) + "\n"
        text += "updates: \(times.generation)\n"
        if let report = times.report?.objectValue {
            for (key, value) in report.members { text += "  \(key): \(value.intValue ?? 0)\n" }
        }
        for record in memory.records.current {
            text += "ram \(record.name): \(record.usedLength) of \(record.maxLength) bytes, fd \(record.fd)\n"
        }
        for entry in fds.entries { text += "fd \(entry.name) \(entry.id): \(entry.fd)\n" }
        return text
    }
}
