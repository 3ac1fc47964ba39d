import BatonRuntime

/// The module `preserver-vhost-vsock`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "preserver", name: "vhost-vsock", version: "1.0") { registrar throws(VMMError) in
        let preserver = VhostVsockPreserver()
        try registrar.add(preserver)
        for type in VhostVsockType.all(preserver) { try registrar.add(type) }
    }
}

/// Has the kernel go on with a guest's sockets over an update, whose connections end.
///
/// The kernel ties a device of its own to the process that has made it: its thread ends with an exec, and the guest's
/// address is that of one device. So the old VMM closes its device before the new one is started, and tells the guest;
/// the new one opens another while it starts, takes the address when it has the guest's state, and goes on with the rings
/// when it has the guest. In an old VMM that goes on a spare one takes the place of what was closed.
final class VhostVsockPreserver: FdPreserver {
    let name = "vhost-vsock"
    let neverHangs = true
    private(set) var devices: [VhostVsock] = []

    func add(_ device: VhostVsock) { devices.append(device) }
    func remove(_ device: VhostVsock) { devices.removeAll { $0 === device } }

    func blockers(mode: String) -> [String] { devices.compactMap { $0.blocker() } }

    func letGo() { for device in devices { device.letGo() } }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        switch phase {
        case .saveFailed: for device in devices { device.takeBack() }
        case .load: for device in devices { try device.takeAddress() }
        case .loadFailed: for device in devices { device.giveAddressBack() }
        default: break
        }
    }
}
