import BatonRuntime

/// `info numa` and `x-query-numa`: the guest's NUMA nodes.
func registerNUMAQueries(_ vm: VirtualMachine) throws(VMMError) {
    let text = { [unowned vm] in
        guard let numa = vm.numa else { return "0 nodes\n" }
        return "\(numa.nodes.count) nodes\n"
            + numa.nodes.enumerated().map { id, node in
                "node \(id) cpus:\(node.cpus.map { " \($0)" }.joined())\nnode \(id) size: \(node.size >> 20) MB\n"
                    + "node \(id) plugged: 0 MB\n"
            }.joined()
    }
    try vm.commands.add(HMPCommand.info("numa", "show NUMA information", text))
    try vm.commands.add(
        QMPCommand.query("x-query-numa", returns: humanReadableText) { ["human-readable-text": .string(text())] })
}
