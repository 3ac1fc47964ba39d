import BatonRuntime
import InstructionSets
import Virtio

/// `-machine virt`.
public final class VirtMachineType: MachineType {
    public let name = "virt"
    public let summary = "RISC-V VirtIO board"
    public let architecture = "riscv64"
    public let ramName = "riscv_virt_board.ram"
    public let maximumCPUs = 8
    public let cpuModels = ["rv64", "max"]
    public let accelerators = ["tcg"]
    public let properties = [
        DeviceProperty("aia", "str", "none, aplic or aplic-imsic"),
        DeviceProperty("aia-guests", "uint32", "0"),
    ]

    public init() {}

    public func make(_ machine: MachineConfiguration) throws(VMMError) -> any Machine {
        guard let accelerator = machine.accelerator as? any RISCVAccelerator else {
            throw VMMError(
                "machine 'virt' cannot run on accelerator '\(machine.accelerator.name)', which has no riscv64 CPUs",
                hint: "Use -accel tcg.")
        }
        if let cpu = machine.cpu, !cpuModels.contains(cpu) {
            throw VMMError("unable to find CPU model '\(cpu)'", hint: "Models: \(cpuModels.joined(separator: ", ")).")
        }
        guard machine.firmwareFiles.isEmpty else { throw VMMError("machine 'virt' has no fw_cfg device") }
        var configuration = VirtBoard.Configuration(ram: machine.ram) { name, size throws(VMMError) in
            try machine.allocate(name, size: size)
        }
        configuration.memory = machine.memory
        configuration.devices = machine.devices as? DeviceFactory
        configuration.hartCount = machine.cpuCount
        configuration.files.firmware = BootFiles.Firmware(argument: machine.firmware)
        configuration.files.kernel = machine.kernel
        configuration.files.initrd = machine.initrd
        configuration.files.commandLine = machine.commandLine
        configuration.files.deviceTree = machine.deviceTree
        configuration.serial = machine.serial
        configuration.flash = machine.flash
        if let text = try machine.option("aia") {
            guard let type = AIA(rawValue: text) else {
                throw VMMError(
                    "Invalid AIA interrupt controller type", hint: "Valid values are none, aplic, and aplic-imsic.")
            }
            configuration.aia = type
        }
        if let text = try machine.option("aia-guests"), SizeText.unsignedNumber(text) != 0 {
            throw VMMError(
                "Invalid number of AIA IMSIC guests",
                hint: "Valid values be between 0 and 0: there is no hypervisor extension.")
        }
        return try VirtBoard(vm: machine.vm, accelerator: accelerator, configuration: configuration)
    }
}
