import BatonBase
import BatonMachine

/// What devices plug into. Each kind of bus has a class or protocol of its own
/// that inherits from this.
public protocol DeviceBus: AnyObject {
    /// As in `bus=`: `pcie.0`, `virtio-mmio-bus.3`.
    var busName: String { get }
    /// As in QEMU's errors: `PCI`, `virtio-bus`.
    static var busType: String { get }
    /// Whether nothing more can be plugged.
    var isFull: Bool { get }
    /// Why no device can be plugged while the machine exists; nil when one can.
    var hotPlugRefusal: VMMError? { get }
    /// A device has been plugged while the machine exists: tells the guest, if it has all of it.
    func didPlug()
    /// Whether a device is taken away at once, and the guest told; else the guest is asked first. No by default.
    var unplugsAtOnce: Bool { get }
}

extension DeviceBus {
    public var hotPlugRefusal: VMMError? { VMMError("Bus '\(busName)' does not support hotplugging") }
    public func didPlug() {}
    public var unplugsAtOnce: Bool { false }
}

/// A device that was made, with what it consists of.
public final class MadeDevice {
    public let id: String?
    /// The type's name.
    public let model: String
    /// Whether it may be taken away while the machine exists.
    public let isHotPluggable: Bool
    /// What was added to the VM, in order.
    public let parts: [any Device]
    /// Where it is plugged; nil for one that has no bus.
    public let bus: (any DeviceBus)?
    /// What it got by itself, as its properties say it: see `DeviceContext.settle`.
    public let settled: [(key: String, value: String)]
    /// What its makers have to undo.
    fileprivate let undo: [() -> Void]

    fileprivate init(
        id: String?, type: any DeviceType, parts: [any Device], bus: (any DeviceBus)?,
        settled: [(key: String, value: String)], undo: [() -> Void]
    ) {
        (self.id, model, isHotPluggable) = (id, type.name, type.isHotPluggable)
        (self.parts, self.bus, self.settled, self.undo) = (parts, bus, settled, undo)
    }

    /// For a device on PCI.
    public var function: PCIFunction? { parts.first as? PCIFunction }
}

/// What there is for a device that is being made: the VM's parts, and buses.
/// A board subclasses it with what its built-in types need besides.
open class DeviceContext {
    public let vm: VirtualMachine
    /// Guest memory: blocks, and where a device allocates its own.
    public let memory: GuestMemory
    /// Every bus, in the order in which devices without `bus=` get them.
    public private(set) var buses: [any DeviceBus] = []
    /// Every device that was made with an id.
    private var ids: Set<String> = []
    /// Every device that was made and is still there, in order.
    public private(set) var made: [MadeDevice] = []
    /// Whether the machine exists: what is made now is plugged into it.
    public private(set) var isHotPlugging = false
    private var undo: [() -> Void] = []
    /// Of the device that is being made.
    private var settled: [(key: String, value: String)] = []
    private var busOfDevice: (any DeviceBus)?

    public init(vm: VirtualMachine, memory: GuestMemory) {
        self.vm = vm
        self.memory = memory
    }

    /// Makes a bus known. Boards and bridges call this.
    public func add(_ bus: any DeviceBus) { buses.append(bus) }

    /// Forgets a bus whose device is taken away.
    public func remove(_ bus: any DeviceBus) { buses.removeAll { $0 === bus } }

    /// The bus for a device: the one of `bus=`, or the first of the type that
    /// has room.
    /// - Throws: QEMU's errors when there is none.
    public func bus<Bus>(_ type: Bus.Type, for options: DeviceOptions) throws(VMMError) -> Bus where Bus: DeviceBus {
        if let name = options.bus {
            guard let bus = buses.first(where: { $0.busName == name }) else {
                throw VMMError("Bus '\(name)' not found")
            }
            guard let bus = bus as? Bus else {
                throw VMMError("Device '\(options.model)' can't go on \(Swift.type(of: bus).busType) bus")
            }
            guard !bus.isFull else { throw VMMError("Bus '\(name)' is full") }
            if isHotPlugging, let refusal = bus.hotPlugRefusal { throw refusal }
            busOfDevice = bus
            return bus
        }
        for bus in buses {
            guard let bus = bus as? Bus, !bus.isFull else { continue }
            if isHotPlugging, let refusal = bus.hotPlugRefusal { throw refusal }
            busOfDevice = bus
            return bus
        }
        throw VMMError("No '\(Bus.busType)' bus found for device '\(options.model)'")
    }

