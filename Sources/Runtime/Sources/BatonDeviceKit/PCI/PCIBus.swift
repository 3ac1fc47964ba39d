import BatonBase

/// What a bus needs of the bridge that is above it.
public protocol PCIHost: AnyObject {
    /// A function's BARs or their enable bits have changed.
    func mappingsChanged(_ function: PCIFunction)
    /// The level that a function drives on its INTx pin may have changed.
    func interruptChanged(_ function: PCIFunction)
    /// Writes a message to a guest-physical address.
    /// - Returns: false when nothing takes it.
    func send(address: UInt64, data: UInt32) -> Bool
}

/// A PCI bus: up to 32 devices of up to 8 functions.
public final class PCIBus: DeviceBus {
    public static let busType = "PCI"
    public let busName: String
    /// The host bridge, at the top of all buses; nil while a bridge that leads here is not plugged.
    public var host: (any PCIHost)? { top ?? bridge?.bus?.host }
    /// On the first bus. It owns the bus.
    private unowned let top: (any PCIHost)?
    /// What leads here from another bus; nil on the first bus.
    public private(set) weak var bridge: PCIBridge?
    /// How many devices there may be.
    private let deviceLimit: Int
    /// By device and function number.
    private var table: [PCIFunction?] = Array(repeating: nil, count: 256)
    /// The same, in order.
    public private(set) var functions: [PCIFunction] = [] {
        didSet { bridges = functions.compactMap { $0 as? PCIBridge } }
    }
    /// Those that lead to further buses, in order.
    private var bridges: [PCIBridge] = []

    /// The first bus, below the host bridge.
    public init(name: String, host: any PCIHost) {
        busName = name
        top = host
        deviceLimit = 32
    }

    /// A bus behind a bridge.
    init(name: String, behind bridge: PCIBridge, devices: Int) {
        busName = name
        top = nil
        self.bridge = bridge
        deviceLimit = devices
    }

    /// Never: `plug` says that no slot is left.
    public var isFull: Bool { false }

    public var hotPlugRefusal: VMMError? {
        bridge?.hotPlugRefusal ?? (bridge == nil ? VMMError("Bus '\(busName)' does not support hotplugging") : nil)
    }
    public func didPlug() { bridge?.didPlug() }

    public func function(_ devfn: Int) -> PCIFunction? { table.indices.contains(devfn) ? table[devfn] : nil }

    /// Every function of this bus and of all behind it: those behind a bridge come after it.
    public var allFunctions: [PCIFunction] {
        guard !bridges.isEmpty else { return functions }
        return functions.flatMap { [$0] + (($0 as? PCIBridge)?.secondaryBus.allFunctions ?? []) }
    }

    /// Whether one of `allFunctions` is such a one.
    public func contains(where predicate: (PCIFunction) -> Bool) -> Bool {
        functions.contains(where: predicate) || bridges.contains { $0.secondaryBus.contains(where: predicate) }
    }

    /// The bus of a number that the guest has given, behind a bridge of this bus.
    public func busBehind(_ number: Int) -> PCIBus? {
        for bridge in bridges {
            if let bus = bridge.bus(number) { return bus }
        }
        return nil
    }

    /// Whether a range of bus addresses gets here from the host bridge.
    func isReached(_ start: UInt64, size: UInt64, isIO: Bool) -> Bool {
        guard let bridge else { return true }
        return bridge.forwards(start, size: size, isIO: isIO)
            && bridge.bus?.isReached(start, size: size, isIO: isIO) == true
    }

    /// What a pin of a slot is at the host bridge, after each bridge's swizzle (PCI-to-PCI Bridge Architecture 1.2, 9.1).
    /// - Parameter pin: 0 to 3 for INTA to INTD.
    /// - Returns: the same; nil while a bridge is not plugged.
    public func hostPin(device: Int, pin: Int) -> Int? {
        let swizzled = (device + pin) % 4
        guard let bridge else { return swizzled }
        guard let slot = bridge.slot, let above = bridge.bus else { return nil }
        return above.hostPin(device: slot.device, pin: swizzled)
    }

