import BatonRuntime
import Glibc
import VFIOPCI

/// The module `preserver-vfio-user`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "preserver", name: "vfio-user", version: "1.0") { registrar throws(VMMError) in
        let preserver = VFIOUserPreserver()
        try registrar.add(preserver)
        try registrar.add(VFIOUserDeviceType(preserver))
    }
}

/// Keeps devices in vfio-user servers connected and at work over an update.
/// The server has guest RAM mapped and the interrupts' eventfds, so it goes on;
/// what it asks by message waits in the socket.
final class VFIOUserPreserver: FdPreserver {
    /// A server's device, and the guest's view of it.
    struct Assignment {
        let connection: VFIOUserConnection
        let function: VFIOPCIDevice
        /// Why it could not be handed to another process.
        let blocker: String?
    }

    let name = "vfio-user"
    let neverHangs = true
    let placement = VFIOPlacement()
    private(set) var devices: [Assignment] = []

    func add(_ device: Assignment) {
        devices.append(device)
        placement.add(device.function)
    }

    func blockers(mode name: String) -> [String] {
        guard let mode = devices.first?.function.vm.cpr?.enabledModes.first(where: { $0.name == name }) else {
            return []
        }
        guard mode.promises.contains(.keepsConnections) else {
            return ["VFIO device only supports cpr-\(name) for runstate suspended"]
        }
        return devices.compactMap(\.blocker)
    }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        switch phase {
        case .survey, .exec:
            forget(cpr) { _ in }
            for device in devices { try VFIOUserHeritage.put(device, to: cpr) }
        case .saveFailed: forget(cpr) { _ in }
        case .commit:
            // What the new command line has no device for.
            forget(cpr) { close($0) }
            for device in devices {
                try device.connection.watch(device.function.vm)
                device.function.settle()
            }
        default: break
        }
    }

    private func forget(_ cpr: CprController, _ body: (Int32) -> Void) {
        for entry in cpr.fds.entries where entry.name.hasPrefix(VFIOUserHeritage.prefix) {
            cpr.fds.delete(entry.name, id: entry.id)
            body(entry.fd)
        }
    }
}
