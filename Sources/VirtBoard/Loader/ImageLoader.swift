import BatonRuntime
import Firmware
import InstructionSets

/// Puts firmware, kernel, initrd, device tree and reset vector into guest
/// memory at every reset, and sends the harts there.
///
/// The files are read for each reset anew and not kept: they may be a large
/// part of the guest's memory. In a process that takes over a guest there is
/// no first reset (see `Device`), so nothing is read and no guest memory is
/// changed before the load, and the files are needed only for a later reset.
final class ImageLoader: Device {
    let stateName = "loader"

    private let vm: VirtualMachine
    private let accelerator: any RISCVAccelerator
    private let files: BootFiles
    private let memorySize: UInt64
    private let flash: [CFIFlash]
    private let flashIsFilled: Bool
    private let firmware: FwCfg
    /// What tells the board's SMBIOS tables from others; nil without any.
    private let smbios: UInt64?
    /// What firmware is told of its menu, as `-boot` has it; empty for nothing.
    private let bootMenu: String
    private let aia: AIA
    private let numa: NUMATopology?
    private var flashIsLoaded = false
    /// What `prepare` made, until the reset that uses it.
    private var prepared: BootPlan?

    init(
        vm: VirtualMachine, accelerator: any RISCVAccelerator, files: BootFiles, memorySize: UInt64,
        flash: [CFIFlash], flashIsFilled: Bool, firmware: FwCfg, smbios: UInt64?, bootMenu: String, aia: AIA,
        numa: NUMATopology?
    ) {
        (self.smbios, self.bootMenu) = (smbios, bootMenu)
        self.numa = numa
        self.aia = aia
        self.vm = vm
        self.accelerator = accelerator
        self.files = files
        self.memorySize = memorySize
        self.flash = flash
        self.flashIsFilled = flashIsFilled
        self.firmware = firmware
        firmware.setKernel { [unowned self] () throws(VMMError) in try plan().kernelItems }
    }

    /// Reads and places the files, without a change to guest memory.
    func plan() throws(VMMError) -> BootPlan {
        try BootPlan(files: files, memorySize: memorySize, flashIsFilled: flashIsFilled) {
            BoardTree(
                hartCount: accelerator.riscvHarts.count, memorySize: memorySize, aia: aia,
                extensions: accelerator.processor.extensions, hasFirmware: files.firmware != .builtin, numa: numa
            ).make()
        }
    }

    /// Reads and checks the files for the first reset, so that what is wrong
    /// with them is known before the machine starts.
    func prepare() throws(VMMError) { prepared = try plan() }

    func reset() {
        do {
            try loadFlash()
            let plan = if let prepared { prepared } else { try plan() }
            prepared = nil
            try plan.load(into: vm.addressSpace)
            firmware.setKernel(plan.kernelItems)
            for hart in accelerator.riscvHarts { hart.setResetVector(resetState(hart, plan)) }
        } catch {
            Report.error(error.prefixed("machine reset"))
            vm.requestQuit(cause: "host-error", status: 1)
        }
    }

    private func resetState(_ hart: any RISCVHart, _ plan: BootPlan) -> ResetState {
        if files.firmware == .builtin {
            return ResetState(
                pc: plan.kernelEntry, a0: UInt64(hart.index), a1: plan.deviceTreeAddress, mode: .supervisor)
        }
        return ResetState(pc: ResetVector.base, mode: .machine)
    }

    /// Reads the flash images once: what the guest writes goes to both, and over a restart the blocks keep it.
    private func loadFlash() throws(VMMError) {
        guard !flashIsLoaded else { return }
        for chip in flash { try chip.readContents() }
        flashIsLoaded = true
    }

    /// One that has them hidden stays as it is over updates.
    func save(to writer: inout StateWriter) {
        if let smbios, !firmware.hidesSMBIOS { writer.put("smbios", smbios, optional: true) }
        if !bootMenu.isEmpty { writer.put("boot-menu", bootMenu, optional: true) }
    }

    func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        // A VMM of before had none.
        let knowsTables = reader.has("smbios")
        if knowsTables, try reader.unsigned("smbios") != smbios {
            throw VMMError(
                "the SMBIOS tables of the machine that was saved are others",
                hint: "Give -smbios, -uuid, -m and -smp as they were.")
        }
        let menu = reader.has("boot-menu") ? try reader.string("boot-menu") : ""
        guard menu == bootMenu else {
            throw VMMError(
                "the machine that was saved had -boot '\(menu)', and here it is '\(bootMenu)'",
                hint: "Give -boot menu= and splash-time= as they were.")
        }
        try reader.finish()
        return { [self] in
            flashIsLoaded = true
            firmware.hidesSMBIOS = !knowsTables
        }
    }
}
