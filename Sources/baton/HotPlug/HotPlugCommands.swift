import BatonRuntime
import Chardev

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
        try registerChardevCommands()
        let device = [QMPMember("device", .string, optional: true), QMPMember("path", .string)]
        vm.commands.addEvent("DEVICE_DELETED", data: .object(name: "q_obj_DEVICE_DELETED-arg", members: device))
        vm.commands.addEvent(
            "DEVICE_UNPLUG_GUEST_ERROR", data: .object(name: "q_obj_DEVICE_UNPLUG_GUEST_ERROR-arg", members: device))
    }

    private func registerChardevCommands() throws(VMMError) {
        let backend = QMPType.object(
            name: "ChardevBackend",
            members: [
                QMPMember("type", .enumeration(name: "ChardevBackendKind", values: ChardevAddition.types)),
                QMPMember("data", .any, optional: true),
            ])
        try vm.commands.add(
            QMPCommand(
                "chardev-add", arguments: [QMPMember("id", .string), QMPMember("backend", backend)],
                returns: .object(name: "ChardevReturn", members: [QMPMember("pty", .string, optional: true)])
            ) { [self] (given: JSONObject) throws(VMMError) -> JSON in
                let backend = given["backend"]?.objectValue ?? [:]
                let properties = try ChardevAddition.properties(
                    id: given["id"]?.stringValue ?? "", type: backend["type"]?.stringValue ?? "",
                    data: backend["data"]?.objectValue ?? [:], findDescriptor: vm.namedFDs.find)
                let chardev = try addChardev(JSON.object(properties).text())
                // It is the chardev's now.
                if case .string(let name)? = backend["data"]?.objectValue?["addr"]?.objectValue?["data"]?.objectValue?[
                    "str"]
                {
                    vm.namedFDs.release(name)
                }
                guard let terminal = chardev as? PTYChardev else { return [:] }
                return ["pty": .string(terminal.slavePath)]
            })
        try vm.commands.add(
            HMPCommand("chardev-add", parameters: "args", help: "add chardev") {
                [self] (line: String) throws(VMMError) -> String in
                guard !line.isEmpty else { throw VMMError("usage: chardev-add backend,id=str[,prop=value][,...]") }
                _ = try addChardev(line)
                return ""
            })
        try add(
            "chardev-remove", hmp: ("chardev-remove", "id", "remove chardev"), arguments: [QMPMember("id", .string)],
            key: "id"
        ) { [self] id throws(VMMError) in try removeChardev(id) }
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
