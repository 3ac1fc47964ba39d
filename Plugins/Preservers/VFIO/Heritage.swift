import BatonRuntime
import Glibc
import VFIOPCI

/// What of a device crosses an update beside its checkpoint section: the
/// descriptors of container, group, device and interrupts, and what the kernel
/// has said of them, so that nothing need be asked again (and a trial run,
/// which must not touch them, knows the device all the same).
struct VFIOHeritage {
    let file: VFIODeviceFile
    let shape: VFIOShape
    let interrupts: VFIOInheritedInterrupts

    fileprivate static func part(_ name: String) -> String { "vfio/\(name)" }

    /// - Returns: nil in a fresh start.
    /// - Throws: an error for a device that the process before did not have.
    static func find(
        _ name: String, cpr: CprController?, groups: [VFIOGroup], ranges: [VFIOContainer.Range]
    ) throws(VMMError) -> VFIOHeritage? {
        guard let cpr, let inherited = cpr.inherited else { return nil }
        guard let state = try inherited.part(part(name)) else {
            throw VMMError(
                "the VMM before did not have the device",
                hint: "Give the new VMM the devices of the old one.")
        }
        return try VFIOHeritage(state, name: name, cpr: cpr, groups: groups, ranges: ranges)
    }

    private init(
        _ state: StateReader, name: String, cpr: CprController, groups: [VFIOGroup], ranges: [VFIOContainer.Range]
    ) throws(VMMError) {
        let number = Int(try state.unsigned("group", in: 0...UInt64(Int32.max)))
        let hasUpdateVaddr = try state.bool("update-vaddr")
        let hasUnmapAll = try state.bool("unmap-all")
        shape = try VFIOShape(state)
        let mapped = try state.array("ranges", count: 0...256)
        guard mapped == VFIOHeritage.numbers(ranges) else {
            throw VMMError(
                "guest memory is not where the device's IOMMU has it",
                hint: "Give the new VMM the memory options of the old one.")
        }
        interrupts = try VFIOInheritedInterrupts(VFIOName.interrupt(name), state, cpr: cpr)
        try state.finish()

        func find(_ name: String, _ id: Int) throws(VMMError) -> Int32 {
            guard let fd = cpr.fds.find(name, id: id) else {
                throw VMMError("the CPR state lacks the descriptor '\(name)' id \(id)")
            }
            return fd
        }
        let device = try find(VFIOName.device(name), 0)
        // Everything is there: it changes hands.
        let group: VFIOGroup
        if let known = groups.first(where: { $0.number == number }) {
            group = known
        } else {
            let groupFD = try find(VFIOName.group, number)
            let containerFD = try find(VFIOName.container, number)
            let container =
                groups.first { $0.container.fd == containerFD }?.container
                ?? VFIOContainer(
                    inherited: containerFD, ranges: ranges, hasUpdateVaddr: hasUpdateVaddr, hasUnmapAll: hasUnmapAll)
            group = VFIOGroup(inherited: groupFD, number: number, container: container)
            cpr.fds.delete(VFIOName.group, id: number)
            cpr.fds.delete(VFIOName.container, id: number)
        }
        file = VFIODeviceFile(inherited: device, group: group)
        cpr.fds.delete(VFIOName.device(name))
        interrupts.claim(cpr)
    }

    fileprivate static func numbers(_ ranges: [VFIOContainer.Range]) -> [UInt64] {
        ranges.flatMap { [$0.start, $0.size, $0.readOnly ? 1 : 0] }
    }
}

/// A device of the host's, and the guest's view of it.
struct VFIOAssignment {
    let file: VFIODeviceFile
    let device: VFIOPCIDevice

    /// Saves the descriptors and hands over the rest. Nothing changes here.
    func handOver(to cpr: CprController) throws(VMMError) {
        let (group, name) = (file.group, device.hostName)
        try cpr.fds.resave(VFIOName.container, id: group.number, group.container.fd)
        try cpr.fds.resave(VFIOName.group, id: group.number, group.fd)
        try cpr.fds.resave(VFIOName.device(name), file.fd)
        var state = StateWriter()
        state.put("group", UInt64(group.number))
        state.put("update-vaddr", group.container.hasUpdateVaddr)
        state.put("unmap-all", group.container.hasUnmapAll)
        device.shape.put(into: &state)
        state.put("ranges", VFIOHeritage.numbers(group.container.ranges))
        try device.interrupts.handOver(VFIOName.interrupt(name), to: cpr, &state)
        cpr.handOver(VFIOHeritage.part(name), state)
    }
}
