import BatonRuntime
import PCI

/// A `-device` on PCI by which the guest says how it is.
final class GuestHealthDevice: DeviceType {
    let name: String
    let bus = PCIBus.busType
    let category = DeviceCategory.misc
    let properties: [DeviceProperty]
    private let build: (DeviceOptions, VirtualMachine) throws(VMMError) -> PCIFunction

    private init(
        _ name: String, _ properties: [DeviceProperty],
        _ build: @escaping (DeviceOptions, VirtualMachine) throws(VMMError) -> PCIFunction
    ) {
        (self.name, self.properties, self.build) = (name, properties, build)
    }

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        let bus = try context.bus(PCIBus.self, for: options)
        let place = try bus.place(options)
        try bus.plug(try build(options, context.vm), at: place)
    }

    static let all: [any DeviceType] = [
        GuestHealthDevice(
            "pvpanic-pci", [DeviceProperty("events", "uint8", "which events a guest may tell of (7)")]
        ) { options, vm throws(VMMError) in
            let events = PVPanic.Events(rawValue: UInt8(try options.options.number("events", in: 0...7) ?? 7))
            return PVPanicPCI(vm: vm, id: options.id, events: events)
        },
        GuestHealthDevice("i6300esb", []) { options, vm throws(VMMError) in I6300ESB(vm: vm, id: options.id) },
    ]
}

/// The device types of this part, for the command line.
public func guestHealthDeviceTypes() -> [any DeviceType] { GuestHealthDevice.all }
