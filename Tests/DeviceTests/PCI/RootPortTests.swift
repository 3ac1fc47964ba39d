import BatonRuntime
import PCI
import Testing

/// A root port with a probe behind it, driven as a guest does.
private final class PortMachine {
    static let port = 2
    static let bus = 5
    let pci: PCITestBus
    let port: PCIERootPort
    var vm: VirtualMachine { pci.machine.vm }

    init(hasDevice: Bool = true, isHotPlug: Bool = true, slot: Int = PortMachine.port) throws {
        pci = try PCITestBus()
        port = PCIERootPort(
            vm: pci.machine.vm, id: "rp0", busName: "rp0", chassis: 1, slot: 7, port: 3, isHotPlug: isHotPlug,
            reservation: PCIERootPort.Reservation())
        try pci.plug(port, slot)
        if hasDevice { try plug() }
    }

    @discardableResult
    func plug() throws -> ProbeFunction {
        let probe = ProbeFunction(pci.machine)
        try port.secondaryBus.plug(probe, at: PCISlot(device: 0, function: 0))
        return probe
    }

    var probe: ProbeFunction? { port.secondaryBus.function(0) as? ProbeFunction }

    func start() throws {
        try vm.start()
    }

    func read(_ register: Int, _ width: Int = 4) -> UInt64 { pci.read(PortMachine.port, register, width) }
    func write(_ register: Int, _ value: UInt64, _ width: Int = 4) {
        pci.write(PortMachine.port, register, value, width)
    }
    func behind(_ register: Int, bus: Int = PortMachine.bus, device: Int = 0, _ width: Int = 4) -> UInt64 {
        let address = PCITestBus.ecam + UInt64(bus) << 20 + UInt64(device) << 15 + UInt64(register)
        return pci.space.mmioRead(address, width: width) ?? 0xdead
    }
    func writeBehind(_ register: Int, _ value: UInt64, _ width: Int = 4) {
        let address = PCITestBus.ecam + UInt64(PortMachine.bus) << 20 + UInt64(register)
        #expect(pci.space.mmioWrite(address, width: width, value: value))
    }

    /// Gives the bus behind its number.
    func number(_ secondary: Int = PortMachine.bus, _ subordinate: Int? = nil) {
        write(0x18, UInt64(secondary) << 8 | UInt64(subordinate ?? secondary) << 16)
    }

    /// A memory window of one MiB from the host bridge's window's start on, 16 KiB of which the probe gets.
    func open() {
        number()
        write(0x20, (PCITestBus.window >> 16 & 0xfff0) | (PCITestBus.window >> 16 & 0xfff0) << 16)
        write(4, 7, 2)
        writeBehind(0x10, PCITestBus.window)
        writeBehind(4, 6, 2)
    }

    /// The Express capability's registers.
    var express: Int { port.config.capability(PCICapabilityID.express) ?? 0 }
    var control: UInt64 {
        get { read(express + 0x18, 2) }
        set { write(express + 0x18, newValue, 2) }
    }
    var status: UInt64 {
        get { read(express + 0x1a, 2) }
        set { write(express + 0x1a, newValue, 2) }
    }
    func turnLoop() { vm.loop.poll(timeout: 0) }
}

@Suite struct RootPortTests {
    @Test func itIsQEMUs() throws {
        let machine = try PortMachine()
        try machine.start()
        #expect(machine.read(0) == 0x000c_1b36 && machine.read(8) >> 8 == 0x060400)
        #expect(machine.read(0xe, 1) == 1)
        let express = machine.express
        #expect(machine.read(express + 2, 2) == 0x142, "a root port with a slot")
        #expect(machine.read(express + 0xc) >> 24 == 3)
        #expect(machine.read(express + 0x14) >> 19 == 7 && machine.read(express + 0x14) & 0x7f == 0x7b)
        #expect(machine.port.config.capability(PCICapabilityID.msi) != nil)
        #expect(machine.read(0x100) == 0, "no extended capability")
        // A device is in it: power is on, and the link is up.
        #expect(machine.status & 0x40 != 0 && machine.control == 0x1c0)
        #expect(machine.read(express + 0x12, 2) & 0x2000 != 0)
    }

