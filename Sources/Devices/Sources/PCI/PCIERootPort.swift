import BatonRuntime

/// QEMU's generic root port, `pcie-root-port`: a bridge with a slot for one device that comes and goes while the guest
/// runs (PCI Express 5.0, 6.7 and 7.5.3).
///
/// Who plugs a device in presses the slot's attention button, and so does who wants one back: the guest then turns the
/// slot's power on, or off when it has let go of the device.
public final class PCIERootPort: PCIBridge {
    /// What firmware is to keep free behind the port: nil for what it likes.
    public struct Reservation: Equatable {
        public var buses: UInt32?
        public var io: UInt64?
        public var memory: UInt32?
        public var prefetchable32: UInt32?
        public var prefetchable64: UInt64?
        public init() {}
    }

    /// The slot's number, which the guest sees; and that of its chassis.
    public let slotNumber: UInt16
    public let chassis: UInt8
    /// Whether devices may come and go.
    public let isHotPlug: Bool
    /// Called in the loop when the guest has turned the slot off with a device in it: takes that away, and then calls
    /// `didUnplug`. One that returns false could not yet, and is called again.
    public var onPowerOff: (() -> Bool)?
    /// Called when the guest goes on with a device that it was asked to let go of.
    public var onUnplugRefused: (() -> Void)?

    private var express = 0
    private var wasNotified = false
    /// The guest was asked to let go of the device, and has not answered.
    private var isAsked = false
    /// The guest has turned the slot off, and the device is to be taken away.
    private var isLeaving = false
    private var isScheduled = false
    private var isRunning = false

    /// Offsets in the capability.
    private enum Register {
        static let deviceControl = 0x08, deviceStatus = 0x0a
        static let linkCapabilities = 0x0c, linkControl = 0x10, linkStatus = 0x12
        static let slotCapabilities = 0x14, slotControl = 0x18, slotStatus = 0x1a
        static let rootControl = 0x1c
        static let linkCapabilities2 = 0x2c, linkControl2 = 0x30
        static let size = 0x3c
    }
    /// Bits of the slot's status that are events; those of its control at the same places enable their interrupts.
    private enum Event {
        static let attentionButton: UInt16 = 1 << 0
        static let presenceChanged: UInt16 = 1 << 3
        static let commandCompleted: UInt16 = 1 << 4
        static let all: UInt16 = 0x19
        /// With power faults and retention latches, which there are not.
        static let clearable: UInt16 = 0x1f
    }
    private enum Control {
        static let interrupts: UInt16 = 1 << 5
        static let attentionOff: UInt16 = 3 << 6
        static let powerIndicator: UInt16 = 3 << 8
        static let powerIndicatorOn: UInt16 = 1 << 8
        static let powerIndicatorBlinks: UInt16 = 2 << 8
        static let powerOff: UInt16 = 1 << 10
        static let writable: UInt16 = 0x07f9
    }
    private static let presence: UInt16 = 1 << 6
    private static let linkIsUp: UInt16 = 1 << 13
    /// 16 GT/s, 32 lanes.
    private static let speed: UInt16 = 4, width: UInt16 = 32 << 4

    public init(
        vm: VirtualMachine, id: String?, busName: String, chassis: UInt8, slot: UInt16, port: UInt8, isHotPlug: Bool,
        reservation: Reservation
    ) {
        (self.chassis, slotNumber, self.isHotPlug) = (chassis, slot, isHotPlug)
        super.init(
            vm: vm, model: "pcie-root-port", id: id,
            identity: PCIIdentity(vendor: 0x1b36, device: 0x000c, classCode: 0x0604),
            busName: busName, devices: 1, hasIO: reservation.io != 0, configSize: 4096)
        addMSI(vectors: 1).onChange = { [unowned self] in driveInterrupt() }
        addExpress(port)
        addReservation(reservation)
    }

