import BatonRuntime

/// QEMU's generic PCI Express host bridge (`gpex`): configuration space by
/// ECAM (PCI Express 5.0, 7.2.2), three windows, four interrupt wires, and the
/// bus `pcie.0`, whose slot 0 it has itself.
public final class ECAMHostBridge: PCIHost, MMIODevice, Device {
    public let stateName = "pcie.0"
    /// Bytes of configuration space: 256 buses.
    public static let size: UInt64 = 0x1000_0000
    /// Without a name of their own, functions have QEMU's.
    public static let subsystem: (vendor: UInt16, device: UInt16) = (0x1af4, 0x1100)

    public private(set) var bus: PCIBus!
    private let vm: VirtualMachine
    private let map: PCIAddressMap
    private let lines: [InterruptLine]

    /// Makes the bridge and adds it to the VM; the board maps it and its windows.
    /// - Parameter lines: what INTA to INTD of slot 0 drive.
    public init(vm: VirtualMachine, windows: [PCIWindow], lines: [InterruptLine]) throws(VMMError) {
        precondition(lines.count == 4)
        self.vm = vm
        self.lines = lines
        map = PCIAddressMap(windows: windows, space: vm.addressSpace)
        bus = PCIBus(name: stateName, host: self)
        try vm.add(self)
        let identity = PCIIdentity(
            vendor: 0x1b36, device: 0x0008, classCode: 0x0600, subsystemVendor: ECAMHostBridge.subsystem.vendor,
            subsystem: ECAMHostBridge.subsystem.device, interruptPin: 0)
        try bus.plug(
            PCIFunction(vm: vm, model: "gpex-root", id: nil, identity: identity), at: PCISlot(device: 0, function: 0))
    }

    /// Maps configuration space and windows.
    /// - Parameter start: where the configuration space is.
    public func mapIntoAddressSpace(configurationAt start: UInt64) throws(VMMError) {
        try vm.addressSpace.map(self, at: start, size: ECAMHostBridge.size, name: "pcie-ecam")
        for window in map.windows {
            try vm.addressSpace.map(window, at: window.start, size: window.size, name: window.name)
        }
    }

    // MARK: Configuration space

    /// Bits 27 to 20 of an offset are the bus, 19 to 12 device and function.
    private func target(_ offset: UInt64) -> (function: PCIFunction, register: Int)? {
        let number = Int(truncatingIfNeeded: offset >> 20)
        guard let bus = number == 0 ? bus : bus.busBehind(number),
            let function = bus.function(Int(truncatingIfNeeded: offset >> 12 & 0xff))
        else { return nil }
        return (function, Int(truncatingIfNeeded: offset & 0xfff))
    }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        let none = UInt64.max >> UInt64(64 - 8 * width)
        guard let (function, register) = target(offset) else { return none }
        if width == 8 || offset % UInt64(width) != 0 {
            let step = width == 8 && offset % 4 == 0 ? 4 : 1
            var value: UInt64 = 0
            for done in stride(from: 0, to: width, by: step) {
                value |= mmioRead(offset: offset + UInt64(done), width: step) << UInt64(8 * done)
            }
            return value
        }
        guard register + width <= function.config.size else { return none }
        return UInt64(function.readConfig(register, width: width))
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        guard let (function, register) = target(offset) else { return }
        if width == 8 || offset % UInt64(width) != 0 {
            let step = width == 8 && offset % 4 == 0 ? 4 : 1
            for done in stride(from: 0, to: width, by: step) {
                mmioWrite(offset: offset + UInt64(done), width: step, value: value >> UInt64(8 * done))
            }
            return
        }
        guard register + width <= function.config.size else { return }
        function.writeConfig(register, width: width, value: UInt32(truncatingIfNeeded: value))
    }

    // MARK: PCIHost

    public func mappingsChanged(_ function: PCIFunction) { map.update(function, of: bus.allFunctions) }

    public func interruptChanged(_ function: PCIFunction) {
        guard let wire = wire(function) else { return }
        if function.drivenLevel { return lines[wire].set(true) }
        lines[wire].set(bus.contains { $0.drivenLevel && self.wire($0) == wire })
    }

    /// The usual swizzle: slot plus pin, modulo 4.
    private func wire(_ function: PCIFunction) -> Int? {
        guard let slot = function.slot, function.pin > 0 else { return nil }
        return function.bus?.hostPin(device: slot.device, pin: function.pin - 1)
    }

    public func send(address: UInt64, data: UInt32) -> Bool {
        guard vm.addressSpace.storeMessage(data, at: address) else {
            Log.guestError("pcie.0: message \(Hex(UInt64(data))) to \(Hex(address)): nothing there")
            return false
        }
        return true
    }

    // MARK: Device

    /// Comes before the interrupt controllers' reset, which then find the wires
    /// down; the functions' own comes after them.
    public func reset() {
        for function in bus.allFunctions { function.resetBusState() }
    }

    public func save(to writer: inout StateWriter) {
        writer.put("functions", bus.functions.map { UInt64($0.slot?.devfn ?? 0) })
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let there = bus.functions.map { UInt64($0.slot?.devfn ?? 0) }
        let saved = try reader.array("functions", count: 0...256)
        try reader.finish()
        guard saved == there else { throw PCIBus.mismatch(reader.section, bus.busName, saved, there) }
        return {}
    }
}
