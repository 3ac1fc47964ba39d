import BatonRuntime

/// QEMU's migration commands, in QMP and HMP.
extension Migration {
    public func registerCommands() throws(VMMError) {
        let status = QMPType.enumeration(name: "MigrationStatus", values: Status.allCases.map(\.rawValue))
        try addParameters()
        try addCapabilities()
        try addQuery(status)
        try addActions()
        vm.commands.addEvent(
            "MIGRATION", data: .object(name: "q_obj_MIGRATION-arg", members: [QMPMember("status", status)]))
    }

    // MARK: Parameters

    private func addParameters() throws(VMMError) {
        let members = [
            QMPMember("mode", .enumeration(name: "MigMode", values: Mode.allCases.map(\.rawValue)), optional: true),
            QMPMember("cpr-exec-command", .array(.string), optional: true),
            QMPMember("max-bandwidth", .int, optional: true), QMPMember("downtime-limit", .int, optional: true),
        ]
        try vm.commands.add(
            QMPCommand("migrate-set-parameters", arguments: members) { [self] arguments throws(VMMError) in
                try set(arguments)
                return [:]
            })
        try vm.commands.add(
            QMPCommand("query-migrate-parameters", returns: .object(name: "MigrationParameters", members: members)) {
                [self] _ in .object(parameters)
            })
        try vm.commands.add(
            HMPCommand(
                "migrate_set_parameter", parameters: "parameter value", help: "Set the parameter for migration"
            ) {
                [self] line throws(VMMError) in
                try set(line: line)
                return ""
            })
        try vm.commands.add(
            HMPCommand("info migrate_parameters", help: "show current migration parameters") { [self] _ in
                "max-bandwidth: \(maxBandwidth) bytes/second\ndowntime-limit: \(downtimeLimit) ms\n"
                    + "mode: \(mode.rawValue)\ncpr-exec-command: \(execCommand.joined(separator: " "))\n"
            })
    }

    /// Sets what is given; all of it or nothing.
    private func set(_ arguments: JSONObject) throws(VMMError) {
        func number(_ name: String, _ old: Int64, upTo limit: Int64, _ range: String) throws(VMMError) -> Int64 {
            guard let value = arguments[name]?.intValue else { return old }
            guard (0...limit).contains(value) else {
                throw VMMError("Parameter '\(name)' expects an integer in the range of \(range)")
            }
            return value
        }
        let bandwidth = try number("max-bandwidth", maxBandwidth, upTo: Int64.max, "0 to \(Int64.max) bytes/second")
        let downtime = try number("downtime-limit", downtimeLimit, upTo: 2_000_000, "0 to 2000000 milliseconds")
        if let name = arguments["mode"]?.stringValue, let value = Mode(rawValue: name) { mode = value }
        if let words = arguments["cpr-exec-command"]?.arrayValue { execCommand = words.compactMap(\.stringValue) }
        maxBandwidth = bandwidth
        downtimeLimit = downtime
    }

    private func set(line: String) throws(VMMError) {
        let name = String(line.prefix { $0 != " " })
        let value = String(line.dropFirst(name.count).drop { $0 == " " })
        guard !name.isEmpty, !value.isEmpty else { throw VMMError("usage: migrate_set_parameter PARAMETER VALUE") }
        var arguments = JSONObject()
        switch name {
        case "mode":
            guard Mode(rawValue: value) != nil else {
                throw VMMError("Parameter 'mode' does not accept value '\(value)'")
            }
            arguments[name] = .string(value)
        case "cpr-exec-command": arguments[name] = .array(try ShellWords.split(value).map { .string($0) })
        case "max-bandwidth": arguments[name] = .int(Int64(clamping: try Migration.size(value)))
        case "downtime-limit":
            guard let number = Int64(value) else { throw VMMError("Parameter 'downtime-limit' expects a number") }
            arguments[name] = .int(number)
        default: throw VMMError("invalid parameter value: \(name)")
        }
        try set(arguments)
    }