    @Test func theGuestNumbersTheBusBehind() throws {
        let machine = try PortMachine()
        try machine.start()
        #expect(machine.behind(0) == 0xffff_ffff)
        machine.number()
        #expect(machine.behind(0) == 0x5678_1234)
        #expect(machine.behind(0, device: 1) == 0xffff_ffff)
        #expect(machine.behind(0, bus: 4) == 0xffff_ffff && machine.behind(0, bus: 6) == 0xffff_ffff)
        machine.number(9, 12)
        #expect(machine.behind(0) == 0xffff_ffff && machine.behind(0, bus: 9) == 0x5678_1234)
        #expect(machine.behind(0, bus: 10) == 0xffff_ffff)
        // The first above the last: none.
        machine.number(9, 8)
        #expect(machine.behind(0, bus: 9) == 0xffff_ffff)
    }

    @Test func aClosedWindowForwardsNothing() throws {
        let machine = try PortMachine()
        try machine.start()
        machine.number()
        machine.write(4, 7, 2)
        machine.writeBehind(0x10, PCITestBus.window)
        machine.writeBehind(4, 6, 2)
        #expect(machine.probe?.low.address == nil)
        machine.open()
        #expect(machine.probe?.low.address == PCITestBus.window)
        #expect(machine.pci.space.mmioRead(PCITestBus.window + 4, width: 4) == 4)
        // Its memory off, a window elsewhere, one that holds a part of the BAR only.
        machine.write(4, 4, 2)
        #expect(machine.probe?.low.address == nil)
        machine.write(4, 6, 2)
        #expect(machine.probe?.low.address == PCITestBus.window)
        machine.write(0x20, 0x5000_5000)
        #expect(machine.probe?.low.address == nil)
        machine.write(0x20, 0x4000_4000)
        #expect(machine.probe?.low.address == PCITestBus.window)
    }

    @Test func prefetchableAndIOWindows() throws {
        let machine = try PortMachine()
        try machine.start()
        machine.number()
        machine.write(4, 7, 2)
        machine.writeBehind(0x18, PCITestBus.high)
        machine.writeBehind(0x1c, PCITestBus.high >> 32)
        machine.writeBehind(0x14, 0x1000)
        machine.writeBehind(4, 7, 2)
        #expect(machine.probe?.high.address == nil && machine.probe?.io.address == nil)
        machine.write(0x24, 0x0000_0000)
        machine.write(0x28, PCITestBus.high >> 32)
        machine.write(0x2c, PCITestBus.high >> 32)
        #expect(machine.probe?.high.address == PCITestBus.high)
        machine.write(0x1c, 0x1010, 2)
        #expect(machine.probe?.io.address == PCITestBus.ioBase + 0x1000)
        machine.write(0x1c, 0x00f0, 2)
        #expect(machine.probe?.io.address == nil)
    }

    @Test(arguments: [1, 2, 3, 4]) func pinsAreSwizzled(_ slot: Int) throws {
        let machine = try PortMachine(slot: slot)
        try machine.start()
        // INTA of device 0 behind is the port's INTA.
        machine.probe?.setInterrupt(true)
        #expect(machine.pci.wires.map(\.level) == (0..<4).map { $0 == slot % 4 })
        machine.probe?.setInterrupt(false)
        #expect(machine.pci.wires.allSatisfy { !$0.level })
    }

    @Test func aBusResetResetsWhatIsBehind() throws {
        let machine = try PortMachine()
        try machine.start()
        machine.open()
        machine.write(0x3e, 0x40, 2)
        #expect(machine.probe?.low.address == nil && machine.behind(4, 2) == 0)
        machine.write(0x3e, 0, 2)
        #expect(machine.behind(0) == 0x5678_1234)
    }

