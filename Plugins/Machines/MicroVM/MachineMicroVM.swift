import BatonRuntime
import MicroVM

/// What the loader calls.
@_cdecl("baton_module_query")
public func query() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "machine", name: "microvm", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(MicroVMType())
        for type in microVMDeviceTypes() { try registrar.add(type) }
    }
}
