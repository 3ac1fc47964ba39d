import BatonRuntime
import VFIOPCI

/// `-device vfio-user-pci`.
final class VFIOUserDeviceType: DeviceType {
    let name = "vfio-user-pci"
    let summary = "VFIO over socket PCI device assignment"
    let bus = PCIBus.busType
    let category = DeviceCategory.misc
    let properties =
        [
            DeviceProperty("socket.type", "str", "unix, or fd"),
            DeviceProperty("socket.path", "str", "socket of the vfio-user server"),
            DeviceProperty("socket.str", "str", "number of a connection to it, with socket.type=fd"),
            DeviceProperty("x-msg-timeout", "uint32", "milliseconds that the server has for one message"),
        ] + VFIOROMSource.properties
    private let preserver: VFIOUserPreserver

    init(_ preserver: VFIOUserPreserver) { self.preserver = preserver }

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        let address = try VFIOUserAddress(options)
        let milliseconds = try options.options.number("x-msg-timeout", in: 1...600_000)
        let timeLimit = milliseconds.map { Int64($0) * 1_000_000 } ?? VFIOUserConnection.timeLimit
        let rom = try VFIOROMSource(options)
        let bus = try context.bus(PCIBus.self, for: options)
        let place = try bus.place(options)
        let label = VFIOUserConnection.label(address.name)
        guard !preserver.devices.contains(where: { $0.connection.name == address.name }) else {
            throw VMMError("\(label): device is already attached")
        }
        do throws(VMMError) {
            let device = try open(address, rom, id: options.id, vm: context.vm, timeLimit: timeLimit)
            try bus.plug(device.function, at: place)
            preserver.add(device)
            // What was inherited may not be touched before the commit.
            if context.vm.cpr?.inherited == nil { try device.connection.watch(context.vm) }
        } catch {
            throw error.prefixed(label)
        }
    }

    private func open(
        _ address: VFIOUserAddress, _ rom: VFIOROMSource, id: String?, vm: VirtualMachine, timeLimit: Int64
    ) throws(VMMError) -> VFIOUserPreserver.Assignment {
        let heritage = try VFIOUserHeritage.find(address.name, vm: vm, timeLimit: timeLimit)
        let connection: VFIOUserConnection
        let shape: VFIOShape
        if let heritage {
            connection = heritage.connection
            shape = heritage.shape
        } else {
            let socket = try address.connect(except: preserver.devices.map(\.connection.socket))
            connection = try VFIOUserConnection(
                socket, name: address.name, space: vm.addressSpace, timeLimit: timeLimit)
            do throws(VMMError) { shape = try VFIOShape(of: connection) } catch { throw connection.reason(error) }
        }
        let function = try VFIOPCIDevice(
            vm: vm, model: name, id: id, hostName: address.name, label: VFIOUserConnection.label(address.name),
            transport: connection, shape: shape, inherited: heritage?.interrupts, notices: [.error],
            placement: preserver.placement, romSource: rom)
        return VFIOUserPreserver.Assignment(connection: connection, function: function, blocker: address.blocker)
    }
}
