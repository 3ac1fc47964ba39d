import BatonRuntime
import GuestHealth

/// Where devices with ports of their own go: `bus=isa.0`.
final class ISABus: DeviceBus {
    static let busType = "ISA"
    let busName = "isa.0"
    let isFull = false
    let portSpace: AddressSpace
    /// Of a pvpanic device, for the tables by which a guest finds it; nil when there is none.
    fileprivate(set) var panicPort: UInt64?
    /// What the guest knows of the devices, which their states do not have: name, ports and more.
    fileprivate(set) var devices: [String] = []

    init(portSpace: AddressSpace) { self.portSpace = portSpace }
}

/// A `-device` with ports.
final class ISADevice: DeviceType {
    let name: String
    let bus = ISABus.busType
    let category = DeviceCategory.misc
    let properties: [DeviceProperty]
    private let build: (DeviceOptions, DeviceContext, ISABus) throws(VMMError) -> Void

    private init(
        _ name: String, _ properties: [DeviceProperty],
        _ build: @escaping (DeviceOptions, DeviceContext, ISABus) throws(VMMError) -> Void
    ) {
        (self.name, self.properties, self.build) = (name, properties, build)
    }

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        try build(options, context, try context.bus(ISABus.self, for: options))
    }

    private static func add(
        _ device: some Device & MMIODevice, at port: UInt64, size: UInt64, _ context: DeviceContext, _ bus: ISABus
    ) throws(VMMError) {
        guard port + size <= 0x1_0000 else { throw VMMError("\(device.stateName): there is no port \(Hex(port))") }
        try bus.portSpace.map(device, at: port, size: size, name: device.stateName)
        try context.vm.add(device)
        bus.devices.append("\(device.stateName)=port \(Hex(port)), \(size) of them")
    }

    static let all: [any DeviceType] = [
        ISADevice(
            "isa-debug-exit",
            [
                DeviceProperty("iobase", "uint32", "the first port (0x501)"),
                DeviceProperty("iosize", "uint32", "ports (2)"),
            ]
        ) { options, context, bus throws(VMMError) in
            let base = try options.options.number("iobase", in: 0...0xffff) ?? 0x501
            let size = try options.options.number("iosize", in: 1...8) ?? 2
            try add(ISADebugExit(machine: context.vm), at: base, size: size, context, bus)
        },
        ISADevice(
            "isa-debugcon",
            [
                DeviceProperty("iobase", "uint32", "the port (0xe9)"),
                DeviceProperty("readback", "uint32", "what reads give (0xe9)"),
                DeviceProperty("chardev", "str", "where the bytes go"),
            ]
        ) { options, context, bus throws(VMMError) in
            let base = try options.options.number("iobase", in: 0...0xffff) ?? 0xe9
            let readback = try options.options.number("readback", in: 0...0xff) ?? 0xe9
            guard let name = try options.text("chardev"), let chardev = context.vm.chardev(name) else {
                throw VMMError("Can't create debugcon device, empty char device")
            }
            // Firmware and kernel often have one each, at two ports.
            let device = try DebugConsole(
                name: "isa-debugcon.\(String(base, radix: 16))", vm: context.vm, chardev: chardev,
                readback: UInt8(readback))
            try add(device, at: base, size: 1, context, bus)
        },
        ISADevice(
            "pvpanic",
            [
                DeviceProperty("ioport", "uint16", "the port (0x505)"),
                DeviceProperty("events", "uint8", "which events a guest may tell of (7)"),
            ]
        ) { options, context, bus throws(VMMError) in
            let port = try options.options.number("ioport", in: 0...0xffff) ?? 0x505
            let events = try options.options.number("events", in: 0...7) ?? 7
            let device = PVPanic(vm: context.vm, events: PVPanic.Events(rawValue: UInt8(events)))
            try add(device, at: port, size: 1, context, bus)
            bus.panicPort = port
            bus.devices.append("events of pvpanic=\(events)")
        },
    ]
}

/// The device types of the board, for the module.
public func microVMDeviceTypes() -> [any DeviceType] { ISADevice.all }
