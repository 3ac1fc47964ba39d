import BatonRuntime

/// `query-blockstats` and `info blockstats`: what has been done on each block back end by this process.
func registerBlockStatisticsQueries(_ vm: VirtualMachine) throws(VMMError) {
    let stats = QMPType.object(
        name: "BlockDeviceStats",
        members: statistics(BlockStatistics()).members.map { member in
            switch member.value {
            case .bool: QMPMember(member.key, .bool)
            case .array: QMPMember(member.key, .array(.any))
            default: QMPMember(member.key, .int)
            }
        })
    let entry = QMPType.object(
        name: "BlockStats",
        members: [
            QMPMember("device", .string, optional: true), QMPMember("qdev", .string, optional: true),
            QMPMember("node-name", .string, optional: true), QMPMember("stats", stats),
        ])
    try vm.commands.add(
        QMPCommand(
            "query-blockstats", arguments: [QMPMember("query-nodes", .bool, optional: true)], returns: .array(entry)
        ) { [unowned vm] (_: JSONObject) throws(VMMError) -> JSON in
            .array(vm.blockBackends.map { .object(describe($0)) })
        })
    try vm.commands.add(
        HMPCommand.info("blockstats", "show block device statistics") { [unowned vm] in
            vm.blockBackends.map { backend in
                let all = statistics(backend.statistics)
                let shown = [
                    "rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "flush_operations", "wr_total_time_ns",
                    "rd_total_time_ns", "flush_total_time_ns", "rd_merged", "wr_merged",
                ]
                return "\(backend.id): " + shown.map { "\($0)=\(all[$0]?.text() ?? "0")" }.joined(separator: " ") + "\n"
            }.joined()
        })
}

private func describe(_ backend: BlockBackend) -> JSONObject {
    var object: JSONObject = ["device": .string(backend.id)]
    if let user = backend.user { object["qdev"] = .string(user) }
    object["node-name"] = .string(backend.id)
    object["stats"] = .object(statistics(backend.statistics))
    return object
}

/// QEMU's members. Nothing here merges requests, appends to zones or counts invalid requests.
private func statistics(_ counts: BlockStatistics) -> JSONObject {
    var object = JSONObject()
    let kinds: [(name: String, totals: BlockStatistics.Totals?)] = [
        ("rd", counts[.read]), ("wr", counts[.write]), ("zone_append", nil), ("flush", counts[.flush]),
        ("unmap", counts[.unmap]),
    ]
    for (name, totals) in kinds {
        if name != "flush" { object["\(name)_bytes"] = JSON(totals?.bytes ?? 0) }
        object["\(name)_operations"] = JSON(totals?.operations ?? 0)
        object["\(name)_total_time_ns"] = JSON(totals?.nanoseconds ?? 0)
        if name != "flush" { object["\(name)_merged"] = 0 }
        object["failed_\(name)_operations"] = JSON(totals?.failures ?? 0)
        object["invalid_\(name)_operations"] = 0
    }
    object["wr_highest_offset"] = 0
    object["account_invalid"] = false
    object["account_failed"] = true
    object["timed_stats"] = []
    return object
}
