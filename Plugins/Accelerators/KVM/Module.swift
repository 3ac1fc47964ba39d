import BatonRuntime
import KVM

/// The module `accel-kvm`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "accel", name: "kvm", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(KVMAcceleratorType())
    }
}