    /// The error for a checkpoint of other functions.
    public static func mismatch(_ section: String, _ bus: String, _ saved: [UInt64], _ there: [UInt64]) -> VMMError {
        func list(_ functions: [UInt64]) -> String {
            functions.isEmpty ? "no place" : functions.map { Hex($0).description }.joined(separator: " ")
        }
        return VMMError(
            "section '\(section)' has functions at \(list(saved)) of bus '\(bus)', this machine has "
                + list(there),
            hint: "Start with the same -device options as before, and with -device for what was plugged since.")
    }

    // MARK: Placement

    /// Where `addr=` and `multifunction=` put a device.
    public struct Placement {
        public let slot: PCISlot
        let multifunction: Bool
    }

    /// Finds the place for a device: that of `addr=`, or the first free slot.
    /// Changes nothing.
    /// - Throws: QEMU's errors when it is taken or not allowed.
    public func place(_ options: DeviceOptions) throws(VMMError) -> Placement {
        let multifunction = try options.options.bool("multifunction") ?? false
        guard let text = try options.text("addr") else {
            for device in 0..<deviceLimit where (0..<8).allSatisfy({ table[device << 3 | $0] == nil }) {
                return Placement(slot: PCISlot(device: device, function: 0), multifunction: multifunction)
            }
            throw VMMError("PCI: no slot/function available for \(options.model), all in use or reserved")
        }
        guard let slot = PCISlot(text) else { throw options.badValue("addr", text) }
        let device = slot.device
        guard device < deviceLimit else {
            throw VMMError(
                "PCI: slot \(device) is not valid for \(options.model), parent device only allows plugging into slot 0."
            )
        }
        if slot.function > 0, let first = table[device << 3], !first.isMultifunction {
            throw VMMError("PCI: single function device can't be populated in function \(slot.shortName)")
        }
        if let other = table[slot.devfn] {
            throw VMMError(
                "PCI: slot \(device) function \(slot.function) not available for \(options.model), in use by "
                    + "\(other.model),id=\(other.id ?? "(null)")")
        }
        if slot.function == 0, !multifunction, let other = (1..<8).first(where: { table[device << 3 | $0] != nil }) {
            throw VMMError(
                "PCI: \(slot.shortName) indicates single function, but "
                    + "\(PCISlot(device: device, function: other).shortName) is already populated.")
        }
        return Placement(slot: slot, multifunction: multifunction)
    }

    /// Puts a function into its place and adds it to the VM, before the
    /// machine runs.
    /// - Throws: an error of the VM; then nothing has changed.
    public func plug(_ function: PCIFunction, at placement: Placement) throws(VMMError) {
        precondition(function.slot == nil && table[placement.slot.devfn] == nil)
        function.slot = placement.slot
        function.bus = self
        function.stateName = "\(busName)/\(placement.slot.description)/\(function.model)"
        if placement.multifunction {
            let type: UInt8 = function.config.value(PCIRegister.headerType)
            function.config.set(PCIRegister.headerType, type | PCIRegister.multifunction)
        }
        do throws(VMMError) {
            try function.vm.add(function)
        } catch {
            function.slot = nil
            function.bus = nil
            function.stateName = function.model
            throw error
        }
        table[placement.slot.devfn] = function
        let devfn = placement.slot.devfn
        let place = functions.lastIndex { ($0.slot?.devfn ?? 0) < devfn }.map { $0 + 1 } ?? 0
        functions.insert(function, at: place)
    }

    /// Takes a function away, and out of the VM: nothing of it is mapped any more.
    public func unplug(_ function: PCIFunction) {
        guard let slot = function.slot, table[slot.devfn] === function else { return }
        function.resetBusState()
        table[slot.devfn] = nil
        functions.removeAll { $0 === function }
        function.vm.remove(function)
        function.bus = nil
        function.slot = nil
    }

    /// Puts a function of the board's own into a slot.
    public func plug(_ function: PCIFunction, at slot: PCISlot) throws(VMMError) {
        try plug(function, at: Placement(slot: slot, multifunction: false))
    }
}

extension PCISlot {
    /// As QEMU's errors show it: `5.0`.
    var shortName: String { String(device, radix: 16) + "." + String(function) }
}

extension PCIFunction {
    var isMultifunction: Bool {
        config.value(PCIRegister.headerType, as: UInt8.self) & PCIRegister.multifunction != 0
    }
}
