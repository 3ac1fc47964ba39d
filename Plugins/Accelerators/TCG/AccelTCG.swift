import BatonRuntime
import RISCV

/// What the loader calls.
@_cdecl("baton_module_query")
public func query() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "accel", name: "tcg", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(SoftwareAcceleratorType())
    }
}

/// Software harts, by the name that QEMU's users know for a guest without KVM.
final class SoftwareAcceleratorType: AcceleratorType {
    let name = "tcg"
    let summary = "riscv64 harts in software"
    let architectures = ["riscv64"]
    let properties: [DeviceProperty] = []

    func make(vm: VirtualMachine, options: KeyValueOptions) throws(VMMError) -> any Accelerator {
        try SoftwareAccelerator(vm: vm)
    }
}
