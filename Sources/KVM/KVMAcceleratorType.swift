import BatonRuntime

/// `-accel kvm`.
public final class KVMAcceleratorType: AcceleratorType {
    public let name = "kvm"
    public let summary = "x86-64 CPUs on the host's, by Linux' KVM"
    public let architectures = ["x86_64"]
    public let properties: [DeviceProperty] = []

    public init() {}

    public func make(vm: VirtualMachine, options: KeyValueOptions) throws(VMMError) -> any Accelerator {
        try KVMAccelerator(vm: vm)
    }
}
