import BatonRuntime
import Chardev
import PCI
import Virtio

/// Devices and their back ends that come and go while the machine exists: `device_add` and the like.
///
/// A device goes into the slot of a root port, whose guest is asked to let go of it again. What has come and gone is
/// noted for the next VMM (`PluggedParts`). Nothing is changed while an update is under way: what the guest lets go of
/// then is taken away when that has failed, or by the next VMM.
final class HotPlug {
    let vm: VirtualMachine
    let cpr: CprController
    let devices: DeviceFactory
    let objects: ObjectOptions
    let loader: ModuleLoader
    let plugged: PluggedParts
    private let globals: GlobalProperties
    /// Until when a guest that was asked for a device is not asked again, by the device's id: it may take a second
    /// request for a press of the button that takes the first one back (PCI Express 5.0, 6.7.1.5).
    private var asked: [String: Int64] = [:]
    /// How devices without an id were plugged.
    private var unnamed: [(device: MadeDevice, options: String)] = []

    private static let patience: Int64 = 5_000_000_000

    init(
        vm: VirtualMachine, cpr: CprController, devices: DeviceFactory, objects: ObjectOptions, loader: ModuleLoader,
        plugged: PluggedParts, globals: GlobalProperties
    ) {
        (self.vm, self.cpr, self.devices, self.objects) = (vm, cpr, devices, objects)
        (self.loader, self.plugged, self.globals) = (loader, plugged, globals)
        for case let port as PCIERootPort in vm.devices {
            port.onPowerOff = { [unowned self, unowned port] in slotIsOff(port) }
            port.onUnplugRefused = { [unowned self, unowned port] in guestKeeps(port) }
        }
    }

    /// - Throws: why nothing can be added or taken away now.
    func checkIdle() throws(VMMError) { if let refusal = cpr.refusal { throw refusal } }

    // MARK: Devices

    /// `device_add`.
    /// - Parameter text: as the argument of `-device`.
    func addDevice(_ text: String) throws(VMMError) {
        try checkIdle()
        let options = try KeyValueOptions(text, impliedKey: "driver")
        try globals.apply(to: options)
        let id = try options.string("id")
        let count = devices.made.count
        try devices.plug { () throws(VMMError) in try devices.add(options) }
        var text = text
        guard devices.made.count > count, let device = devices.made.last else { return }
        for (key, value) in device.settled { text = try HotPlug.text(text, with: key, value) }
        plugged.add(.device, id, text)
        if id == nil { unnamed.append((device, text)) }
    }

    private static func text(_ text: String, with key: String, _ value: String) throws(VMMError) -> String {
        guard text.hasPrefix("{"), case .object(var object) = try JSON(parsing: text) else {
            return text + ",\(key)=\(value)"
        }
        // JSON has types: a number is one.
        object[key] = Int64(value).map(JSON.int) ?? .string(value)
        return JSON.object(object).text()
    }

    /// `device_del`: asks the guest to let go of a device, which is taken away when it has.
    func removeDevice(_ id: String) throws(VMMError) {
        try checkIdle()
        guard let device = devices.device(id) else {
            throw VMMError("Device '\(id)' not found", class: .deviceNotFound)
        }
        if device.bus?.unplugsAtOnce == true, device.isHotPluggable { return gone(device) }
        // The command line of an update has it, and no name to leave it out by.
        for child in devices.children(of: device)
        where child.id == nil && !unnamed.contains(where: { $0.device === child }) {
            throw VMMError(
                "Device '\(id)' has a '\(child.model)' of the command line that has no id",
                hint: "Give all devices ids that are to be taken away.")
        }
        guard let function = device.function, let bus = function.bus, let port = bus.bridge as? PCIERootPort else {
            let bus = device.bus?.busName ?? "main-system-bus"
            throw VMMError("Bus '\(bus)' does not support hotplugging")
        }
        guard device.isHotPluggable else { throw VMMError("Device '\(device.model)' does not support hotplugging") }
        if let refusal = port.refusal(toPlug: false) { throw refusal }
        if let until = asked[id], EventLoop.now < until {
            throw VMMError("Device \(id) is already in the process of unplug")
        }
        // The guest does not know of it yet.
        if bus.function(0) == nil { return gone(device) }
        if port.askForDevice() {
            asked[id] = EventLoop.now + HotPlug.patience
        } else {
            empty(port)
        }
    }

    private func devices(in port: PCIERootPort) -> [MadeDevice] {
        port.secondaryBus.functions.compactMap { function in devices.made.first { $0.function === function } }
    }

