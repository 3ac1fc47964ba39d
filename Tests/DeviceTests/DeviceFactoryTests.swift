import BatonRuntime
import TestSupport
import Testing
import Virtio

@Suite(.oneThread) struct DeviceFactoryTests {
    let machine: TestMachine
    let slots: [VirtioMMIO]
    let factory: DeviceFactory
    let directory: TemporaryDirectory

    init() throws {
        machine = try TestMachine()
        slots = (0..<8).map { VirtioMMIO(slot: $0, line: Wire().line) }
        factory = DeviceFactory(vm: machine.vm, memory: GuestMemory())
        factory.add(slots)
        directory = try TemporaryDirectory()
        try directory.writeSparse("disk", size: 1 << 20)
        try machine.vm.add(BlockBackend(id: "d", filename: directory.file("disk"), readOnly: false))
        try machine.vm.add(TestChardev("c"))
    }

    private func add(_ text: String) throws { try factory.add(KeyValueOptions(text, impliedKey: "driver")) }

    @Test func theFirstDeviceGetsTheHighestSlot() throws {
        try add("virtio-rng-device")
        try add("virtio-blk-device,drive=d,bus=virtio-mmio-bus.3")
        try add("virtio-serial-device,id=vs")
        try add("virtconsole,chardev=c,bus=vs.0")
        #expect(
            machine.vm.devices.map(\.stateName) == [
                "virtio-mmio.7/virtio-rng", "virtio-mmio.3/virtio-blk", "virtio-mmio.6/virtio-serial",
            ])
        #expect(slots.map { $0.device?.deviceID ?? 0 } == [0, 0, 0, 2, 0, 0, 3, 4])
    }

    private static let wrong: [([String], String)] = [
        (["virtio-rng-devic"], "'virtio-rng-devic' is not a valid device model name"),
        (["virtio-rng-device,foo=1"], "Property 'virtio-rng-device.foo' not found"),
        (["virtio-blk-device"], "drive property not set"),
        (["virtio-blk-device,drive=x"], "Property 'virtio-blk-device.drive' can't find value 'x'"),
        (["virtio-blk-device,drive=d", "virtio-blk-device,drive=d"], "Drive 'd' is already in use by another device"),
        (["virtconsole"], "No 'virtio-serial-bus' bus found for device 'virtconsole'"),
        (["virtio-serial-device", "virtconsole,chardev=x"], "Property 'virtconsole.chardev' can't find value 'x'"),
        (["virtio-net-device"], "netdev property not set"),
        (["virtio-net-device,netdev=x"], "Property 'virtio-net-device.netdev' can't find value 'x'"),
        (["virtio-rng-device,bus=virtio-mmio-bus.9"], "Bus 'virtio-mmio-bus.9' not found"),
        (
            ["virtio-rng-device,bus=virtio-mmio-bus.2", "virtio-rng-device,bus=virtio-mmio-bus.2"],
            "Bus 'virtio-mmio-bus.2' is full"
        ),
        (["virtio-rng-device,id=a", "virtio-rng-device,id=a"], "Duplicate ID 'a' for device"),
        (
            Array(repeating: "virtio-rng-device", count: 9),
            "No 'virtio-bus' bus found for device 'virtio-rng-device'"
        ),
    ]

    @Test(arguments: wrong)
    func refusesAsQEMUDoes(_ options: [String], _ message: String) throws {
        for option in options.dropLast() { try add(option) }
        let error = #expect(throws: VMMError.self) { try add(options[options.count - 1]) }
        #expect(error?.message == message)
    }

    private static let wrongOnPCI: [([String], String)] = [
        (["virtio-rng-pci,addr=zz"], "Property 'virtio-rng-pci.addr' doesn't take value 'zz'"),
        (["virtio-rng-pci,addr=20"], "Property 'virtio-rng-pci.addr' doesn't take value '20'"),
        (["virtio-rng-pci,addr=5.8"], "Property 'virtio-rng-pci.addr' doesn't take value '5.8'"),
        (["virtio-rng-pci,addr=-1"], "Property 'virtio-rng-pci.addr' doesn't take value '-1'"),
        (["virtio-rng-pci,bus=foo"], "Bus 'foo' not found"),
        (["virtio-rng-pci,bus=virtio-mmio-bus.0"], "Device 'virtio-rng-pci' can't go on virtio-bus bus"),
        (["virtio-rng-device,bus=pcie.0"], "Device 'virtio-rng-device' can't go on PCI bus"),
        (
            ["virtio-rng-pci,addr=0"],
            "PCI: slot 0 function 0 not available for virtio-rng-pci, in use by gpex-root,id=(null)"
        ),
        (
            ["virtio-rng-pci,addr=5,id=a", "virtio-rng-pci,addr=05.0"],
            "PCI: slot 5 function 0 not available for virtio-rng-pci, in use by virtio-rng-pci,id=a"
        ),
        (
            ["virtio-rng-pci,addr=5.0", "virtio-rng-pci,addr=5.1"],
            "PCI: single function device can't be populated in function 5.1"
        ),
        (
            ["virtio-rng-pci,addr=5.1,multifunction=on", "virtio-rng-pci,addr=5.0"],
            "PCI: 5.0 indicates single function, but 5.1 is already populated."
        ),
        (
            Array(repeating: "virtio-rng-pci", count: 32),
            "PCI: no slot/function available for virtio-rng-pci, all in use or reserved"
        ),
        (
            ["virtio-rng-pci,disable-legacy=off"],
            "Property 'virtio-rng-pci.disable-legacy' can't be off: only virtio 1 is there"
        ),
    ]

    @Test(arguments: wrongOnPCI)
    func refusesOnPCIAsQEMUDoes(_ options: [String], _ message: String) throws {
        let pci = try PCITestBus(machine)
        factory.add(pci.host.bus)
        for option in options.dropLast() { try add(option) }
        let before = machine.vm.devices.count
        let error = #expect(throws: VMMError.self) { try add(options[options.count - 1]) }
        #expect(error?.message == message)
        #expect(machine.vm.devices.count == before)
    }

    @Test func pciDevicesGetTheFirstFreeSlot() throws {
        let pci = try PCITestBus(machine)
        factory.add(pci.host.bus)
        try add("virtio-rng-pci,addr=02.1,multifunction=on")
        try add("virtio-rng-pci")
        try add("virtio-blk-pci,drive=d,vectors=0,disable-legacy=on,id=disk")
        try add("virtio-serial-pci,bus=pcie.0,id=vs")
        try add("virtconsole,chardev=c,bus=vs.0")
        #expect(
            machine.vm.devices.map(\.stateName) == [
                "pcie.0", "pcie.0/00.0/gpex-root", "pcie.0/02.1/virtio-rng-pci", "pcie.0/02.1/virtio-rng",
                "pcie.0/01.0/virtio-rng-pci", "pcie.0/01.0/virtio-rng", "pcie.0/03.0/virtio-blk-pci",
                "pcie.0/03.0/virtio-blk", "pcie.0/04.0/virtio-serial-pci", "pcie.0/04.0/virtio-serial",
            ])
    }

    @Test func checksNetworkAddresses() throws {
        try factory.add(NetBackend(id: "n", backend: "test"))
        for mac in ["x", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:56:78", "zz:54:00:12:34:56"] {
            let error = #expect(throws: VMMError.self) { try add("virtio-net-device,netdev=n,mac=\(mac)") }
            #expect(error?.message == "Property 'virtio-net-device.mac' doesn't take value '\(mac)'")
        }
        try add("virtio-net-device,netdev=n,mac=52:54:00:AB:cd:ef")
        #expect(slots[7].device?.config[..<6] == [0x52, 0x54, 0, 0xab, 0xcd, 0xef])
        #expect(factory.unusedNetBackends.isEmpty)
    }

    @Test func helpListsEveryModelAndThoseOfModules() {
        let added = Probe()
        let help = DeviceModel.help(DeviceModel.all + [added])
        for type in DeviceModel.all + [added] as [any DeviceType] {
            #expect(DeviceModel.helpRequest("\(type.name),help") == .type(type.name))
            #expect(DeviceModel.helpRequest(type.name) == nil)
            #expect(help.contains(type.helpLine))
        }
        #expect(DeviceModel.helpRequest("help") == .all)
        #expect(added.help.contains("color=<str>") && added.help.contains("addr=<str>"))
    }

    /// The command line's devices, as the builder gives them.
    private func addAll(_ texts: [String]) throws {
        let all = try texts.map { try KeyValueOptions($0, impliedKey: "driver") }
        try factory.lookAhead(all)
        for options in all { try factory.add(options) }
    }

    private var serials: [VirtioSerial] { machine.vm.devices.compactMap { $0 as? VirtioSerial } }

    @Test("a device with nothing but its first console is what it was before it could have more ports")
    func plainConsole() throws {
        try addAll(["virtio-serial-device", "virtconsole,chardev=c"])
        #expect(serials[0].queues.count == 2 && serials[0].offeredFeatures & 2 == 0)
        #expect(serials[0].config.allSatisfy { $0 == 0 })
    }

    @Test func portsOfTheCommandLineMakeRoomForThemselves() throws {
        try addAll(["virtio-serial-device", "virtserialport,chardev=c,name=org.qemu.guest_agent.0,id=p"])
        #expect(serials[0].queues.count == 64 && serials[0].offeredFeatures & 2 != 0 && serials[0].config[4] == 31)
        try add("virtserialport,bus=virtio-serial0.0,name=q,nr=5")
        try add("virtio-serial-device,id=s,max_ports=2")
        try add("virtconsole,bus=s.0")
        try add("virtserialport,bus=s.0,name=r")
        let error = #expect(throws: VMMError.self) { try add("virtserialport,bus=s.0,name=t") }
        #expect(error?.message == "virtio-serial-bus: Maximum port limit for this device reached")
        // Without bus= it goes where there is room.
        try add("virtserialport,name=t")
    }

    private static let wrongPorts: [([String], String)] = [
        (["virtio-serial-device,max_ports=0"], "Maximum number of serial ports not specified"),
        (["virtio-serial-device,max_ports=512"], "maximum ports supported: 511"),
        (["virtserialport"], "No 'virtio-serial-bus' bus found for device 'virtserialport'"),
        (["virtio-serial-device", "virtserialport,bus=x.0"], "Bus 'x.0' not found"),
        (
            ["virtio-serial-device", "virtserialport,bus=virtio-mmio-bus.1"],
            "Device 'virtserialport' can't go on virtio-bus bus"
        ),
        (
            ["virtio-serial-device", "virtserialport,nr=99"],
            "virtio-serial-bus: Out-of-range port id specified, max. allowed: 30"
        ),
        (
            ["virtio-serial-device", "virtserialport,chardev=c", "virtserialport,chardev=c"], "Device 'c' is in use"
        ),
    ]

    @Test(arguments: wrongPorts)
    func refusesPortsAsQEMUDoes(_ options: [String], _ message: String) throws {
        let error = #expect(throws: VMMError.self) { try addAll(options) }
        #expect(error?.message == message)
    }

    @Test func makesTheTypesOfModules() throws {
        let added = Probe()
        factory.findType = { name throws(VMMError) in name == added.name ? added : nil }
        try add("probe,id=p,color=red,addr=5")
        #expect(added.made == ["p red"])
        let error = #expect(throws: VMMError.self) { try add("probe,colour=red") }
        #expect(error?.message == "Property 'probe.colour' not found")
        #expect(throws: VMMError.self) { try add("probe,id=p") }
        #expect(added.made == ["p red"])
    }
}

/// A device type such as a module registers.
private final class Probe: DeviceType {
    let name = "probe"
    let summary = "a test's own"
    let bus = "PCI"
    let category = DeviceCategory.misc
    let properties = [DeviceProperty("color")]
    var made: [String] = []

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        made.append("\(options.id ?? "-") \(try options.text("color") ?? "-")")
    }
}
