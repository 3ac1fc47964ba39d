import BatonRuntime
import Glibc

/// What of a device crosses an update beside its checkpoint section: the
/// descriptors of container, group, device and interrupts, and what the kernel
/// has said of them, so that nothing need be asked again (and a trial run,
/// which must not touch them, knows the device all the same).
struct VFIOHeritage {
    let file: VFIODeviceFile
    let shape: VFIOShape
    let kind: VFIOInterrupts.Kind?
    let events: [Int32]

    private static func part(_ name: String) -> String { "vfio/\(name)" }

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
        let kindNumber = try state.unsigned("interrupt-kind", in: 0...3)
        kind = kindNumber == 0 ? nil : VFIOInterrupts.Kind(rawValue: UInt32(kindNumber - 1))
        let count = Int(try state.unsigned("interrupt-count", in: 0...2048))
        try state.finish()

        func find(_ name: String, _ id: Int) throws(VMMError) -> Int32 {
            guard let fd = cpr.fds.find(name, id: id) else {
                throw VMMError("the CPR state lacks the descriptor '\(name)' id \(id)")
            }
            return fd
        }
        var events: [Int32] = []
        for id in 0..<count { events.append(try find(VFIOName.interrupt(name), id)) }
        self.events = events
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
        for id in 0..<count { cpr.fds.delete(VFIOName.interrupt(name), id: id) }
    }

    fileprivate static func numbers(_ ranges: [VFIOContainer.Range]) -> [UInt64] {
        ranges.flatMap { [$0.start, $0.size, $0.readOnly ? 1 : 0] }
    }

    fileprivate static func put(_ device: VFIOPCIDevice, to cpr: CprController) {
        let group = device.file.group
        var state = StateWriter()
        state.put("group", UInt64(group.number))
        state.put("update-vaddr", group.container.hasUpdateVaddr)
        state.put("unmap-all", group.container.hasUnmapAll)
        device.shape.put(into: &state)
        state.put("ranges", numbers(group.container.ranges))
        state.put("interrupt-kind", device.interrupts.kind.map { UInt64($0.rawValue) + 1 } ?? 0)
        state.put("interrupt-count", UInt64(device.interrupts.events.count))
        cpr.handOver(part(device.hostName), state)
    }
}

extension VFIOPCIDevice {
    /// Saves the descriptors and hands over the rest. Nothing changes here.
    func handOver(to cpr: CprController) throws(VMMError) {
        let group = file.group
        try cpr.fds.resave(VFIOName.container, id: group.number, group.container.fd)
        try cpr.fds.resave(VFIOName.group, id: group.number, group.fd)
        try cpr.fds.resave(VFIOName.device(hostName), file.fd)
        for (vector, event) in interrupts.events.enumerated() {
            try cpr.fds.resave(VFIOName.interrupt(hostName), id: vector, event)
        }
        VFIOHeritage.put(self, to: cpr)
    }
}
