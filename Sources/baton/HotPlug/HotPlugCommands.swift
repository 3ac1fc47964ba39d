import BatonRuntime

/// The monitors' commands of `HotPlug`, which they keep.
extension HotPlug {
    func registerCommands() throws(VMMError) {
        try add(
            "device_add",
            hmp: ("device_add", "driver[,prop=value][,...]", "add device, like -device on the command line"),
            arguments: [
                QMPMember("driver", .string), QMPMember("bus", .string, optional: true),
                QMPMember("id", .string, optional: true),
            ], key: nil
        ) { [self] text throws(VMMError) in try addDevice(text) }
        try add(
            "device_del", hmp: ("device_del", "device", "remove device"), arguments: [QMPMember("id", .string)],
            key: "id"
        ) { [self] id throws(VMMError) in
            try removeDevice(id)
        }
        try add(
            "netdev_add", hmp: ("netdev_add", "type,id=str[,prop=value][,...]", "add host network device"),
            arguments: [QMPMember("type", .string), QMPMember("id", .string)], key: nil
        ) { [self] text throws(VMMError) in try addNetBackend(text) }
        try add(
            "netdev_del", hmp: ("netdev_del", "id", "remove host network device"),
            arguments: [QMPMember("id", .string)],
            key: "id"
        ) { [self] id throws(VMMError) in try removeNetBackend(id) }
        try add(
            "object-add", hmp: ("object_add", "qom-type=type,id=str[,prop=value][,...]", "create object"),
            arguments: [QMPMember("qom-type", .string), QMPMember("id", .string)], key: nil
        ) { [self] text throws(VMMError) in try addObject(text) }
        try add(
            "object-del", hmp: ("object_del", "id", "destroy object"), arguments: [QMPMember("id", .string)], key: "id"
        ) { [self] id throws(VMMError) in try removeObject(id) }
        let device = [QMPMember("device", .string, optional: true), QMPMember("path", .string)]
        vm.commands.addEvent("DEVICE_DELETED", data: .object(name: "q_obj_DEVICE_DELETED-arg", members: device))
        vm.commands.addEvent(
            "DEVICE_UNPLUG_GUEST_ERROR", data: .object(name: "q_obj_DEVICE_UNPLUG_GUEST_ERROR-arg", members: device))
    }

    /// Adds a command to both monitors.
    /// - Parameter key: of the only argument; nil for one that takes a device's or back end's properties.
    private func add(
        _ name: String, hmp: (name: String, parameters: String, help: String), arguments: [QMPMember], key: String?,
        _ body: @escaping (String) throws(VMMError) -> Void
    ) throws(VMMError) {
        try vm.commands.add(
            QMPCommand(name, arguments: arguments, takesMore: key == nil) {
                (given: JSONObject) throws(VMMError) -> JSON in
                try body(key.map { given[$0]?.stringValue ?? "" } ?? JSON.object(given).text())
                return [:]
            })
        try vm.commands.add(
            HMPCommand(hmp.name, parameters: hmp.parameters, help: hmp.help) {
                (line: String) throws(VMMError) -> String in
                guard !line.isEmpty else { throw VMMError("usage: \(hmp.name) \(hmp.parameters)") }
                try body(line)
                return ""
            })
    }
}