    private func addExpress(_ port: UInt8) {
        express = config.addCapability(PCICapabilityID.express, size: Register.size)
        // Version 2, a root port with a slot.
        config.set(express + 2, 0x0142 as UInt16)
        // Errors by role.
        config.set(express + 4, 0x8000 as UInt32)
        config.setWritable(express + Register.deviceControl, 0x000f as UInt16)
        config.setClearable(express + Register.deviceStatus, 0x000f as UInt16)
        // L0s, reports of the link's state and bandwidth.
        config.set(
            express + Register.linkCapabilities,
            UInt32(port) << 24 | 0x0030_0400 | UInt32(PCIERootPort.width | PCIERootPort.speed))
        // Common clock, extended synch.
        config.setWritable(express + Register.linkControl, 0x00c0 as UInt16)
        config.set(express + Register.linkStatus, PCIERootPort.width | PCIERootPort.speed)
        config.setOwned(express + Register.linkStatus, PCIERootPort.linkIsUp)
        // Attention button, power controller, both indicators.
        let parts: UInt32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | (isHotPlug ? 3 << 5 : 0)
        config.set(express + Register.slotCapabilities, UInt32(slotNumber & 0x1fff) << 19 | parts)
        config.setWritable(express + Register.slotControl, Control.writable)
        config.setClearable(express + Register.slotStatus, Event.clearable)
        config.setOwned(express + Register.slotStatus, PCIERootPort.presence | Event.clearable)
        config.setWritable(express + Register.rootControl, 0x0007 as UInt16)
        // 2.5 to 16 GT/s.
        config.set(express + Register.linkCapabilities2, 0x1e as UInt32)
        config.set(express + Register.linkControl2, PCIERootPort.speed)
    }

    /// QEMU's capability of a port that tells firmware (docs/pcie_pci_bridge.txt of QEMU).
    private func addReservation(_ reservation: Reservation) {
        guard reservation != Reservation() else { return }
        let offset = config.addCapability(PCICapabilityID.vendor, size: 32)
        let (length, resourceReserve): (UInt8, UInt8) = (32, 1)
        config.set(offset + 2, length)
        config.set(offset + 3, resourceReserve)
        func put(_ value: UInt64, _ place: Int) {
            config.set(offset + place, UInt32(truncatingIfNeeded: value))
            config.set(offset + place + 4, UInt32(truncatingIfNeeded: value >> 32))
        }
        config.set(offset + 4, reservation.buses ?? UInt32.max)
        put(reservation.io ?? UInt64.max, 8)
        config.set(offset + 16, reservation.memory ?? UInt32.max)
        config.set(offset + 20, reservation.prefetchable32 ?? UInt32.max)
        put(reservation.prefetchable64 ?? UInt64.max, 24)
    }

    // MARK: The slot

    private var control: UInt16 { config.value(express + Register.slotControl) }
    private var status: UInt16 {
        get { config.value(express + Register.slotStatus) }
        set { config.update(express + Register.slotStatus, newValue) }
    }

    private static func isOff(_ control: UInt16) -> Bool {
        control & Control.powerOff != 0 && control & Control.powerIndicator == Control.powerIndicator
    }
    private var isBusy: Bool { control & Control.powerIndicator == Control.powerIndicatorBlinks }

    private func setPresence(_ isThere: Bool) {
        status = status & ~PCIERootPort.presence | (isThere ? PCIERootPort.presence : 0)
        let link: UInt16 = config.value(express + Register.linkStatus)
        config.update(
            express + Register.linkStatus, link & ~PCIERootPort.linkIsUp | (isThere ? PCIERootPort.linkIsUp : 0))
    }

    private func raise(_ events: UInt16) {
        status |= events
        updateEvents()
    }

    /// 6.7.3.4: a message is sent, or the pin driven, when an event comes while none that is enabled is there.
    private func updateEvents() {
        let isNotified = control & Control.interrupts != 0 && status & control & Event.all != 0
        let isNew = isNotified && !wasNotified
        wasNotified = isNotified
        if isNew, let msi, msi.isEnabled { msi.notify(0) }
        driveInterrupt()
    }

    /// After a reset of the bus nothing is enabled, whatever is still to be reset here.
    private func driveInterrupt() {
        setInterrupt(wasNotified && control & Control.interrupts != 0 && msi?.isEnabled != true)
    }

    public override var isPowered: Bool { control & Control.powerOff == 0 }

    // MARK: Plugging

    /// Why no device can be plugged into the slot, or taken out of it, now; nil when one can.
    public func refusal(toPlug: Bool) -> VMMError? {
        let what = toPlug ? "Hot-plug" : "Hot-unplug"
        guard isHotPlug else {
            return VMMError("\(what) failed: unsupported by the port device '\(id ?? stateName)'")
        }
        guard !isBusy else { return VMMError("\(what) failed: guest is busy (power indicator blinking)") }
        return nil
    }

