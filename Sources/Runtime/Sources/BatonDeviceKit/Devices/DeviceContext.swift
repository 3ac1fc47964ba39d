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

    public init(vm: VirtualMachine, memory: GuestMemory) {
        self.vm = vm
        self.memory = memory
    }

    /// Makes a bus known. Boards and bridges call this.
    public func add(_ bus: any DeviceBus) { buses.append(bus) }

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
            return bus
        }
        for bus in buses {
            if let bus = bus as? Bus, !bus.isFull { return bus }
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
        try type.make(DeviceOptions(model: type.name, id: id, bus: bus, options: options), context: self)
        if let id { ids.insert(id) }
    }
}
