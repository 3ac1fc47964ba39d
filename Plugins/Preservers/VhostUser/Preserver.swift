import BatonRuntime
import Glibc

/// The module `preserver-vhost-user`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "preserver", name: "vhost-user", version: "1.0") { registrar throws(VMMError) in
        let preserver = VhostUserPreserver()
        try registrar.add(preserver)
        for type in VhostUserDeviceType.all(preserver) { try registrar.add(type) }
        try registrar.add(VhostUserNetType(preserver))
    }
}

/// Keeps vhost-user back ends connected and at work over an update. A mode
/// that does not keep connections has them stopped before the checkpoint.
final class VhostUserPreserver: FdPreserver {
    let name = "vhost-user"
    let neverHangs = true
    private(set) var devices: [VhostUserDevice] = []

    func add(_ device: VhostUserDevice) { devices.append(device) }

    func blockers(mode name: String) -> [String] {
        devices.compactMap { device in
            guard let mode = device.vm.cpr?.enabledModes.first(where: { $0.name == name }) else { return nil }
            if mode.promises.contains(.keepsConnections) {
                guard device.chardev.reopensOnCpr else { return nil }
                return "\(device.name): the connection must be kept, without reopen-on-cpr=on"
            }
            // As QEMU says of a device that cannot migrate.
            guard !device.kind.isStateless else { return nil }
            return "State blocked by non-migratable device '\(device.host?.stateName ?? device.model)'"
        }
    }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        switch phase {
        case .save:
            guard cpr.modeOfSave?.promises.contains(.keepsConnections) == false else { return }
            for device in devices { try device.comeToRest() }
        case .survey, .exec:
            forget(cpr)
            for device in devices { try device.handOver(to: cpr) }
        case .saveFailed: forget(cpr)
        case .commit: closeLeftovers(cpr)
        default: break
        }
    }

    private func forget(_ cpr: CprController) {
        for entry in cpr.fds.entries where entry.name.hasPrefix(VhostUserHeritage.prefix) {
            cpr.fds.delete(entry.name, id: entry.id)
        }
    }

    /// What the new command line has no device for.
    private func closeLeftovers(_ cpr: CprController) {
        for entry in cpr.fds.entries where entry.name.hasPrefix(VhostUserHeritage.prefix) {
            cpr.fds.delete(entry.name, id: entry.id)
            close(entry.fd)
        }
    }
}

extension VhostUserDevice {
    /// Stops the back end's work for a checkpoint that it will not outlive.
    func comeToRest() throws(VMMError) {
        guard isServing else {
            guard mayBeAtWork else { return }
            for queue in served { follow(queue.index) }
            guard hasRequestsInHand || inflight != nil else { return }
            throw VMMError(
                "\(name): the back end was cut off with requests in hand, and may be at work on them",
                hint: "Have it end, or answer again.")
        }
        rest()
        guard channel != nil else { throw VMMError("\(name): the back end could not be stopped") }
    }
}
