import BatonRuntime
import Glibc
import VFIOPCI

/// The module `preserver-vfio`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "preserver", name: "vfio", version: "1.0") { registrar throws(VMMError) in
        let preserver = VFIOPreserver()
        try registrar.add(preserver)
        try registrar.add(VFIODeviceType(preserver))
    }
}

/// Keeps passed-through PCI functions at work over an update: container,
/// group, device and interrupt descriptors are handed to the next VMM, and the
/// IOMMU's mappings stay, while only the addresses of guest RAM in the process
/// are given up and set anew (VFIO_DMA_UNMAP_FLAG_VADDR, linux/vfio.h).
final class VFIOPreserver: FdPreserver {
    let name = "vfio"
    private(set) var devices: [VFIOAssignment] = []
    let placement = VFIOPlacement()
    /// The process that the kernel has guest RAM's addresses of.
    private var owner = getpid()

    var groups: [VFIOGroup] { devices.map(\.file.group) }

    /// Every container, once.
    var containers: [VFIOContainer] {
        var found: [VFIOContainer] = []
        for group in groups where !found.contains(where: { $0 === group.container }) { found.append(group.container) }
        return found
    }

    func add(_ assignment: VFIOAssignment) {
        devices.append(assignment)
        placement.add(assignment.device)
    }

    func blockers(mode name: String) -> [String] {
        guard let mode = devices.first?.device.vm.cpr?.enabledModes.first(where: { $0.name == name }) else { return [] }
        guard mode.promises.contains(.samePID) else {
            return ["VFIO device only supports cpr-\(name) for runstate suspended"]
        }
        return containers.compactMap(\.blocker)
    }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        guard !devices.isEmpty else { return phase == .commit ? closeLeftovers(cpr) : () }
        switch phase {
        case .survey: try handOver(cpr)
        case .exec:
            try handOver(cpr)
            for container in containers { try container.giveUpAddresses() }
        case .saveFailed: try takeBack(cpr)
        case .commit:
            closeLeftovers(cpr)
            defer { for device in devices { device.device.settle() } }
            for container in containers where !container.hasAddresses { try container.setAddresses() }
        default: break
        }
    }

    private func handOver(_ cpr: CprController) throws(VMMError) {
        for device in devices { try device.handOver(to: cpr) }
    }

    /// The guest goes on here. A copy of the process that handed over was made
    /// before that, and does not know how far that one came.
    private func takeBack(_ cpr: CprController) throws(VMMError) {
        forget(cpr) { _ in }
        let isCopy = getpid() != owner
        owner = getpid()
        for container in containers {
            if isCopy { try container.giveUpAddresses(unlessDone: true) }
            if !container.hasAddresses { try container.setAddresses() }
        }
    }

    private func forget(_ cpr: CprController, _ body: (Int32) -> Void) {
        for entry in cpr.fds.entries where VFIOName.isOurs(entry.name) {
            cpr.fds.delete(entry.name, id: entry.id)
            body(entry.fd)
        }
    }

    /// What the new command line has no device for.
    private func closeLeftovers(_ cpr: CprController) { forget(cpr) { close($0) } }
}

/// Names of descriptors, with QEMU's for containers and groups.
enum VFIOName {
    static let container = "vfio_container_for_group"
    static let group = "vfio_group"
    static func device(_ name: String) -> String { "vfio_device/\(name)" }
    /// The id is the number of the interrupt.
    static func interrupt(_ name: String) -> String { "vfio_interrupt/\(name)" }
    static func isOurs(_ name: String) -> Bool { name.hasPrefix("vfio_") }
}