    public override var hotPlugRefusal: VMMError? { refusal(toPlug: true) }

    /// Tells the guest, when the device is all there: its function 0 comes last.
    public override func didPlug() {
        guard secondaryBus.function(0) != nil else { return }
        setPresence(true)
        raise(Event.presenceChanged | Event.attentionButton)
    }

    /// Asks the guest to let go of the device.
    /// - Returns: false when it need not be asked: the device can be taken away at once, and `didUnplug` follows.
    public func askForDevice() -> Bool {
        guard secondaryBus.function(0) != nil, !PCIERootPort.isOff(control) else { return false }
        isAsked = true
        raise(Event.attentionButton)
        return true
    }

    /// The device is gone.
    public func didUnplug() {
        (isAsked, isLeaving) = (false, false)
        guard secondaryBus.function(0) == nil, status & PCIERootPort.presence != 0 else { return }
        setPresence(false)
        raise(Event.presenceChanged)
    }

    /// The device stays, though its power is off: it is none that comes and goes.
    public func keepDevice() { (isAsked, isLeaving) = (false, false) }

    /// Takes the device away in the loop's next turn: the guest's access may be a CPU's thread, and not this one.
    private func schedule() {
        guard isLeaving, !isScheduled else { return }
        isScheduled = true
        vm.loop.later { [weak self] in
            guard let self else { return }
            isScheduled = false
            // Of a machine that stands, which may be in the hands of an update, nothing may change.
            guard isLeaving, isRunning else { return }
            if onPowerOff?() == false { tryAgain() }
        }
        vm.accelerator?.yield()
    }

    private static let retryDelay: Int64 = 10_000_000

    private func tryAgain() {
        isScheduled = true
        _ = vm.loop.schedule(at: EventLoop.now + PCIERootPort.retryDelay) { [weak self] in
            guard let self else { return }
            isScheduled = false
            if isRunning { schedule() }
        }
    }

    // MARK: Configuration space

    public override func writeConfig(_ offset: Int, width: Int, value: UInt32) {
        let (controlBefore, statusBefore) = (control, status)
        super.writeConfig(offset, width: width, value: value)
        func touches(_ register: Int) -> Bool {
            offset < express + register + 2 && offset + width > express + register
        }
        if touches(Register.slotStatus) {
            // Guests clear everything while they set the slot up. As in QEMU, who clears what is not there clears
            // nothing: a button that was pressed before is not forgotten.
            let shift = 8 * (express + Register.slotStatus - offset)
            let written = shift >= 0 ? UInt64(value) >> UInt64(shift) : UInt64(value) << UInt64(-shift)
            if UInt16(truncatingIfNeeded: written) & ~statusBefore & Event.clearable != 0 {
                status = status & ~Event.clearable | statusBefore & Event.clearable
            }
            updateEvents()
        }
        guard touches(Register.slotControl) else { return }
        controlChanged(from: controlBefore)
    }

    private func controlChanged(from before: UInt16) {
        if (before ^ control) & Control.powerOff != 0 { forwardingChanged() }
        if status & PCIERootPort.presence != 0, PCIERootPort.isOff(control), !PCIERootPort.isOff(before) {
            isLeaving = true
            schedule()
        }
        if isAsked, before & Control.powerIndicator == Control.powerIndicatorBlinks,
            control & Control.powerIndicator == Control.powerIndicatorOn
        {
            isAsked = false
            vm.loop.later { [weak self] in self?.onUnplugRefused?() }
        }
        updateEvents()
        // A command takes no time (6.7.3.2).
        raise(Event.commandCompleted)
    }

    // MARK: Device

    /// The slot is on when there is a device in it.
    public override func resetFunction() {
        let isThere = secondaryBus.function(0) != nil
        config.update(
            express + Register.slotControl,
            Control.attentionOff
                | (isThere ? Control.powerIndicatorOn : Control.powerIndicator | Control.powerOff))
        setPresence(isThere)
        (wasNotified, isAsked, isLeaving) = (false, false, false)
        super.resetFunction()
    }

    public override func pause() { isRunning = false }

    public override func resume() {
        isRunning = true
        schedule()
    }

