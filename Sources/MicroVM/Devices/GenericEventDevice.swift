import BatonRuntime

/// ACPI's generic event device with the registers of a hardware-reduced machine, as QEMU's `acpi-ged`
/// (`hw/acpi/generic_event_device.c`): the power button, power-off and reset.
///
/// It has two regions of memory: `eventSelect`, by which AML learns why the device interrupts, and `registers`, which
/// the FADT names. microvm has them at 0xfea00000 and 0xfea00200, and its interrupt at 9, edge-triggered.
public final class GenericEventDevice: Device {
    public let stateName = "acpi-ged"
    public static let eventSelectSize: UInt64 = 4
    public static let registersSize: UInt64 = 3
    /// Bit of the event select register: the power button was pressed.
    public static let powerButton: UInt32 = 2
    /// Offsets of the FADT's sleep control, sleep status and reset registers, each of one byte.
    public static let sleepControl: UInt64 = 0
    public static let sleepStatus: UInt64 = 1
    public static let resetRegister: UInt64 = 2
    /// The FADT's reset value.
    public static let resetValue: UInt8 = 0x42
    /// SLP_TYP of `\_S5`.
    public static let sleepTypeOff: UInt8 = 5

    private let vm: VirtualMachine
    private let line: InterruptLine
    /// Events that AML has not read.
    private var events: UInt32 = 0

    /// Has `system_powerdown` press the power button.
    public init(vm: VirtualMachine, line: InterruptLine) {
        self.vm = vm
        self.line = line
        vm.onPowerdown { [weak self] in self?.pressPowerButton() }
    }

    private func pressPowerButton() {
        events |= GenericEventDevice.powerButton
        line.pulse()
    }

    // MARK: Regions

    /// The register with the events, which reading clears.
    public var eventSelect: any MMIODevice { EventSelect(device: self) }
    public var registers: any MMIODevice { Registers(device: self) }

    private final class EventSelect: MMIODevice {
        let device: GenericEventDevice
        init(device: GenericEventDevice) { self.device = device }

        func accepts(offset: UInt64, width: Int) -> Bool { width == 4 }

        func mmioRead(offset: UInt64, width: Int) -> UInt64 {
            defer { device.events = 0 }
            return UInt64(device.events)
        }

        func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
            Log.guestError("acpi-ged: write of the event select register")
        }
    }

    private final class Registers: MMIODevice {
        let device: GenericEventDevice
        init(device: GenericEventDevice) { self.device = device }

        func accepts(offset: UInt64, width: Int) -> Bool { width == 1 }

        /// Nothing wakes the machine from a sleep, so that the status has nothing to tell.
        func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }

        func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
            let value = UInt8(truncatingIfNeeded: value)
            switch offset {
            case GenericEventDevice.sleepControl:
                // SLP_EN, and SLP_TYP in three bits (ACPI 6.5, 4.8.3.7). There is no other sleep than off.
                let (isEnabled, type) = (value & 0x20 != 0, value >> 2 & 7)
                if isEnabled, type == GenericEventDevice.sleepTypeOff { device.vm.guestRequestedShutdown(status: 0) }
            case GenericEventDevice.resetRegister where value == GenericEventDevice.resetValue:
                device.vm.guestRequestedReset()
            case GenericEventDevice.sleepStatus: break
            default: Log.guestError("acpi-ged: write of \(Hex(UInt64(value))) to the register at \(Hex(offset))")
            }
        }
    }

    // MARK: Device

    public func reset() { events = 0 }

    public func save(to writer: inout StateWriter) {
        writer.put("events", UInt64(events))
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let newEvents = try reader.uint32("events")
        guard newEvents & ~GenericEventDevice.powerButton == 0 else {
            throw VMMError("field 'events' of section '\(reader.section)' is \(newEvents)")
        }
        try reader.finish()
        return { [self] in events = newEvents }
    }
}