    @Test func withoutPowerNothingAnswers() throws {
        let machine = try PortMachine()
        try machine.start()
        machine.open()
        machine.control = 0x400 | 0x1c0
        #expect(machine.behind(0) == 0xffff_ffff && machine.probe?.low.address == nil)
        machine.control = 0x1c0
        #expect(machine.behind(0) == 0x5678_1234 && machine.probe?.low.address == PCITestBus.window)
    }

    // MARK: Hot plug

    @Test func aDeviceThatComesIsTold() throws {
        let machine = try PortMachine(hasDevice: false)
        try machine.start()
        #expect(machine.status & 0x40 == 0 && machine.control == 0x7c0)
        machine.control = 0x7e0 | 0x19
        #expect(machine.status & 0x10 != 0, "the command is completed")
        machine.status = 0x10
        #expect(machine.pci.wires[PortMachine.port].level == false)
        try machine.plug()
        machine.port.didPlug()
        #expect(machine.status & 0x49 == 0x49)
        #expect(machine.pci.wires[PortMachine.port].level)
        machine.status = 9
        #expect(machine.status == 0x40 && !machine.pci.wires[PortMachine.port].level)
        // Power on.
        machine.control = 0x1e0 | 0x19
        machine.number()
        #expect(machine.behind(0) == 0x5678_1234)
    }

    @Test func eventsAreMessages() throws {
        let machine = try PortMachine(hasDevice: false)
        try machine.start()
        let msi = try #require(machine.port.msi).offset
        machine.write(4, 6, 2)
        machine.write(msi + 4, PCITestBus.doorbell)
        machine.write(msi + 12, 0x33, 2)
        machine.write(msi + 2, 1, 2)
        machine.control = 0x7e0 | 9
        _ = machine.pci.messages.take()
        try machine.plug()
        machine.port.didPlug()
        #expect(machine.pci.messages.take() == [0x33] && machine.pci.wires.allSatisfy { !$0.level })
        // One more while there is one is no new message.
        _ = machine.port.askForDevice()
        #expect(machine.pci.messages.take() == [])
        machine.status = 9
        machine.control = 0x3e0 | 9
        _ = machine.pci.messages.take()
        #expect(machine.port.askForDevice())
        #expect(machine.pci.messages.take() == [0x33])
    }

    @Test func theGuestLetsADeviceGo() throws {
        let machine = try PortMachine()
        var asked = 0
        machine.port.onPowerOff = {
            asked += 1
            return true
        }
        try machine.start()
        #expect(machine.port.askForDevice())
        #expect(machine.status & 1 != 0)
        machine.status = 1
        machine.control = 0x2c0
        #expect(machine.port.refusal(toPlug: false)?.message.contains("guest is busy") == true)
        machine.control = 0x6c0
        #expect(asked == 0)
        machine.control = 0x7c0
        #expect(asked == 0, "a CPU's thread takes nothing away")
        machine.turnLoop()
        #expect(asked == 1)
        let probe = try #require(machine.probe)
        machine.port.secondaryBus.unplug(probe)
        machine.port.didUnplug()
        #expect(machine.status & 0x48 == 8 && machine.read(machine.express + 0x12, 2) & 0x2000 == 0)
        machine.control = 0x7c0
        machine.turnLoop()
        #expect(asked == 1)
        #expect(!machine.port.askForDevice(), "there is none")
    }

    @Test func aGuestThatKeepsADeviceIsHeard() throws {
        let machine = try PortMachine()
        var refused = 0
        machine.port.onUnplugRefused = { refused += 1 }
        try machine.start()
        machine.control = 0x2c0
        machine.control = 0x1c0
        machine.turnLoop()
        #expect(refused == 0, "nobody has asked")
        _ = machine.port.askForDevice()
        machine.control = 0x2c0
        machine.control = 0x1c0
        machine.turnLoop()
        #expect(refused == 1)
    }

