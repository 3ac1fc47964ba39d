import BatonRuntime

/// `vhost-vsock-device` and `vhost-vsock-pci`: options as QEMU's.
final class VhostVsockType: DeviceType {
    let name: String
    let summary = "sockets between guest and host, served by the kernel"
    let bus: String
    let category = DeviceCategory.misc
    let properties: [DeviceProperty]
    private let preserver: VhostVsockPreserver

    private init(suffix: String, bus: String, more: [DeviceProperty], _ preserver: VhostVsockPreserver) {
        name = "vhost-vsock-\(suffix)"
        self.bus = bus
        properties =
            [
                DeviceProperty("guest-cid", "uint64", "the guest's address, from 3 on"),
                DeviceProperty("vhostfd", "str", "an open \(KernelVsock.path), by its number or name"),
                DeviceProperty(
                    "seqpacket", "OnOffAuto", "whether there are sockets of packets (default what the kernel has)"),
            ] + more
        self.preserver = preserver
    }

    static func all(_ preserver: VhostVsockPreserver) -> [VhostVsockType] {
        [
            VhostVsockType(suffix: "device", bus: "virtio-bus", more: [], preserver),
            VhostVsockType(suffix: "pci", bus: "PCI", more: DeviceProperty.virtioPCI, preserver),
        ]
    }

    var isHotPluggable: Bool { bus == "PCI" }

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        let address = try options.options.number("guest-cid", in: 0...UInt64.max) ?? 0
        guard address > 2 else {
            throw VMMError(
                "guest-cid property must be greater than 2", hint: "The first ones stand for hosts: give guest-cid=3.")
        }
        guard let address = UInt32(exactly: address) else {
            throw VMMError("guest-cid property must be a 32-bit number")
        }
        // VMADDR_CID_ANY.
        guard address != .max else { throw VMMError("guest-cid property must not be \(address), which is any address") }
        let device = try VhostVsock(
            address: address, given: try options.text("vhostfd"), seqpacket: try options.options.onOffAuto("seqpacket"),
            label: "\(options.model)\(options.id.map { " '\($0)'" } ?? "")", vm: context.vm)
        preserver.add(device)
        context.whenUnplugged { [unowned preserver = self.preserver] in
            preserver.remove(device)
            device.end()
        }
        try context.plug(device, busType: bus, options: options)
    }
}
