import BatonRuntime

/// `query-version`, `query-commands`, `query-events`, `query-qmp-schema`,
/// `human-monitor-command`.
func registerIntrospection(_ vm: VirtualMachine) throws(VMMError) {
    let commands = vm.commands
    let triple = QMPType.object(
        name: "VersionTriple", members: [QMPMember("major", .int), QMPMember("minor", .int), QMPMember("micro", .int)])
    try commands.add(
        QMPCommand.query(
            "query-version",
            returns: .object(name: "VersionInfo", members: [QMPMember("qemu", triple), QMPMember("package", .string)])
        ) { MonitorVersion.json })
    try commands.add(
        HMPCommand.info("version", "show the version") {
            "\(MonitorVersion.qemu.major).\(MonitorVersion.qemu.minor).\(MonitorVersion.qemu.micro)"
                + " (\(MonitorVersion.package))\n"
        })

    let named = QMPType.object(name: "CommandInfo", members: [QMPMember("name", .string)])
    try commands.add(
        QMPCommand.query("query-commands", returns: .array(named)) { [unowned commands] in
            .array((commands.qmp.keys + ["qmp_capabilities"]).sorted().map { ["name": .string($0)] })
        })
    try commands.add(
        QMPCommand.query("query-events", returns: .array(named)) { [unowned commands] in
            .array(commands.events.keys.sorted().map { ["name": .string($0)] })
        })

    let metaType = QMPType.enumeration(
        name: "SchemaMetaType", values: ["builtin", "enum", "array", "object", "alternate", "command", "event"])
    let schemaInfo = QMPType.object(
        name: "SchemaInfo",
        members: [
            QMPMember("name", .string), QMPMember("meta-type", metaType),
            QMPMember("json-type", .string, optional: true), QMPMember("values", .array(.string), optional: true),
            QMPMember("members", .array(.any), optional: true), QMPMember("element-type", .string, optional: true),
            QMPMember("arg-type", .string, optional: true), QMPMember("ret-type", .string, optional: true),
            QMPMember("allow-oob", .bool, optional: true),
        ])
    try commands.add(
        QMPCommand.query("query-qmp-schema", returns: .array(schemaInfo)) { [unowned commands] in
            SchemaBuilder.schema(of: commands)
        })

    try commands.add(
        QMPCommand(
            "human-monitor-command",
            arguments: [QMPMember("command-line", .string), QMPMember("cpu-index", .int, optional: true)],
            returns: .string
        ) { [unowned commands] (arguments: JSONObject) throws(VMMError) -> JSON in
            .string(HMPExecutor.execute(arguments["command-line"]?.stringValue ?? "", commands: commands))
        })
}
