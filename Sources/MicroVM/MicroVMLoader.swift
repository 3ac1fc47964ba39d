import BatonRuntime
import Firmware
import InstructionSets

/// Puts firmware or kernel, initrd, command line and tables into guest memory at every reset, and has the first CPU
/// start there. The files are read for each reset anew and not kept. In a process that takes over a guest there is no
/// first reset (see `Device`), so nothing is read before a later one.
final class MicroVMLoader: Device {
    let stateName = "loader"
    /// Set once the board stands.
    unowned var machine: MicroVM!
    private let files: BootFiles
    /// What `prepare` made, until the reset that uses it.
    private var prepared: BootPlan?
    private var tablesAreThere = false

    init(files: BootFiles) { self.files = files }

    /// Reads and checks the files for the first reset, so that what is wrong with them is known before the machine
    /// starts.
    func prepare() throws(VMMError) {
        let plan = try machine.plan(files)
        try addFirmwareFiles()
        prepared = plan
    }

    /// What firmware asks for, once all devices are there.
    private func addFirmwareFiles() throws(VMMError) {
        guard !tablesAreThere, files.firmware != nil else { return }
        tablesAreThere = true
        let firmware = machine.firmware
        try firmware.addBoardFiles(
            memory: machine.layout, tables: machine.tables(), bootOrder: [], panicPort: machine.panicPort)
        firmware.setKernel { [unowned self] () throws(VMMError) in try machine.plan(files).kernelItems }
    }

    func reset() {
        let vm = machine.vm
        do throws(VMMError) {
            try addFirmwareFiles()
            let plan = if let prepared { prepared } else { try machine.plan(files) }
            prepared = nil
            try plan.load(into: vm.addressSpace)
            if files.firmware != nil { machine.firmware.setKernel(plan.kernelItems) }
            machine.accelerator.x86CPUs.first?.setStartState(plan.start)
        } catch {
            Report.error(error.prefixed("machine reset"))
            vm.requestQuit(cause: "host-error", status: 1)
        }
    }

    func save(to writer: inout StateWriter) { writer.put("machine", machine.description, optional: true) }

    func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        if reader.has("machine") { try compare(try reader.strings("machine", count: 0...1000)) }
        try reader.finish()
        try addFirmwareFiles()
        return {}
    }

    /// Refuses the state of a machine that the guest would see is another.
    private func compare(_ saved: [String]) throws(VMMError) {
        let ours = machine.description
        func value(_ name: Substring, in texts: [String]) -> Substring {
            texts.first { $0.prefix { $0 != "=" } == name }?.dropFirst(name.count + 1) ?? "absent"
        }
        for text in saved + ours {
            let name = text.prefix { $0 != "=" }
            let (before, now) = (value(name, in: saved), value(name, in: ours))
            guard before == now else {
                throw VMMError(
                    "of the machine that was saved, \(name) is \(before.isEmpty ? "empty" : before), and here it is "
                        + "\(now.isEmpty ? "empty" : now)",
                    hint: "Give -machine, -device and -fw_cfg as they were.")
            }
        }
    }
}
