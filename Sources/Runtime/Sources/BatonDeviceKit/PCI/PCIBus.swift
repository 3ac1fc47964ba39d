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

/// A PCI bus: 32 devices of up to 8 functions.
public final class PCIBus: DeviceBus {
    public static let busType = "PCI"
    public let busName: String
    public unowned let host: any PCIHost
    /// By device and function number.
    private var table: [PCIFunction?] = Array(repeating: nil, count: 256)
    /// The same, in order.
    public private(set) var functions: [PCIFunction] = []

    public init(name: String, host: any PCIHost) {
        busName = name
        self.host = host
    }

    /// Never: `plug` says that no slot is left.
    public var isFull: Bool { false }

    public func function(_ devfn: Int) -> PCIFunction? { table.indices.contains(devfn) ? table[devfn] : nil }

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
            for device in 0..<32 where (0..<8).allSatisfy({ table[device << 3 | $0] == nil }) {
                return Placement(slot: PCISlot(device: device, function: 0), multifunction: multifunction)
            }
            throw VMMError("PCI: no slot/function available for \(options.model), all in use or reserved")
        }
        guard let slot = PCISlot(text) else { throw options.badValue("addr", text) }
        let device = slot.device
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
