import BatonRuntime
import VirtBoard

/// What the loader calls.
@_cdecl("baton_module_query")
public func query() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "machine", name: "virt", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(VirtMachineType())
    }
}
