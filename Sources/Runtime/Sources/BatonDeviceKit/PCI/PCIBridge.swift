import BatonBase
import BatonMachine

/// A PCI-to-PCI bridge: a function with a type 1 header, and the bus behind it (PCI-to-PCI Bridge Architecture 1.2, 3.2).
///
/// The guest gives the bus its number and opens windows: a function behind the bridge has its BARs, and is reached by its
/// configuration space, only where the bridge forwards accesses. Subclasses are the bridges.
open class PCIBridge: PCIFunction {
    /// The bus behind.
    public private(set) var secondaryBus: PCIBus!
    /// Whether there is a window for I/O.
    private let hasIO: Bool

    /// Offsets and bits of a type 1 header.
    private enum Register {
        static let primaryBus = 0x18
        static let secondaryBus = 0x19
        static let subordinateBus = 0x1a
        static let ioBase = 0x1c
        static let ioLimit = 0x1d
        static let secondaryStatus = 0x1e
        static let memoryBase = 0x20
        static let memoryLimit = 0x22
        static let prefetchableBase = 0x24
        static let prefetchableLimit = 0x26
        static let prefetchableBaseHigh = 0x28
        static let prefetchableLimitHigh = 0x2c
        static let control = 0x3e
        /// Addresses of windows, from the first to behind the last; I/O has 16 bits.
        static let windows = 0x1c..<0x30
        static let busReset: UInt16 = 1 << 6
        /// Parity, SERR, ISA, VGA and its 16 bits, master abort, reset, fast back-to-back, discard timers.
        static let writableControl: UInt16 = 0x0bff
        static let has64Bits: UInt16 = 1
    }

    /// - Parameters:
    ///   - busName: of the bus behind, as in `bus=`.
    ///   - devices: how many devices that bus has: 1 behind a port of PCI Express.
    ///   - hasIO: whether there is a window for I/O.
    public init(
        vm: VirtualMachine, model: String, id: String?, identity: PCIIdentity, busName: String, devices: Int,
        hasIO: Bool, configSize: Int = 256
    ) {
        self.hasIO = hasIO
        super.init(vm: vm, model: model, id: id, identity: identity, isBridge: true, configSize: configSize)
        secondaryBus = PCIBus(name: busName, behind: self, devices: devices)
        config.set(PCIRegister.headerType, PCIRegister.bridge)
        config.setWritable(PCIRegister.command, PCIBridge.writableCommand(hasIO))
        config.setWritable(Register.primaryBus, 0xffff_ffff as UInt32)
        if hasIO { config.setWritable(Register.ioBase, 0xf0f0 as UInt16) }
        config.setClearable(Register.secondaryStatus, PCIStatus.clearable)
        config.setWritable(Register.memoryBase, 0xfff0_fff0 as UInt32)
        config.set(Register.prefetchableBase, Register.has64Bits)
        config.set(Register.prefetchableLimit, Register.has64Bits)
        config.setWritable(Register.prefetchableBase, 0xfff0_fff0 as UInt32)
        config.setWritable(Register.prefetchableBaseHigh, UInt32.max)
        config.setWritable(Register.prefetchableLimitHigh, UInt32.max)
        config.setWritable(Register.control, Register.writableControl)
    }

    private static func writableCommand(_ hasIO: Bool) -> UInt16 {
        PCICommand.memorySpace | PCICommand.busMaster | PCICommand.serrEnable | PCICommand.interruptDisable
            | (hasIO ? PCICommand.ioSpace : 0)
    }

    // MARK: What it forwards

    /// Whether what is behind is powered: else nothing of it answers.
    open var isPowered: Bool { true }

    /// The numbers of the buses behind; none before the guest has given them, or when they make no sense.
    private var busNumbers: ClosedRange<Int>? {
        let first = Int(config.value(Register.secondaryBus, as: UInt8.self))
        let last = Int(config.value(Register.subordinateBus, as: UInt8.self))
        return first > 0 && first <= last ? first...last : nil
    }

    /// The bus of that number behind this bridge.
    func bus(_ number: Int) -> PCIBus? {
        guard isPowered, let numbers = busNumbers, numbers.contains(number) else { return nil }
        return number == numbers.lowerBound ? secondaryBus : secondaryBus.busBehind(number)
    }

