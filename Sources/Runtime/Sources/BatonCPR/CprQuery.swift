import BatonBase
import BatonQMP
import Glibc

/// `query-cpr` and `info cpr`.
extension CprController {
    func registerQuery() throws(VMMError) {
        registerMetrics()
        try vm.commands.add(
            QMPCommand("query-cpr", returns: CprController.queryType) { [unowned self] _ throws(VMMError) in
                .object(try query())
            })
        try vm.commands.add(
            HMPCommand("info cpr", help: "show the CPR modes, what blocks them, and what is preserved") {
                [unowned self] _ throws(VMMError) in try describe()
            })
    }

    /// Microseconds, see `UpdateTimes.report`.
    static let timesType = QMPType.object(
        name: "CprUpdateTimes", members: UpdateTimes.reportNames.map { QMPMember($0, .int) })

    private static let queryType = QMPType.object(
        name: "CprInfo",
        members: [
            QMPMember("pid", .int),
            QMPMember("placeholder-pid", .int, optional: true),
            QMPMember("argv", .array(.string)),
            QMPMember("enabled-modes", .array(.string)),
            QMPMember(
                "modes",
                .array(
                    .object(
                        name: "CprModeInfo",
                        members: [
                            QMPMember("name", .string), QMPMember("summary", .string), QMPMember("same-pid", .bool),
                            QMPMember("survives-host-reboot", .bool), QMPMember("survives-host-update", .bool),
                            QMPMember("keeps-connections", .bool),
                            QMPMember("executes", .bool), QMPMember("connects", .bool),
                            QMPMember("blockers", .array(.string)),
                        ]))),
            QMPMember("preservers", .array(.string)),
            QMPMember("only-cpr-capable", .bool),
            QMPMember("awaits-load", .bool),
            QMPMember("saved-run-state", .string, optional: true),
            QMPMember("generation", .int),
            QMPMember("warnings", .array(.string)),
            QMPMember(
                "fds",
                .array(
                    .object(
                        name: "CprFd",
                        members: [
                            QMPMember("name", .string), QMPMember("id", .int), QMPMember("fd", .int),
                        ]))),
            QMPMember(
                "ram",
                .array(
                    .object(
                        name: "CprRam",
                        members: [
                            QMPMember("name", .string), QMPMember("used-length", .int), QMPMember("max-length", .int),
                            QMPMember("alignment", .int), QMPMember("fd", .int),
                        ]))),
            QMPMember("last-update", timesType, optional: true),
            QMPMember(
                "history",
                .array(
                    .object(
                        name: "CprUpdateRecord",
                        members: [
                            QMPMember("ended-at", .int), QMPMember("mode", .string), QMPMember("pid", .int),
                            QMPMember("failure", .string, optional: true),
                            QMPMember("times", timesType, optional: true),
                            QMPMember("from-version", .string, optional: true),
                            QMPMember("to-version", .string, optional: true),
                        ]))),
        ])

    private func query() throws(VMMError) -> JSONObject {
        var result = JSONObject()
        result["pid"] = .int(Int64(getpid()))
        if let placeholder = Placeholder.current { result["placeholder-pid"] = .int(Int64(placeholder)) }
        result["argv"] = .array(try ProcessArguments.all().map { .string($0) })
        result["enabled-modes"] = .array(enabledModes.map { .string($0.name) })
        result["modes"] = .array(
            enabledModes.map { mode in
                [
                    "name": .string(mode.name), "summary": .string(mode.summary),
                    "same-pid": .bool(mode.promises.contains(.samePID)),
                    "survives-host-reboot": .bool(mode.promises.contains(.survivesHostReboot)),
                    "survives-host-update": .bool(mode.promises.contains(.survivesHostUpdate)),
                    "keeps-connections": .bool(mode.promises.contains(.keepsConnections)),
                    "executes": .bool(mode.promises.contains(.executes)),
                    "connects": .bool(mode.promises.contains(.connects)),
                    "blockers": .array(blockers(mode).map { .string($0.message) }),
                ]
            })
        result["preservers"] = .array(registry.preservers.map { .string($0.name) })
        result["only-cpr-capable"] = .bool(onlyCapable)
        result["awaits-load"] = .bool(awaitsLoad)
        if case .saved(_, let stateBefore) = step { result["saved-run-state"] = .string(stateBefore.rawValue) }
        result["generation"] = JSON(times.generation)
        result["warnings"] = .array(warnings.map { .string($0) })
        result["fds"] = .array(
            try preserved().map { ["name": .string($0.name), "id": JSON($0.id), "fd": .int(Int64($0.fd))] })
        result["ram"] = .array(
            memory.records.current.map {
                [
                    "name": .string($0.name), "used-length": JSON($0.usedLength), "max-length": JSON($0.maxLength),
                    "alignment": JSON($0.alignment), "fd": .int(Int64($0.fd)),
                ]
            })
        if let report = times.report { result["last-update"] = report }
        result["history"] = history.json
        return result
    }

    /// What an update would preserve now.
    private func preserved() throws(VMMError) -> [PreservedFDs.Entry] {
        // In the middle of an update it is what it is.
        guard case .idle = step else { return fds.entries }
        return try survey { fds.entries }
    }

    private func describe() throws(VMMError) -> String {
        var text = "modes: " + (enabledModes.isEmpty ? "none" : enabledModes.map(\.name).joined(separator: " ")) + "\n"
        for warning in warnings { text += "warning: \(warning)\n" }
        for mode in enabledModes {
            for blocker in blockers(mode) { text += "\(mode.name) is blocked: \(blocker.message)\n" }
        }
        text += "updates: \(times.generation)\n"
        if let report = times.report?.objectValue {
            for (key, value) in report.members { text += "  \(key): \(value.intValue ?? 0)\n" }
        }
        for record in history.records {
            guard let failure = record.failure else { continue }
            text += "an update in mode \(record.mode) was taken back by process \(record.pid): \(failure)\n"
        }
        for record in memory.records.current {
            text += "ram \(record.name): \(record.usedLength) of \(record.maxLength) bytes, fd \(record.fd)\n"
        }
        for entry in try preserved() { text += "fd \(entry.name) \(entry.id): \(entry.fd)\n" }
        return text
    }
}