    /// QEMU takes a bandwidth without a unit in MiB.
    private static func size(_ text: String) throws(VMMError) -> UInt64 {
        guard let value = try? SizeText.parse(text, defaultUnit: 1 << 20) else {
            throw VMMError("Parameter 'max-bandwidth' expects a size")
        }
        return value
    }

    private var parameters: JSONObject {
        [
            "mode": .string(mode.rawValue), "cpr-exec-command": .array(execCommand.map { .string($0) }),
            "max-bandwidth": .int(maxBandwidth), "downtime-limit": .int(downtimeLimit),
        ]
    }

    // MARK: Capabilities

    private static var capabilities: [(name: String, path: ReferenceWritableKeyPath<Migration, Bool>)] {
        [("events", \.events), ("x-ignore-shared", \.ignoreShared)]
    }

    private func addCapabilities() throws(VMMError) {
        let list = QMPType.array(
            .object(
                name: "MigrationCapabilityStatus",
                members: [
                    QMPMember(
                        "capability",
                        .enumeration(name: "MigrationCapability", values: Migration.capabilities.map(\.name))),
                    QMPMember("state", .bool),
                ]))
        try vm.commands.add(
            QMPCommand("migrate-set-capabilities", arguments: [QMPMember("capabilities", list)]) { [self] arguments in
                for item in arguments["capabilities"]?.arrayValue ?? [] {
                    let name = item.objectValue?["capability"]?.stringValue
                    guard let path = Migration.capabilities.first(where: { $0.name == name })?.path else { continue }
                    self[keyPath: path] = item.objectValue?["state"]?.boolValue == true
                }
                return [:]
            })
        try vm.commands.add(
            QMPCommand("query-migrate-capabilities", returns: list) { [self] _ in
                .array(
                    Migration.capabilities.map {
                        ["capability": .string($0.name), "state": .bool(self[keyPath: $0.path])]
                    })
            })
        try vm.commands.add(
            HMPCommand(
                "migrate_set_capability", parameters: "capability state",
                help: "Enable/Disable the usage of a capability for migration"
            ) { [self] line throws(VMMError) in
                let words = try ShellWords.split(line)
                guard words.count == 2, let state = ["on": true, "off": false][words[1]] else {
                    throw VMMError("usage: migrate_set_capability CAPABILITY on|off")
                }
                guard let path = Migration.capabilities.first(where: { $0.name == words[0] })?.path else {
                    throw VMMError("invalid parameter value: \(words[0])")
                }
                self[keyPath: path] = state
                return ""
            })
        try vm.commands.add(
            HMPCommand("info migrate_capabilities", help: "show current migration capabilities") { [self] _ in
                Migration.capabilities.map { "\($0.name): \(self[keyPath: $0.path] ? "on" : "off")\n" }.joined()
            })
    }

    // MARK: query-migrate

    private func addQuery(_ statusType: QMPType) throws(VMMError) {
        let counts = [
            "transferred", "remaining", "total", "duplicate", "normal", "normal-bytes", "dirty-pages-rate",
            "dirty-sync-count", "page-size",
        ]
        let info = QMPType.object(
            name: "MigrationInfo",
            members: [
                QMPMember("status", statusType, optional: true),
                QMPMember(
                    "ram", .object(name: "MigrationStats", members: counts.map { QMPMember($0, .int) }),
                    optional: true),
                QMPMember("total-time", .int, optional: true), QMPMember("downtime", .int, optional: true),
                QMPMember("setup-time", .int, optional: true), QMPMember("error-desc", .string, optional: true),
                QMPMember("blocked-reasons", .array(.string), optional: true),
            ])
        try vm.commands.add(
            QMPCommand("query-migrate", returns: info) { [self] _ in .object(query(counts)) })
        try vm.commands.add(
            HMPCommand("info migrate", help: "show migration status") { [self] _ in
                guard status != .none else { return "" }
                return "Status: \t\t\(status.rawValue)" + (errorText.map { " (\($0))" } ?? "") + "\n"
            })
    }