    /// The numbers of buses in the registers: of the one before the bridge, the one behind it, and the last behind that.
    public var numbers: (primary: Int, secondary: Int, subordinate: Int) {
        func number(_ register: Int) -> Int { Int(config.value(register, as: UInt8.self)) }
        return (number(Register.primaryBus), number(Register.secondaryBus), number(Register.subordinateBus))
    }

    /// First and last address of each window in the registers: the first above the last for one that is closed.
    public var windows: (io: (UInt64, UInt64), memory: (UInt64, UInt64), prefetchable: (UInt64, UInt64)) {
        (
            (
                UInt64(config.bytes[Register.ioBase] & 0xf0) << 8,
                UInt64(config.bytes[Register.ioLimit] & 0xf0) << 8 | 0xfff
            ),
            (
                PCIBridge.address(config.value(Register.memoryBase)),
                PCIBridge.address(config.value(Register.memoryLimit)) | 0xf_ffff
            ),
            (
                UInt64(config.value(Register.prefetchableBaseHigh, as: UInt32.self)) << 32
                    | PCIBridge.address(config.value(Register.prefetchableBase)),
                UInt64(config.value(Register.prefetchableLimitHigh, as: UInt32.self)) << 32
                    | PCIBridge.address(config.value(Register.prefetchableLimit)) | 0xf_ffff
            )
        )
    }

    /// Whether a range of bus addresses is reached through this bridge.
    func forwards(_ start: UInt64, size: UInt64, isIO: Bool) -> Bool {
        let command: UInt16 = config.value(PCIRegister.command)
        guard isPowered, command & (isIO ? PCICommand.ioSpace : PCICommand.memorySpace) != 0 else { return false }
        let windows = windows
        let open = isIO ? (hasIO ? [windows.io] : []) : [windows.memory, windows.prefetchable]
        // A window may end at the last address.
        return open.contains { first, last in
            first <= last && first <= start && start <= last && size - 1 <= last - start
        }
    }

    private static func address(_ register: UInt16) -> UInt64 { UInt64(register & 0xfff0) << 16 }

    // MARK: Hot plug

    /// Why nothing can be plugged behind the bridge while the machine exists; nil when something can.
    open var hotPlugRefusal: VMMError? { VMMError("Bus '\(secondaryBus.busName)' does not support hotplugging") }
    /// A function has been plugged behind the bridge while the machine exists.
    open func didPlug() {}

    // MARK: Configuration space

    open override func writeConfig(_ offset: Int, width: Int, value: UInt32) {
        let control: UInt16 = config.value(Register.control)
        let command: UInt16 = config.value(PCIRegister.command)
        super.writeConfig(offset, width: width, value: value)
        let changed = command ^ config.value(PCIRegister.command)
        if changed & (PCICommand.memorySpace | PCICommand.ioSpace) != 0
            || offset < Register.windows.upperBound && offset + width > Register.windows.lowerBound
        {
            forwardingChanged()
        }
        if ~control & config.value(Register.control, as: UInt16.self) & Register.busReset != 0 {
            for function in secondaryBus.functions { function.reset() }
        }
    }

    /// What is forwarded may be something else: looks where the BARs behind are now.
    public func forwardingChanged() {
        guard let host = bus?.host else { return }
        for function in secondaryBus.allFunctions { host.mappingsChanged(function) }
    }

    // MARK: State

    open override func resetFunction() { forwardingChanged() }

    open override func saveFunction(to writer: inout StateWriter) {
        writer.put("functions-behind", secondaryBus.functions.map { UInt64($0.slot?.devfn ?? 0) })
    }

    open override func loadFunction(from reader: StateReader) throws(VMMError) -> () -> Void {
        let saved = try reader.array("functions-behind", count: 0...256)
        let there = secondaryBus.functions.map { UInt64($0.slot?.devfn ?? 0) }
        guard saved == there else { throw PCIBus.mismatch(reader.section, secondaryBus.busName, saved, there) }
        // The BARs behind come with the sections of their functions, before or after.
        return { [self] in forwardingChanged() }
    }
}
