import BatonRuntime

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
        guard !preserver.devices.contains(where: { $0.hostName == host.name }) else {
            throw VMMError("vfio \(host.name): device is already attached")
        }
        do throws(VMMError) {
            let device = try open(host, id: options.id, vm: context.vm)
            try bus.plug(device, at: place)
            preserver.add(device)
        } catch {
            throw error.prefixed("vfio \(host.name)")
        }
    }

    private func open(_ host: VFIOHostDevice, id: String?, vm: VirtualMachine) throws(VMMError) -> VFIOPCIDevice {
        let ranges = VFIOContainer.Range.all(vm.addressSpace)
        let heritage = try VFIOHeritage.find(host.name, cpr: vm.cpr, groups: preserver.groups, ranges: ranges)
        if let heritage {
            return try VFIOPCIDevice(
                vm: vm, id: id, name: host.name, file: heritage.file, shape: heritage.shape, heritage: heritage,
                preserver: preserver)
        }
        let number = try host.groupNumber()
        let group: VFIOGroup
        if let known = preserver.groups.first(where: { $0.number == number }) {
            group = known
        } else {
            group = try VFIOGroup(number: number, containers: preserver.containers, ranges: ranges)
        }
        let file = try VFIODeviceFile(name: host.name, group: group)
        return try VFIOPCIDevice(
            vm: vm, id: id, name: host.name, file: file, shape: try VFIOShape(of: file.fd), heritage: nil,
            preserver: preserver)
    }
}
