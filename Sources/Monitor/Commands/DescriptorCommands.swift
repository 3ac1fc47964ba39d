import BatonRuntime

/// `getfd` and `closefd`: descriptors that a client sends along with a request
/// (SCM_RIGHTS on a unix socket), for commands that take one by name. `add-fd`, `remove-fd` and `query-fdsets`: those for
/// commands that take a path.
func registerDescriptorCommands(vm: VirtualMachine) throws(VMMError) {
    try vm.commands.add(
        QMPCommand("getfd", arguments: [QMPMember("fdname", .string)]) {
            [unowned vm] (arguments: JSONObject) throws(VMMError) -> JSON in
            guard let fd = vm.monitorInUse?.takeDescriptor() else {
                throw VMMError("No file descriptor supplied via SCM_RIGHTS")
            }
            let owned = OwnedFD(adopting: fd)
            let name = arguments["fdname"]?.stringValue ?? ""
            guard let first = name.utf8.first, !(UInt8(ascii: "0")...UInt8(ascii: "9")).contains(first) else {
                throw VMMError("Parameter 'fdname' expects a name not starting with a digit")
            }
            try vm.namedFDs.add(name, owned)
            return [:]
        })
    try vm.commands.add(
        QMPCommand("closefd", arguments: [QMPMember("fdname", .string)]) {
            [unowned vm] (arguments: JSONObject) throws(VMMError) -> JSON in
            try vm.namedFDs.close(arguments["fdname"]?.stringValue ?? "")
            return [:]
        })
    try registerDescriptorSets(vm)
}

private func registerDescriptorSets(_ vm: VirtualMachine) throws(VMMError) {
    try vm.commands.add(
        QMPCommand(
            "add-fd",
            arguments: [QMPMember("fdset-id", .int, optional: true), QMPMember("opaque", .string, optional: true)],
            returns: .object(name: "AddfdInfo", members: [QMPMember("fdset-id", .int), QMPMember("fd", .int)])
        ) {
            [unowned vm] (arguments: JSONObject) throws(VMMError) -> JSON in
            guard let fd = vm.monitorInUse?.takeDescriptor() else {
                throw VMMError("No file descriptor supplied via SCM_RIGHTS")
            }
            let set = try FDSets.add(
                OwnedFD(adopting: fd), to: arguments["fdset-id"]?.intValue.map { Int($0) },
                opaque: arguments["opaque"]?.stringValue)
            return ["fdset-id": JSON(set), "fd": JSON(Int(fd))]
        })
    try vm.commands.add(
        QMPCommand(
            "remove-fd", arguments: [QMPMember("fdset-id", .int), QMPMember("fd", .int, optional: true)]
        ) { (arguments: JSONObject) throws(VMMError) -> JSON in
            try FDSets.remove(
                Int(arguments["fdset-id"]?.intValue ?? -1),
                fd: arguments["fd"]?.intValue.map { Int32(clamping: $0) })
            return [:]
        })
    let entry = QMPType.object(
        name: "FdsetFdInfo", members: [QMPMember("fd", .int), QMPMember("opaque", .string, optional: true)])
    let set = QMPType.object(
        name: "FdsetInfo", members: [QMPMember("fdset-id", .int), QMPMember("fds", .array(entry))])
    try vm.commands.add(
        QMPCommand.query("query-fdsets", returns: .array(set)) {
            .array(
                FDSets.all.sorted { $0.key < $1.key }.map { number, entries in
                    let fds = entries.map { entry in
                        var members: JSONObject = ["fd": JSON(Int(entry.fd))]
                        if let opaque = entry.opaque { members["opaque"] = .string(opaque) }
                        return JSON.object(members)
                    }
                    return ["fdset-id": JSON(number), "fds": .array(fds)]
                })
        })
}
