import BatonRuntime

/// Adds `balloon`, `query-balloon` and their HMP forms, and the event BALLOON_CHANGE, as QEMU has them; and
/// `x-query-balloon-stats`, for what QEMU has as a property of the device.
public func registerBalloonCommands(vm: VirtualMachine) throws(VMMError) {
    func balloon() throws(VMMError) -> VirtioBalloon {
        guard let device = vm.devices.lazy.compactMap({ $0 as? VirtioBalloon }).first else {
            throw VMMError(
                "No balloon device has been activated", hint: "Start the VMM with -device virtio-balloon-pci.",
                class: .deviceNotActive)
        }
        return device
    }
    func set(_ target: Int64) throws(VMMError) {
        let device = try balloon()
        guard target > 0 else { throw VMMError("Parameter 'target' expects a size") }
        device.setTarget(target)
    }

    let actual = [QMPMember("actual", .int)]
    vm.commands.addEvent("BALLOON_CHANGE", data: .object(name: "q_obj_BALLOON_CHANGE-arg", members: actual))
    try vm.commands.add(
        QMPCommand("balloon", arguments: [QMPMember("value", .int)]) {
            (arguments: JSONObject) throws(VMMError) -> JSON in
            try set(arguments["value"]?.intValue ?? 0)
            return [:]
        })
    try vm.commands.add(
        QMPCommand("query-balloon", returns: .object(name: "BalloonInfo", members: actual)) {
            (_: JSONObject) throws(VMMError) -> JSON in ["actual": .int(try balloon().guestMemory)]
        })
    let stats = QMPType.object(
        name: "BalloonStatistics", members: BalloonStatistics.names.map { QMPMember($0, .int, optional: true) })
    try vm.commands.add(
        QMPCommand(
            "x-query-balloon-stats",
            returns: .object(
                name: "BalloonStatisticsInfo", members: [QMPMember("stats", stats), QMPMember("last-update", .int)])
        ) { (_: JSONObject) throws(VMMError) -> JSON in
            let statistics = try balloon().statistics
            var stats = JSONObject()
            for (name, value) in zip(BalloonStatistics.names, statistics.values) {
                if let value { stats[name] = .int(Int64(clamping: value)) }
            }
            return ["stats": .object(stats), "last-update": .int(statistics.updatedAt)]
        })
    try vm.commands.add(
        HMPCommand(
            "balloon", parameters: "target", help: "request VM to change its memory allocation (in MB)"
        ) { (line: String) throws(VMMError) -> String in
            guard let megabytes = Int64(line.trimmingSpaces), megabytes <= 1 << 40 else {
                throw VMMError("balloon: expected a size in MB")
            }
            try set(megabytes << 20)
            return ""
        })
    try vm.commands.add(
        HMPCommand("info balloon", help: "show balloon information") { (_: String) throws(VMMError) -> String in
            "balloon: actual=\(try balloon().guestMemory >> 20)\n"
        })
}

extension String {
    fileprivate var trimmingSpaces: Substring { split(separator: " ").first ?? "" }
}
