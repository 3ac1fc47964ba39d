import BatonRuntime
import VFIOPCI

/// `-device vfio-pci`.
final class VFIODeviceType: DeviceType {
    let name = "vfio-pci"
    let summary = "VFIO-based PCI device assignment"
    let bus = PCIBus.busType
    let category = DeviceCategory.misc
    let properties = [
        DeviceProperty("host", "str", "address (bus/device/function) of the host's device, as 0000:06:0d.0"),
        DeviceProperty("sysfsdev", "str", "its directory in sysfs, instead"),
    ]
    private let preserver: VFIOPreserver

    init(_ preserver: VFIOPreserver) { self.preserver = preserver }

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        let host = try VFIOHostDevice(options)
        let bus = try context.bus(PCIBus.self, for: options)
        let place = try bus.place(options)
        guard !preserver.devices.contains(where: { $0.device.hostName == host.name }) else {
            throw VMMError("vfio \(host.name): device is already attached")
        }
        do throws(VMMError) {
            let assignment = try open(host, id: options.id, vm: context.vm)
            try bus.plug(assignment.device, at: place)
            preserver.add(assignment)
        } catch {
            throw error.prefixed("vfio \(host.name)")
        }
    }

    private func open(_ host: VFIOHostDevice, id: String?, vm: VirtualMachine) throws(VMMError) -> VFIOAssignment {
        let ranges = VFIOContainer.Range.all(vm.addressSpace)
        let heritage = try VFIOHeritage.find(host.name, cpr: vm.cpr, groups: preserver.groups, ranges: ranges)
        let file: VFIODeviceFile
        let shape: VFIOShape
        if let heritage {
            file = heritage.file
            shape = heritage.shape
        } else {
            let number = try host.groupNumber()
            let group: VFIOGroup
            if let known = preserver.groups.first(where: { $0.number == number }) {
                group = known
            } else {
                group = try VFIOGroup(number: number, containers: preserver.containers, ranges: ranges)
            }
            file = try VFIODeviceFile(name: host.name, group: group)
            shape = try VFIOShape(of: file)
        }
        let device = try VFIOPCIDevice(
            vm: vm, model: name, id: id, hostName: host.name, label: "vfio \(host.name)", transport: file,
            shape: shape, inherited: heritage?.interrupts, placement: preserver.placement)
        return VFIOAssignment(file: file, device: device)
    }
}