    /// The guest has turned a slot off.
    /// - Returns: false when what is in it cannot be taken away now.
    private func slotIsOff(_ port: PCIERootPort) -> Bool {
        guard cpr.refusal == nil else { return false }
        if devices(in: port).allSatisfy(\.isHotPluggable) { empty(port) } else { port.keepDevice() }
        return true
    }

    private func empty(_ port: PCIERootPort) {
        for device in devices(in: port).reversed() { gone(device) }
        port.didUnplug()
    }

    private func gone(_ device: MadeDevice) {
        for child in devices.children(of: device).reversed() { gone(child) }
        devices.unplug(device)
        if let id = device.id {
            plugged.remove(.device, id)
            asked[id] = nil
        } else if let index = unnamed.firstIndex(where: { $0.device === device }) {
            plugged.remove(.device, options: unnamed.remove(at: index).options)
        }
        vm.emit("DEVICE_DELETED", HotPlug.describe(device))
    }

    private func guestKeeps(_ port: PCIERootPort) {
        for device in devices(in: port) {
            guard let id = device.id, asked.removeValue(forKey: id) != nil else { continue }
            vm.emit("DEVICE_UNPLUG_GUEST_ERROR", HotPlug.describe(device))
        }
    }

    private static func describe(_ device: MadeDevice) -> JSONObject {
        guard let id = device.id else { return ["path": "/machine/peripheral-anon"] }
        return ["device": .string(id), "path": .string("/machine/peripheral/\(id)")]
    }

    // MARK: Back ends

    /// Back ends that are more than a connection of the VMM's own.
    private static let withPrograms = ["user", "passt", "vhost-user"]

    /// `netdev_add`.
    func addNetBackend(_ text: String) throws(VMMError) {
        try checkIdle()
        let options = try KeyValueOptions(text, impliedKey: "type", style: .keyval)
        let type = try options.requiredString("type")
        let id = try options.requiredIdentifier()
        guard !devices.netBackends.contains(where: { $0.id == id }) else {
            throw VMMError("Duplicate ID '\(id)' for netdev")
        }
        guard !HotPlug.withPrograms.contains(type) else {
            throw VMMError(
                "netdev of type '\(type)' cannot be added while the machine exists",
                hint: "Give it on the command line, or add one of type stream, dgram or tap.")
        }
        let backend = try NetBackendFactory.make(options, vm: vm) { name throws(VMMError) in
            try loader.netBackendType(name)
        }
        try devices.add(backend)
        plugged.add(.netdev, id, text)
    }

    /// `netdev_del`.
    func removeNetBackend(_ id: String) throws(VMMError) {
        try checkIdle()
        if let backend = devices.netBackends.first(where: { $0.id == id }),
            HotPlug.withPrograms.contains(backend.backend)
        {
            throw VMMError("netdev '\(id)' of type '\(backend.backend)' cannot be taken away while the machine exists")
        }
        try devices.remove(netBackend: id)
        plugged.remove(.netdev, id)
    }

    /// `chardev-add`.
    /// - Parameter text: as the argument of `-chardev`.
    func addChardev(_ text: String) throws(VMMError) -> Chardev {
        try checkIdle()
        let options = try KeyValueOptions(text, impliedKey: "backend")
        if try options.bool("mux") == true {
            throw VMMError(
                "a multiplexed chardev cannot be added while the machine exists",
                hint: "Give it on the command line, or leave mux=on out.")
        }
        if try options.string("backend") == "socket", try options.bool("server") == true {
            guard try options.bool("wait") != true else {
                throw VMMError(
                    "chardev-add cannot wait for a client, as the guest would stand still", hint: "Leave wait=on out.")
            }
            options.set("wait", "off")
        }
        let chardev = try ChardevFactory.make(options, vm: vm)
        plugged.add(.chardev, chardev.id, text)
        return chardev
    }

    /// `chardev-remove`.
    func removeChardev(_ id: String) throws(VMMError) {
        try checkIdle()
        guard let chardev = vm.chardev(id) else { throw VMMError("Chardev '\(id)' not found") }
        guard chardev.frontend == nil, !chardev.isShared else { throw VMMError("Chardev '\(id)' is busy") }
        vm.remove(chardev)
        chardev.shutDown()
        plugged.remove(.chardev, id)
    }

    /// `object-add`.
    func addObject(_ text: String) throws(VMMError) {
        try checkIdle()
        try objects.plug(text)
        let options = try KeyValueOptions(text, impliedKey: "qom-type", style: .keyval)
        plugged.add(.object, try options.string("id"), text)
    }

    /// `object-del`.
    func removeObject(_ id: String) throws(VMMError) {
        try checkIdle()
        try objects.remove(id)
        plugged.remove(.object, id)
    }
}