    @Test func whoClearsWhatIsNotThereClearsNothing() throws {
        let machine = try PortMachine()
        try machine.start()
        _ = machine.port.askForDevice()
        machine.status = 0x1f
        #expect(machine.status & 1 != 0)
        machine.write(machine.express + 0x18, 0x0001_01c0)
        #expect(machine.status & 1 == 0, "as a word with the control register")
    }

    @Test func aSlotWithoutHotPlugRefuses() throws {
        let machine = try PortMachine(isHotPlug: false)
        #expect(machine.read(machine.express + 0x14) & 0x60 == 0)
        #expect(
            machine.port.refusal(toPlug: true)?.message
                == "Hot-plug failed: unsupported by the port device 'rp0'")
    }

    // MARK: State

    @Test func everythingGoesThroughACheckpoint() throws {
        let machine = try PortMachine()
        try machine.start()
        machine.open()
        machine.control = 0x3e0 | 0x19
        _ = machine.port.askForDevice()
        machine.control = 0x7e0 | 0x19
        machine.vm.stop()
        machine.turnLoop()
        let (port, probe) = (savedState(machine.port), savedState(try #require(machine.probe)))

        let next = try PortMachine()
        var taken = 0
        next.port.onPowerOff = {
            taken += 1
            return true
        }
        // Whichever comes first.
        try loadState(probe, into: try #require(next.probe))
        try loadState(port, into: next.port)
        #expect(savedState(next.port) == port)
        let restored = try #require(next.probe)
        #expect(savedState(restored) == probe)
        #expect(next.pci.wires[PortMachine.port].level)
        #expect(next.behind(0) == 0xffff_ffff, "its power is off")
        next.vm.tookOverState()
        try next.start()
        next.turnLoop()
        #expect(taken == 1, "what the guest had let go of is taken away by the next VMM")
    }

    @Test func mappingsGoThroughACheckpoint() throws {
        let machine = try PortMachine()
        try machine.start()
        machine.open()
        machine.vm.stop()
        let (port, probe) = (savedState(machine.port), savedState(try #require(machine.probe)))
        for portFirst in [true, false] {
            let next = try PortMachine()
            if portFirst { try loadState(port, into: next.port) }
            try loadState(probe, into: try #require(next.probe))
            if !portFirst { try loadState(port, into: next.port) }
            #expect(next.probe?.low.address == PCITestBus.window)
        }
    }

    @Test func otherDevicesAreRefused() throws {
        let machine = try PortMachine()
        let state = savedState(machine.port)
        let empty = try PortMachine(hasDevice: false)
        let before = savedState(empty.port)
        let error = #expect(throws: VMMError.self) { try loadState(state, into: empty.port) }
        #expect(
            error?.message
                == "section 'pcie.0/02.0/pcie-root-port' has functions at 0x0 of bus 'rp0', this machine has no place")
        #expect(savedState(empty.port) == before)
        for length in stride(from: 0, to: state.count, by: 11) {
            #expect(throws: VMMError.self) { try loadState(Array(state[..<length]), into: machine.port) }
        }
    }

    @Test func randomWritesChangeOnlyWhatTheGuestMayChange() throws {
        let machine = try PortMachine()
        try machine.start()
        var random = Randomness(seed: 12)
        for step in 0..<30_000 {
            let width = [1, 2, 4, 8].randomElement(using: &random) ?? 1
            let register = Int.random(in: 0...(256 - width), using: &random)
            machine.write(register, random.next(), width)
            if step % 100 == 0 {
                machine.turnLoop()
                machine.number()
                machine.writeBehind(Int.random(in: 0...63, using: &random) & ~3, random.next())
            }
            #expect(machine.read(0) == 0x000c_1b36 && machine.read(0xe, 1) == 1)
            #expect(machine.read(machine.express + 0x14) >> 19 == 7)
        }
        let state = savedState(machine.port)
        machine.vm.resetDevices()
        try loadState(state, into: machine.port)
        #expect(savedState(machine.port) == state)
    }
}
