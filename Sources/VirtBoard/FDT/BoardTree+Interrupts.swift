import InstructionSets

/// The interrupt controllers in the device tree.
extension BoardTree {
    /// External interrupts of M-mode and S-mode, as the harts' controllers number them.
    private static let machineExternal: UInt32 = 11
    private static let supervisorExternal: UInt32 = 9

    func addInterruptControllers(_ soc: DeviceTreeNode) {
        guard aia != .none else { return addPLIC(soc) }
        if aia == .aplicIMSIC {
            addIMSIC(soc, MemoryMap.imsicMachine, machineIMSICHandle, isMachine: true)
            addIMSIC(soc, MemoryMap.imsicSupervisor, supervisorIMSICHandle, isMachine: false)
        }
        addAPLIC(soc, MemoryMap.aplicMachine, machineAPLICHandle, isMachine: true)
        addAPLIC(soc, MemoryMap.aplicSupervisor, interruptHandle, isMachine: false)
    }

    private func allHarts(_ interrupts: UInt32...) -> [UInt32] {
        (0..<hartCount).flatMap { hart in interrupts.flatMap { [controllerHandle(hart), $0] } }
    }

    private func addPLIC(_ soc: DeviceTreeNode) {
        let plic = device(soc, "plic", MemoryMap.plic, PLIC.size, "sifive,plic-1.0.0", "riscv,plic0")
        plic.set("phandle", interruptHandle)
        plic.set("riscv,ndev", UInt32(PLIC.maxSource))
        plic.set("interrupt-controller")
        plic.set("#interrupt-cells", 1)
        plic.set("#address-cells", 0)
        plic.set(
            "interrupts-extended", cells: allHarts(BoardTree.machineExternal, BoardTree.supervisorExternal))
    }

    private func addIMSIC(_ soc: DeviceTreeNode, _ start: UInt64, _ handle: UInt32, isMachine: Bool) {
        let node = device(
            soc, "interrupt-controller", start, UInt64(hartCount) * IMSIC.pageSize, "qemu,imsics", "riscv,imsics")
        node.set("phandle", handle)
        node.set("#interrupt-cells", 0)
        node.set("interrupt-controller")
        node.set("msi-controller")
        node.set("#msi-cells", 0)
        node.set("riscv,num-ids", UInt32(IMSICFile.identities))
        node.set(
            "interrupts-extended", cells: allHarts(isMachine ? BoardTree.machineExternal : BoardTree.supervisorExternal)
        )
        if isMachine && !hasFirmware { node.set("status", "disabled") }
    }

    private func addAPLIC(_ soc: DeviceTreeNode, _ start: UInt64, _ handle: UInt32, isMachine: Bool) {
        let node = device(soc, "interrupt-controller", start, APLIC.size, "qemu,aplic", "riscv,aplic")
        node.set("phandle", handle)
        node.set("#address-cells", 0)
        node.set("#interrupt-cells", 2)
        node.set("interrupt-controller")
        if aia == .aplicIMSIC {
            node.set("msi-parent", isMachine ? machineIMSICHandle : supervisorIMSICHandle)
        } else {
            node.set(
                "interrupts-extended",
                cells: allHarts(isMachine ? BoardTree.machineExternal : BoardTree.supervisorExternal))
        }
        node.set("riscv,num-sources", UInt32(APLIC.maxSource))
        guard isMachine else { return }
        node.set("riscv,children", interruptHandle)
        // Both the binding's name and the older one that firmware knows.
        for name in ["riscv,delegation", "riscv,delegate"] {
            node.set(name, interruptHandle, 1, UInt32(APLIC.maxSource))
        }
        if !hasFirmware { node.set("status", "disabled") }
    }
}
