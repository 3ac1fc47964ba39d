import BatonRuntime
import VFIOPCI

/// `-device vfio-user-pci`.
final class VFIOUserDeviceType: DeviceType {
    let name = "vfio-user-pci"
    let summary = "VFIO over socket PCI device assignment"
    let bus = PCIBus.busType
    let category = DeviceCategory.misc
    let properties = [
        DeviceProperty("socket.type", "str", "unix"),
        DeviceProperty("socket.path", "str", "socket of the vfio-user server"),
        DeviceProperty("x-msg-timeout", "uint32", "milliseconds that the server has for one message"),
    ] + VFIOROMSource.properties
    private let preserver: VFIOUserPreserver

    init(_ preserver: VFIOUserPreserver) { self.preserver = preserver }

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        let path = try path(options)
        let milliseconds = try options.options.number("x-msg-timeout", in: 1...600_000)
        let timeLimit = milliseconds.map { Int64($0) * 1_000_000 } ?? VFIOUserConnection.timeLimit
        let rom = try VFIOROMSource(options)
        let bus = try context.bus(PCIBus.self, for: options)
        let place = try bus.place(options)
        let label = VFIOUserConnection.label(path)
        guard !preserver.devices.contains(where: { $0.connection.path == path }) else {
            throw VMMError("\(label): device is already attached")
        }
        do throws(VMMError) {
            let device = try open(path, rom, id: options.id, vm: context.vm, timeLimit: timeLimit)
            try bus.plug(device.function, at: place)
            preserver.add(device)
            // What was inherited may not be touched before the commit.
            if context.vm.cpr?.inherited == nil { try device.connection.watch(context.vm.loop) }
        } catch {
            throw error.prefixed(label)
        }
    }

    /// The server's socket; as in QEMU, a `SocketAddress` that can only be a
    /// UNIX socket.
    private func path(_ options: DeviceOptions) throws(VMMError) -> String {
        let type = try options.text("socket.type")
        let path = try options.text("socket.path")
        guard type != nil || path != nil else {
            throw VMMError(
                "No socket specified",
                hint: "e.g. -device '{\"driver\":\"vfio-user-pci\", "
                    + "\"socket\": {\"path\": \"/tmp/vfio-user.sock\", \"type\": \"unix\"}}'")
        }
        guard let type else { throw VMMError("Parameter 'socket.type' is missing") }
        guard type == "unix" else { throw VMMError("Unsupported socket type \(type)") }
        guard let path else { throw VMMError("Parameter 'socket.path' is missing") }
        return path
    }

    private func open(
        _ path: String, _ rom: VFIOROMSource, id: String?, vm: VirtualMachine, timeLimit: Int64
    ) throws(VMMError) -> VFIOUserPreserver.Assignment {
        let heritage = try VFIOUserHeritage.find(path, vm: vm, timeLimit: timeLimit)
        let connection: VFIOUserConnection
        let shape: VFIOShape
        if let heritage {
            connection = heritage.connection
            shape = heritage.shape
        } else {
            connection = try VFIOUserConnection(path: path, space: vm.addressSpace, timeLimit: timeLimit)
            do throws(VMMError) { shape = try VFIOShape(of: connection) } catch { throw connection.reason(error) }
        }
        let function = try VFIOPCIDevice(
            vm: vm, model: name, id: id, hostName: path, label: VFIOUserConnection.label(path), transport: connection,
            shape: shape, inherited: heritage?.interrupts, notices: [.error], placement: preserver.placement,
            romSource: rom)
        return VFIOUserPreserver.Assignment(connection: connection, function: function)
    }
}
