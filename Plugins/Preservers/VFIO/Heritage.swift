import BatonRuntime
import Glibc
import VFIOPCI

/// What of a device crosses an update beside its checkpoint section: the
/// descriptors of device and interrupts, container and group or iommufd, and what
/// the kernel has said of them, so that nothing need be asked again (and a trial run,
/// which must not touch them, knows the device all the same).
struct VFIOHeritage {
    let file: VFIODeviceFile
    let shape: VFIOShape
    let interrupts: VFIOInheritedInterrupts

    fileprivate static func part(_ name: String) -> String { "vfio/\(name)" }

    /// - Returns: nil in a fresh start.
    /// - Throws: an error for a device that the process before did not have.
    static func find(
        _ name: String, iommufd: VFIOIOMMUFD?, cpr: CprController?, groups: [VFIOGroup], ranges: [VFIORange]
    ) throws(VMMError) -> VFIOHeritage? {
        guard let cpr, let inherited = cpr.inherited else { return nil }
        guard let state = try inherited.part(part(name)) else {
            throw VMMError(
                "the VMM before did not have the device",
                hint: "Give the new VMM the devices of the old one.")
        }
        return try VFIOHeritage(state, name: name, iommufd: iommufd, cpr: cpr, groups: groups, ranges: ranges)
    }

    private init(
        _ state: StateReader, name: String, iommufd: VFIOIOMMUFD?, cpr: CprController, groups: [VFIOGroup],
        ranges: [VFIORange]
    ) throws(VMMError) {
        shape = try VFIOShape(state)
        let mapped = try state.array("ranges", count: 0...256)
        guard mapped == VFIORange.numbers(ranges) else {
            throw VMMError(
                "guest memory is not where the device's IOMMU has it",
                hint: "Give the new VMM the memory options of the old one.")
        }
        interrupts = try VFIOInheritedInterrupts(
            VFIOName.interrupt(name), notices: VFIOName.notice(name), state, cpr: cpr)
        let device = try VFIOHeritage.descriptor(VFIOName.device(name), cpr: cpr)
        let attachment: VFIODeviceFile.Attachment
        if let iommufd {
            attachment = try VFIOHeritage.attachment(state, iommufd)
        } else {
            attachment = .group(try VFIOHeritage.group(state, cpr: cpr, known: groups, ranges: ranges))
        }
        try state.finish()
        file = VFIODeviceFile(inherited: device, attachment: attachment)
        cpr.fds.delete(VFIOName.device(name))
        interrupts.claim(cpr)
    }

    private static func descriptor(_ name: String, id: Int = 0, cpr: CprController) throws(VMMError) -> Int32 {
        guard let fd = cpr.fds.find(name, id: id) else {
            throw VMMError("the CPR state lacks the descriptor '\(name)' id \(id)")
        }
        return fd
    }

    private static let otherBackend = "Give the new VMM the -object iommufd and iommufd= of the old one."

    private static func group(
        _ state: StateReader, cpr: CprController, known groups: [VFIOGroup], ranges: [VFIORange]
    ) throws(VMMError) -> VFIOGroup {
        guard !state.has("iommufd") else {
            throw VMMError("the device is of the iommufd '\(try state.string("iommufd"))'", hint: otherBackend)
        }
        let number = Int(try state.unsigned("group", in: 0...UInt64(Int32.max)))
        // A VMM of before had a container for each group.
        let containerNumber =
            state.has("container") ? Int(try state.unsigned("container", in: 0...UInt64(Int32.max))) : number
        let hasUpdateVaddr = try state.bool("update-vaddr")
        let hasUnmapAll = try state.bool("unmap-all")
        if let known = groups.first(where: { $0.number == number }) { return known }
        let groupFD = try descriptor(VFIOName.group, id: number, cpr: cpr)
        let container: VFIOContainer
        if let known = groups.first(where: { $0.container.number == containerNumber })?.container {
            container = known
        } else {
            let fd = try descriptor(VFIOName.container, id: containerNumber, cpr: cpr)
            container = VFIOContainer(
                inherited: fd, number: containerNumber, ranges: ranges, hasUpdateVaddr: hasUpdateVaddr,
                hasUnmapAll: hasUnmapAll)
            cpr.fds.delete(VFIOName.container, id: containerNumber)
        }
        cpr.fds.delete(VFIOName.group, id: number)
        return VFIOGroup(inherited: groupFD, number: number, container: container)
    }

    private static func attachment(
        _ state: StateReader, _ iommufd: VFIOIOMMUFD
    ) throws(VMMError) -> VFIODeviceFile.Attachment {
        let id = state.has("iommufd") ? try state.string("iommufd") : nil
        guard id == iommufd.id else {
            throw VMMError(
                id.map { "the device is of the iommufd '\($0)', not '\(iommufd.id)'" }
                    ?? "the device is of a group, not of an iommufd", hint: otherBackend)
        }
        let number = try state.uint32("ioas")
        guard let space = iommufd.spaces.first(where: { $0.id == number }) else {
            throw VMMError("part '\(state.section)' has an address space that iommufd '\(iommufd.id)' lacks")
        }
        return .iommufd(iommufd, space: space, id: try state.uint32("device-id"))
    }
}

/// A device of the host's, and the guest's view of it.
struct VFIOAssignment {
    let file: VFIODeviceFile
    let device: VFIOPCIDevice
    /// Why it could not be handed to another process, whatever has its memory.
    let blocker: String?

    /// Saves the descriptors and hands over the rest. Nothing changes here.
    func handOver(to cpr: CprController) throws(VMMError) {
        let name = device.hostName
        var state = StateWriter()
        switch file.attachment {
        case .group(let group):
            try cpr.fds.resave(VFIOName.container, id: group.container.number, group.container.fd)
            try cpr.fds.resave(VFIOName.group, id: group.number, group.fd)
            state.put("group", UInt64(group.number))
            state.put("container", UInt64(group.container.number))
            state.put("update-vaddr", group.container.hasUpdateVaddr)
            state.put("unmap-all", group.container.hasUnmapAll)
        case .iommufd(let iommufd, let space, let id):
            state.put("iommufd", iommufd.id)
            state.put("ioas", UInt64(space.id))
            state.put("device-id", UInt64(id))
        }
        try cpr.fds.resave(VFIOName.device(name), file.fd)
        device.shape.put(into: &state)
        state.put("ranges", VFIORange.numbers(VFIORange.all(device.vm.addressSpace)))
        try device.interrupts.handOver(VFIOName.interrupt(name), to: cpr, &state)
        try device.notices.handOver(VFIOName.notice(name), to: cpr)
        cpr.handOver(VFIOHeritage.part(name), state)
    }
}