    /// Plugs a virtio device that a module serves, and adds it to the VM.
    /// - Parameter busType: what carries it, as in `DeviceType.bus`:
    ///   `virtio-bus` (virtio-mmio) or `PCI` (virtio-pci).
    /// - Throws: why there is no place for it; nothing has changed.
    open func plug(_ offload: any VirtioOffload, busType: String, options: DeviceOptions) throws(VMMError) {
        throw VMMError("No '\(busType)' bus found for device '\(options.model)'")
    }

    // MARK: Ids

    /// Makes one device of a type: takes `id` and `bus`, and refuses keys that
    /// the type does not have.
    public func make(_ type: any DeviceType, _ options: KeyValueOptions) throws(VMMError) {
        let id = try options.identifier()
        if let id, ids.contains(id) { throw VMMError("Duplicate ID '\(id)' for device") }
        let bus = try options.string("bus")
        if let unknown = options.untakenKeys.first(where: { !type.accepts($0) }) {
            throw VMMError("Property '\(type.name).\(unknown)' not found")
        }
        if isHotPlugging, !type.isHotPluggable {
            throw VMMError("Device '\(type.name)' does not support hotplugging")
        }
        let before = vm.devices.count
        func begin() { (undo, settled, busOfDevice) = ([], [], nil) }
        begin()
        defer { begin() }
        do throws(VMMError) {
            try type.make(DeviceOptions(model: type.name, id: id, bus: bus, options: options), context: self)
        } catch {
            for body in undo.reversed() { body() }
            throw error
        }
        if let id { ids.insert(id) }
        made.append(
            MadeDevice(
                id: id, type: type, parts: Array(vm.devices[before...]), bus: busOfDevice, settled: settled, undo: undo)
        )
    }

    /// Has `body` called when the device that is being made is taken away, or cannot be made after all: for what it has
    /// of others. The device takes part in nothing any more by then.
    public func whenUnplugged(_ body: @escaping () -> Void) { undo.append(body) }

    /// The device that is being made has got the value of a property by itself. Another one may get another value later:
    /// the next VMM is given this one for a device that was plugged while the machine exists.
    public func settle(_ key: String, _ value: String) { settled.append((key, value)) }

    // MARK: While the machine exists

    /// Plugs what `body` makes into the machine as it is: each new part is reset, and runs if the guest does.
    /// - Throws: why there is no such device; nothing has changed.
    public func plug(_ body: () throws(VMMError) -> Void) throws(VMMError) {
        isHotPlugging = true
        defer { isHotPlugging = false }
        let before = made.count
        try body()
        for device in made[before...] {
            for part in device.parts {
                part.reset()
                if vm.isRunning { part.resume() }
            }
            device.bus?.didPlug()
        }
    }

    /// Takes a device away, at once: the guest has let go of it, or is not asked. What it has in hand is finished.
    public func unplug(_ device: MadeDevice) {
        made.removeAll { $0 === device }
        for part in device.parts.reversed() {
            if vm.isRunning {
                part.prepareToPause()
                part.pause()
            }
            part.reset()
            if let function = part as? PCIFunction, let bus = function.bus {
                bus.unplug(function)
            } else {
                vm.remove(part)
            }
        }
        for body in device.undo.reversed() { body() }
        if let id = device.id { ids.remove(id) }
    }

    /// The devices on the buses that a device has: they go with it.
    public func children(of device: MadeDevice) -> [MadeDevice] {
        made.filter { child in child.bus.map { bus in device.parts.contains { $0 === bus } } ?? false }
    }

    public func device(_ id: String) -> MadeDevice? { made.first { $0.id == id } }
}
