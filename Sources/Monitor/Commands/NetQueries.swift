import BatonRuntime

/// Registers `info network`.
/// - Parameter backends: the host sides of the network cards.
public func registerNetCommands(vm: VirtualMachine, backends: @escaping () -> [NetBackend]) throws(VMMError) {
    try vm.commands.add(
        HMPCommand.info("network", "show the network state") {
            backends().map {
                "\($0.id): type=\($0.backend),link=\($0.linkUp ? "up" : "down")"
                    + "\($0.receiver == nil ? " (no card)" : "")\n"
            }.joined()
        })
}
