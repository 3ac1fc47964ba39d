import BatonRuntime

/// `-accel kvm`.
public final class KVMAcceleratorType: AcceleratorType {
    public let name = "kvm"
    public let summary = "x86-64 CPUs on the host's, by Linux' KVM"
    public let architectures = ["x86_64"]
    public let properties = [
        DeviceProperty("device", "str", "KVM's device (/dev/kvm)"),
        DeviceProperty("kernel-irqchip", "str", "on: interrupt controllers are the kernel's"),
    ]

    public init() {}

    public func cpuProperties(of model: String) -> [DeviceProperty] { CPUModel.properties }

    public func make(vm: VirtualMachine, options: KeyValueOptions) throws(VMMError) -> any Accelerator {
        let device = try options.string("device")
        // QEMU's other values are for boards whose controllers are in the VMM.
        _ = try options.enumeration("kernel-irqchip", ["on"])
        return try KVMAccelerator(vm: vm, device: device)
    }
}
