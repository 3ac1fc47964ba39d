import BatonRuntime
import InstructionSets

/// `-machine microvm`.
public final class MicroVMType: MachineType {
    public let name = "microvm"
    public let summary = "microvm (i386)"
    public let architecture = "x86_64"
    public let ramName = "microvm.ram"
    /// Their APIC ids have 8 bits, of which 255 means all.
    public let maximumCPUs = 255
    public let cpuModels = ["host", "max", "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"]
    public let accelerators = ["kvm"]
    public let properties = MicroVMOptions.properties
    public let hasACPI = true

    public init() {}

    public func make(_ configuration: MachineConfiguration) throws(VMMError) -> any Machine {
        guard let accelerator = configuration.accelerator as? any X86Accelerator else {
            throw VMMError(
                "machine 'microvm' cannot run on accelerator '\(configuration.accelerator.name)', "
                    + "which has no x86-64 CPUs",
                hint: "Use -accel kvm.")
        }
        guard configuration.deviceTree == nil else { throw VMMError("-dtb: machine 'microvm' has no device tree") }
        guard configuration.flash.isEmpty else {
            throw VMMError("-drive if=pflash: machine 'microvm' has no flash", hint: "Give firmware with -bios.")
        }
        return try MicroVM(configuration, accelerator: accelerator, options: try MicroVMOptions(configuration))
    }
}
