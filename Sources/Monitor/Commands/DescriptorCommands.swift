import BatonRuntime

/// `getfd` and `closefd`: descriptors that a client sends along with a request
/// (SCM_RIGHTS on a unix socket), for commands that take one by name.
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
}