    public override func saveFunction(to writer: inout StateWriter) {
        super.saveFunction(to: &writer)
        writer.put("unplug-asked", isAsked)
        writer.put("leaving", isLeaving)
        writer.put("notified", wasNotified)
    }

    public override func loadFunction(from reader: StateReader) throws(VMMError) -> () -> Void {
        let load = try super.loadFunction(from: reader)
        let newAsked = try reader.bool("unplug-asked")
        let newLeaving = try reader.bool("leaving")
        let newNotified = try reader.bool("notified")
        return { [self] in
            load()
            (isAsked, isLeaving, wasNotified) = (newAsked, newLeaving, newNotified)
            // MSI, restored before, has looked at the state of before.
            driveInterrupt()
        }
    }
}

/// `-device pcie-root-port`.
final class PCIERootPortType: DeviceType {
    let name = "pcie-root-port"
    let summary = "PCI Express Root Port"
    let bus = PCIBus.busType
    let category = DeviceCategory.bridge
    let properties = [
        DeviceProperty("chassis", "uint8", "the chassis' number; with slot= of one port only (0)"),
        DeviceProperty("slot", "uint16", "the slot's number in its chassis (0)"),
        DeviceProperty("port", "uint8", "the port's number, which the guest sees (0)"),
        DeviceProperty("hotplug", "bool", "whether devices may come and go (on)"),
        DeviceProperty("bus-reserve", "uint32", "buses that firmware keeps free"),
        DeviceProperty("io-reserve", "size", "I/O that firmware keeps free; 0 for a port without"),
        DeviceProperty("mem-reserve", "size", "32-bit memory that firmware keeps free"),
        DeviceProperty("pref32-reserve", "size", "32-bit prefetchable memory that firmware keeps free"),
        DeviceProperty("pref64-reserve", "size", "64-bit prefetchable memory that firmware keeps free"),
    ]

    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError) {
        let bus = try context.bus(PCIBus.self, for: options)
        guard bus.bridge == nil else {
            throw VMMError(
                "Device '\(name)' can't go on bus '\(bus.busName)'", hint: "A root port is on the first bus, pcie.0.")
        }
        let place = try bus.place(options)
        let chassis = UInt8(try options.options.number("chassis", in: 0...255) ?? 0)
        let slot = UInt16(try options.options.number("slot", in: 0...0x1fff) ?? 0)
        guard
            !bus.functions.contains(where: {
                ($0 as? PCIERootPort).map { $0.chassis == chassis && $0.slotNumber == slot } ?? false
            })
        else {
            throw VMMError(
                "Can't add chassis slot, error -16", hint: "Give each port a chassis= and slot= of its own.")
        }
        let port = UInt8(try options.options.number("port", in: 0...255) ?? 0)
        let isHotPlug = try options.options.bool("hotplug") ?? true
        var reservation = PCIERootPort.Reservation()
        reservation.buses = try options.options.number("bus-reserve", in: 0...255).map { UInt32($0) }
        reservation.io = try options.options.size("io-reserve")
        reservation.memory = try size(options, "mem-reserve")
        reservation.prefetchable32 = try size(options, "pref32-reserve")
        reservation.prefetchable64 = try options.options.size("pref64-reserve")
        guard reservation.prefetchable32 == nil || reservation.prefetchable64 == nil else {
            throw VMMError("missing or conflicting resource reserve: only one of pref32 and pref64")
        }
        let name = options.id ?? "\(bus.busName)/\(place.slot.description)"
        guard !context.buses.contains(where: { $0.busName == name }) else {
            throw VMMError("Duplicate ID '\(name)' for device")
        }
        let function = PCIERootPort(
            vm: context.vm, id: options.id, busName: name, chassis: chassis, slot: slot, port: port,
            isHotPlug: isHotPlug, reservation: reservation)
        try bus.plug(function, at: place)
        context.add(function.secondaryBus)
    }

    private func size(_ options: DeviceOptions, _ key: String) throws(VMMError) -> UInt32? {
        guard let size = try options.options.size(key) else { return nil }
        guard let value = UInt32(exactly: size) else {
            throw VMMError("Property '\(options.model).\(key)' is larger than 4 GiB")
        }
        return value
    }
}

/// The device types of this part, for the command line.
public func pciDeviceTypes() -> [any DeviceType] { [PCIERootPortType()] }
