import BatonRuntime

/// The module `mode-reboot`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "mode", name: "reboot", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(RebootMode())
    }
}

/// Reboot: the checkpoint survives the process, and the host's reboot.
///
/// RAM in a shared file on a disk stays there; the checkpoint names the file.
/// The contents of all other RAM are written to the checkpoint. As the reboot
/// mode of QEMU's CPR series: `cpr-save FILE reboot`, `quit`, a new start with
/// the same arguments and `-S`, `cpr-load FILE reboot`.
final class RebootMode: CprMode {
    let name = "reboot"
    let summary = "write a checkpoint that survives the VMM and a reboot of the host"
    let promises: CprModePromises = [.survivesHostReboot]
    let neverHangs = true
    /// Volatile RAM above this many bytes makes the guest's pause long.
    private static let warningSize = 1 << 20

    func volatileBlocks(cpr: CprController) -> [RAMBlock] { cpr.memory.blocks.filter { !$0.isPersistent } }

    func save(to container: inout SectionContainer, cpr: CprController) throws(VMMError) {
        for block in volatileBlocks(cpr: cpr) where block.usedLength > RebootMode.warningSize {
            Log.trace("cpr_volatile_ram", "\(block.name) size \(Hex(block.usedLength))")
            // Flash that nobody wrote to is large, and nothing of it is written.
            guard block.origin.hasPrefix("memory-backend-") || block.name.hasSuffix(".ram") else { continue }
            Report.warning(
                "RAM block '\(block.name)' (\(block.usedLength >> 20) MiB) "
                    + "is volatile and is written to the checkpoint; "
                    + "a memory-backend-file with share=on on a disk would stay in place")
        }
    }
}
