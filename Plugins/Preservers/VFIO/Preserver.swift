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
        try registrar.add(VFIOIOMMUFDType(preserver))
    }
}

/// Keeps passed-through PCI functions at work over an update: the descriptors
/// of devices, interrupts, and containers and groups or iommufds are handed to
/// the next VMM, and the IOMMU's mappings stay. Only the kernel's account of
/// whose memory that is changes: of a container, the addresses of guest RAM in
/// the process are given up and set anew (VFIO_DMA_UNMAP_FLAG_VADDR,
/// linux/vfio.h); an iommufd is told of the new process
/// (IOMMU_IOAS_CHANGE_PROCESS, linux/iommufd.h).
final class VFIOPreserver: FdPreserver {
    let name = "vfio"
    private(set) var devices: [VFIOAssignment] = []
    private var iommufds: [VFIOIOMMUFD] = []
    let placement = VFIOPlacement()
    /// Whether memory has been given up for a new VMM.
    private var hasGivenUp = false

    var groups: [VFIOGroup] { devices.compactMap(\.file.group) }

    /// Everything that has guest RAM mapped, once.
    private var owners: [any VFIOMemoryOwner] {
        var found: [any VFIOMemoryOwner] = []
        for device in devices where !found.contains(where: { $0 === device.file.owner }) {
            found.append(device.file.owner)
        }
        return found
    }

    var containers: [VFIOContainer] { owners.compactMap { $0 as? VFIOContainer } }

    func add(_ assignment: VFIOAssignment) {
        devices.append(assignment)
        let file = assignment.file
        file.onBusReset = { [unowned self, unowned file] in
            guard let asking = devices.first(where: { $0.file === file }) else { return ENODEV }
            var reset = VFIOHotReset(asking, devices: devices)
            return reset.run()
        }
        placement.add(assignment.device)
    }

    func add(_ iommufd: VFIOIOMMUFD) { iommufds.append(iommufd) }

    /// - Throws: QEMU's error when there is none.
    func iommufd(_ id: String) throws(VMMError) -> VFIOIOMMUFD {
        guard let found = iommufds.first(where: { $0.id == id }) else {
            throw VMMError("Device '\(id)' not found", hint: "Give -object iommufd,id=\(id) before the device.")
        }
        return found
    }

    func blockers(mode name: String) -> [String] {
        guard let mode = devices.first?.device.vm.cpr?.enabledModes.first(where: { $0.name == name }) else { return [] }
        guard mode.promises.handsOver else {
            return ["VFIO device only supports cpr-\(name) for runstate suspended"]
        }
        return owners.compactMap(\.blocker) + devices.compactMap(\.blocker)
    }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        switch phase {
        case .survey: try handOver(cpr)
        case .exec:
            try handOver(cpr)
            hasGivenUp = true
            for owner in owners { try owner.giveUp() }
        case .saveFailed: try takeBack(cpr)
        case .load where cpr.inherited != nil:
            for owner in owners { try owner.acquire() }
        case .commit:
            closeLeftovers(cpr)
            defer { for device in devices { device.device.settle() } }
            try all { owner throws(VMMError) in try owner.settle() }
        default: break
        }
    }

    private func handOver(_ cpr: CprController) throws(VMMError) {
        for iommufd in iommufds { try iommufd.handOver(to: cpr) }
        for device in devices { try device.handOver(to: cpr) }
    }

    /// The guest goes on here.
    private func takeBack(_ cpr: CprController) throws(VMMError) {
        forget(cpr) { _ in }
        guard hasGivenUp else { return }
        hasGivenUp = false
        try all { owner throws(VMMError) in try owner.takeBack() }
    }

    /// Does something for every owner of memory, also when one of them fails.
    private func all(_ body: (any VFIOMemoryOwner) throws(VMMError) -> Void) throws(VMMError) {
        var failure: VMMError?
        for owner in owners {
            do throws(VMMError) { try body(owner) } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
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
    static func iommufd(_ id: String) -> String { "vfio_iommufd/\(id)" }
    static func device(_ name: String) -> String { "vfio_device/\(name)" }
    /// The id is the number of the interrupt.
    static func interrupt(_ name: String) -> String { "vfio_interrupt/\(name)" }
    /// The id is the index of the interrupt.
    static func notice(_ name: String) -> String { "vfio_notice/\(name)" }
    static func isOurs(_ name: String) -> Bool { name.hasPrefix("vfio_") }
}