    private func query(_ counts: [String]) -> JSONObject {
        var result = JSONObject()
        if let module = mode.module, let mode = cpr.enabledModes.first(where: { $0.name == module }) {
            let reasons = cpr.blockers(mode)
            if !reasons.isEmpty { result["blocked-reasons"] = .array(reasons.map { .string($0.message) }) }
        }
        guard status != .none else { return result }
        result["status"] = .string(status.rawValue)
        if let errorText { result["error-desc"] = .string(errorText) }
        guard status == .completed, !isIncoming else { return result }
        let time = JSON.int((finished - started) / 1_000_000)
        result["total-time"] = time
        result["downtime"] = .int(max(0, (finished - cpr.times.stopped) / 1_000_000))
        result["setup-time"] = .int(max(0, (cpr.times.stopped - started) / 1_000_000))
        var ram = JSONObject()
        for name in counts { ram[name] = 0 }
        ram["transferred"] = JSON(transferred)
        ram["total"] = JSON(cpr.memory.blocks.reduce(0 as UInt64) { $0 + UInt64($1.usedLength) })
        ram["dirty-sync-count"] = 1
        ram["page-size"] = 4096
        result["ram"] = .object(ram)
        return result
    }

    // MARK: Actions

    private func addActions() throws(VMMError) {
        // An address is a union by its `transport`.
        let channel = QMPType.object(
            name: "MigrationChannel",
            members: [
                QMPMember("channel-type", .enumeration(name: "MigrationChannelType", values: ["main", "cpr"])),
                QMPMember("addr", .any),
            ])
        let address = [
            QMPMember("uri", .string, optional: true), QMPMember("channels", .array(channel), optional: true),
        ]
        // `detach` is ignored, as in QEMU.
        let flags = [QMPMember("detach", .bool, optional: true), QMPMember("resume", .bool, optional: true)]
        try vm.commands.add(
            QMPCommand("migrate", arguments: address + flags) { [self] arguments throws(VMMError) in
                try migrate(
                    to: try MigrationAddress(arguments, command: "migrate"),
                    resume: arguments["resume"]?.boolValue == true)
                return [:]
            })
        try vm.commands.add(
            QMPCommand("migrate-incoming", arguments: address + [QMPMember("exit-on-error", .bool, optional: true)]) {
                [self] arguments throws(VMMError) in
                try incoming(
                    from: try MigrationAddress(arguments, command: "migrate-incoming"),
                    exitsOnError: arguments["exit-on-error"]?.boolValue ?? true)
                return [:]
            })
        try vm.commands.add(
            QMPCommand("migrate_cancel") { [self] _ in
                cancel()
                return [:]
            })
        try vm.commands.add(
            HMPCommand(
                "migrate", parameters: "[-d] [-r] uri", help: "migrate to URI (using -d to not wait for completion)"
            ) {
                [self] line throws(VMMError) in
                var words = try ShellWords.split(line)
                var resume = false
                while let flag = words.first, flag.hasPrefix("-") {
                    guard flag == "-d" || flag == "-r" else { throw VMMError("migrate: unsupported option \(flag)") }
                    if flag == "-r" { resume = true }
                    words.removeFirst()
                }
                guard words.count == 1 else { throw VMMError("usage: migrate [-d] [-r] URI") }
                try migrate(to: try MigrationAddress(uri: words[0]), resume: resume)
                return ""
            })
        try vm.commands.add(
            HMPCommand(
                "migrate_incoming", parameters: "uri", help: "Continue an incoming migration from an -incoming defer"
            ) { [self] line throws(VMMError) in
                try incoming(from: try MigrationAddress(uri: line), exitsOnError: true)
                return ""
            })
        try vm.commands.add(
            HMPCommand("migrate_cancel", help: "cancel the current VM migration") { [self] _ in
                cancel()
                return ""
            })
    }
}
