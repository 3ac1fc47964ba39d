import BatonRuntime
import InstructionSets
import Virtio

/// `-machine virt`.
public final class VirtMachineType: MachineType {
    public let name = "virt"
    public let summary = "RISC-V VirtIO board"
    public let architecture = "riscv64"
    public let ramName = "riscv_virt_board.ram"
    public let maximumCPUs = 16
    public var cpuModels: [String] { RISCVProcessor.models }
    public let accelerators = ["tcg"]
    public let properties = [
        DeviceProperty("aia", "str", "none, aplic or aplic-imsic"),
        DeviceProperty("aia-guests", "uint32", "0"),
        DeviceProperty("pflash0", "str", "node-name of the -blockdev with the first flash's contents"),
        DeviceProperty("pflash1", "str", "the same for the second flash"),
        DeviceProperty("acpi", "OnOffAuto", "off: the board describes itself by its device tree"),
        DeviceProperty("aclint", "bool", "off"),
    ]

    public let supportsNUMA = true

    public init() {}

    public func cpuProperties(of model: String) -> [DeviceProperty] { RISCVProcessor.properties(of: model) }

    public func make(_ machine: MachineConfiguration) throws(VMMError) -> any Machine {
        guard let accelerator = machine.accelerator as? any RISCVAccelerator else {
            throw VMMError(
                "machine 'virt' cannot run on accelerator '\(machine.accelerator.name)', which has no riscv64 CPUs",
                hint: "Use -accel tcg.")
        }
        let processor = try RISCVProcessor(machine.cpu)
        var configuration = VirtBoard.Configuration(ram: machine.ram) { name, size throws(VMMError) in
            try machine.allocate(name, size: size)
        }
        configuration.numa = machine.numa
        configuration.memory = machine.memory
        configuration.devices = machine.devices as? DeviceFactory
        configuration.hartCount = machine.cpuCount
        configuration.processor = processor
        configuration.files.firmware = machine.firmware
        configuration.files.kernel = machine.kernel
        configuration.files.initrd = machine.initrd
        configuration.files.commandLine = machine.commandLine
        configuration.files.deviceTree = machine.deviceTree
        configuration.serial = machine.serial
        configuration.firmwareFiles = machine.firmwareFiles
        configuration.smbios = machine.smbios
        configuration.topology = (machine.sockets, machine.cores, machine.threads)
        configuration.bootMenu = machine.bootMenu
        configuration.flash = try VirtMachineType.flash(machine)
        try VirtMachineType.checkFixed(machine)
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

    /// `-drive if=pflash`, or the nodes that `pflash0=` and `pflash1=` name.
    private static func flash(_ machine: MachineConfiguration) throws(VMMError) -> [BlockBackend] {
        var chips = machine.flash
        for index in 0..<2 {
            guard let node = try machine.option("pflash\(index)") else { continue }
            guard let backend = machine.vm.blockBackend(node) else {
                throw VMMError("Property 'virt-machine.pflash\(index)' can't find value '\(node)'")
            }
            guard index >= chips.count else {
                throw VMMError(
                    "pflash\(index)= and a -drive with if=pflash are both for flash \(index)",
                    hint: "Leave one of them out.")
            }
            guard index == chips.count else {
                throw VMMError("pflash\(index)= needs pflash0= too", hint: "The board starts from flash 0.")
            }
            chips.append(backend)
        }
        return chips
    }

    /// What QEMU's board can be given and this one is: named, and refused with another value.
    private static func checkFixed(_ machine: MachineConfiguration) throws(VMMError) {
        let fixed: [(name: String, values: [String], why: String)] = [
            ("acpi", ["off", "auto"], "The board describes itself by its device tree; use acpi=off."),
            ("aclint", ["off"], "The board has a CLINT; use aclint=off."),
        ]
        for (name, values, why) in fixed {
            guard let value = try machine.option(name), !values.contains(value) else { continue }
            throw VMMError("Invalid value '\(value)' of the machine's property '\(name)'", hint: why)
        }
    }
}
