import BatonRuntime

/// The module `mode-transfer`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "mode", name: "transfer", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(TransferMode())
    }
}

/// Transfer: the new VMM is a process that somebody else has started, with a command
/// line, a cgroup, namespaces and a user of its own. It waits at a unix socket
/// (`-incoming` with a channel of type `cpr`); the old VMM connects to that, and RAM,
/// descriptors and state go over it.
///
/// As the mode `cpr-transfer` of QEMU's migration.
final class TransferMode: CprMode {
    let name = "transfer"
    let summary = "hand the guest over to a VMM that waits at a socket; guest RAM and descriptors stay in place"
    let promises: CprModePromises = [.keepsConnections, .connects]
    let neverHangs = true
    let allocatorHook: (any AllocatorHook)? = MemfdAllocator(hookName: "transfer")

    /// Only memory behind a shared descriptor can be another process' too.
    func blockers(cpr: CprController) -> [VMMError] {
        cpr.memory.blocks.compactMap {
            cpr.memory.volatility(
                of: $0, remedy: "-cpr-enable \(name) is required.",
                backendRemedy: "A memory-backend-memfd or memory-backend-file with share=on is required.")
        }
    }

    func connect(_ channel: String, peer: UInt32?, cpr: CprController) throws(VMMError) {
        try Handover.connect(try HandoverChannel.connect(channel, peer: peer), mode: self, cpr: cpr)
    }

    func receive(_ channel: String, cpr: CprController) throws(VMMError) -> Int32 {
        try HandoverChannel.accept(channel)
    }
}
