import BatonRuntime

/// The module `mode-restart`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "mode", name: "restart", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(RestartMode())
    }
}

/// Restart: the VMM executes its successor, which keeps the PID, takes over
/// guest RAM in place and every preserved descriptor, and loads the state of
/// the devices from a checkpoint.
///
/// As the restart mode of QEMU's CPR series.
final class RestartMode: CprMode {
    let name = "restart"
    let summary = "execute the new VMM in this process; guest RAM and descriptors stay in place"
    let promises: CprModePromises = [.samePID, .keepsConnections, .executes]
    let neverHangs = true
    let allocatorHook: (any AllocatorHook)? = MemfdAllocator(hookName: "restart")

    /// Only memory behind a shared descriptor is still there after the exec.
    func blockers(cpr: CprController) -> [VMMError] {
        cpr.memory.blocks.compactMap {
            cpr.memory.volatility(
                of: $0, remedy: "-cpr-enable \(name) is required.",
                backendRemedy: "A memory-backend-memfd or memory-backend-file with share=on is required.")
        }
    }

    func exec(_ argv: [String], cpr: CprController) throws(VMMError) {
        try Handover.exec(argv, mode: self, cpr: cpr)
    }
}
