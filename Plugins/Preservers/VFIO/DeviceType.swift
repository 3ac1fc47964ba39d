import BatonRuntime
import VFIOPCI

/// `-device vfio-pci`.
final class VFIODeviceType: DeviceType {
    let name = "vfio-pci"
    let summary = "VFIO-based PCI device assignment"
    let bus = PCIBus.busType
    let category = DeviceCategory.misc
    let properties =
        [
            DeviceProperty("host", "str", "address (bus/device/function) of the host's device, as 0000:06:0d.0"),
            DeviceProperty("sysfsdev", "str", "its directory in sysfs, instead"),
            DeviceProperty("iommufd", "str", "id of an -object iommufd that has its memory, instead of a container"),
            DeviceProperty("fd", "str", "the device, opened by somebody else, with iommufd="),
            DeviceProperty("x-req", "bool", "whether to tell when the host wants the device back"),
        ] + VFIOROMSource.properties
    private let preserver: VFIOPreserver

    init(_ preserver: VFIOPreserver) { self.preserver = preserver }

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        let iommufd = try options.text("iommufd").map { id throws(VMMError) in try preserver.iommufd(id) }
        let host = try VFIOHostDevice(options, usesIOMMUFD: iommufd != nil)
        let bus = try context.bus(PCIBus.self, for: options)
        let place = try bus.place(options)
        guard !preserver.devices.contains(where: { $0.device.hostName == host.name }) else {
            throw VMMError("vfio \(host.name): device is already attached")
        }
        let rom = try VFIOROMSource(options)
        let notices: [VFIONotices.Kind] = try options.options.bool("x-req") ?? true ? [.error, .request] : [.error]
        do throws(VMMError) {
            let assignment = try open(host, iommufd, rom, notices, id: options.id, vm: context.vm)
            try bus.plug(assignment.device, at: place)
            preserver.add(assignment)
            context.vm.addressSpace.pinPages()
            if context.vm.cpr?.isTrial != true {
                context.vm.accelerator?.addDMA(file: assignment.file.group?.fd ?? assignment.file.fd)
            }
        } catch {
            throw error.prefixed("vfio \(host.name)")
        }
    }

    private func open(
        _ host: VFIOHostDevice, _ iommufd: VFIOIOMMUFD?, _ rom: VFIOROMSource, _ notices: [VFIONotices.Kind],
        id: String?, vm: VirtualMachine
    ) throws(VMMError) -> VFIOAssignment {
        let ranges = VFIORange.all(vm.addressSpace)
        let heritage = try VFIOHeritage.find(
            host.name, iommufd: iommufd, cpr: vm.cpr, groups: preserver.groups, ranges: ranges)
        let file: VFIODeviceFile
        let shape: VFIOShape
        if let heritage {
            file = heritage.file
            shape = heritage.shape
        } else {
            file = try open(host, iommufd, ranges: ranges, vm: vm)
            shape = try VFIOShape(of: file)
        }
        let device = try VFIOPCIDevice(
            vm: vm, model: name, id: id, hostName: host.name, label: "vfio \(host.name)", transport: file,
            shape: shape, inherited: heritage?.interrupts, notices: notices, placement: preserver.placement,
            romSource: rom)
        return VFIOAssignment(file: file, device: device, blocker: host.blocker)
    }

    private func open(
        _ host: VFIOHostDevice, _ iommufd: VFIOIOMMUFD?, ranges: [VFIORange], vm: VirtualMachine
    ) throws(VMMError) -> VFIODeviceFile {
        if let iommufd, let given = host.file {
            let file: Int32
            do throws(VMMError) {
                file = try vm.namedFDs.take(given)
            } catch {
                throw error.prefixed("Could not parse remote object fd \(given)")
            }
            return try VFIODeviceFile(OwnedFD(adopting: file), iommufd: iommufd, ranges: ranges)
        }
        try host.check()
        if let iommufd {
            return try VFIODeviceFile(
                VFIOCharacterDevice.open(host.sysfsPath), iommufd: iommufd, ranges: ranges)
        }
        let number = try host.groupNumber()
        let group: VFIOGroup
        if let known = preserver.groups.first(where: { $0.number == number }) {
            group = known
        } else {
            group = try VFIOGroup(number: number, containers: preserver.containers, ranges: ranges)
        }
        return try VFIODeviceFile(name: host.name, group: group)
    }
}
