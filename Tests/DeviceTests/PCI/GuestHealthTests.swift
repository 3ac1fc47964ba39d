import BatonRuntime
import GuestHealth
import PCI
import Testing

/// A machine with a device by which the guest says how it is, driven as its driver does.
private final class HealthMachine {
    static let slot = 3
    let pci: PCITestBus
    var vm: VirtualMachine { pci.machine.vm }
    private(set) var events: [(name: String, data: JSONObject)] = []
    var names: [String] { events.map(\.name) }

    init(_ make: (VirtualMachine) -> PCIFunction) throws {
        pci = try PCITestBus()
        try pci.plug(make(pci.machine.vm), HealthMachine.slot)
        vm.onEvent { [unowned self] in events.append(($0, $1)) }
    }

    /// Starts the machine, with BAR 0 at the window's start.
    func start() throws {
        try vm.start()
        pci.write(HealthMachine.slot, PCIRegister.firstBar, PCITestBus.window)
        pci.enable(HealthMachine.slot)
    }

    func read(_ offset: UInt64, _ width: Int) -> UInt64? {
        pci.space.mmioRead(PCITestBus.window + offset, width: width)
    }
    func write(_ offset: UInt64, _ width: Int, _ value: UInt64) {
        #expect(pci.space.mmioWrite(PCITestBus.window + offset, width: width, value: value))
    }
    /// Everything that is due happens.
    func turnLoop() { vm.loop.poll(timeout: 0) }
}

@Suite struct PVPanicPCITests {
    @Test func itIsQEMUs() throws {
        let machine = try HealthMachine { PVPanicPCI(vm: $0, id: nil) }
        try machine.start()
        #expect(machine.pci.read(HealthMachine.slot, 0) == 0x0011_1b36)
        #expect(machine.pci.read(HealthMachine.slot, 8) == 0x0880_0001)
        #expect(machine.read(0, 1) == 7)
        machine.write(0, 1, 2)
        machine.turnLoop()
        #expect(machine.names.last == "GUEST_CRASHLOADED" && machine.vm.isRunning)
        machine.vm.guestActions.panic = .pause
        machine.write(0, 1, 1)
        machine.turnLoop()
        #expect(machine.vm.runState == .guestPanicked && machine.names.contains("GUEST_PANICKED"))
    }

    @Test func whatIsNotOfferedIsIgnored() throws {
        let machine = try HealthMachine { PVPanicPCI(vm: $0, id: nil, events: .crashLoaded) }
        try machine.start()
        #expect(machine.read(0, 1) == 2)
        machine.write(0, 1, 1)
        machine.turnLoop()
        #expect(machine.vm.isRunning && machine.names == ["RESUME"])
    }

    @Test func aPanicGoesAlongWithAnUpdate() throws {
        let machine = try HealthMachine { PVPanicPCI(vm: $0, id: nil) }
        try machine.start()
        machine.write(0, 1, 1)
        machine.vm.stop(.saveVM)
        let function = try #require(machine.pci.host.bus.function(HealthMachine.slot << 3))
        let state = savedState(function)
        let next = try HealthMachine { PVPanicPCI(vm: $0, id: nil) }
        next.vm.guestActions.panic = .pause
        let restored = try #require(next.pci.host.bus.function(HealthMachine.slot << 3))
        try loadState(state, into: restored)
        #expect(savedState(restored) == state)
        next.vm.tookOverState()
        try next.vm.start()
        next.turnLoop()
        #expect(next.vm.runState == .guestPanicked)
    }
}

@Suite struct I6300ESBTests {
    /// Nanoseconds of the timer's unit at its faster clock.
    private static let unit: Int64 = 32 * 30
    private let machine: HealthMachine

    init() throws {
        machine = try HealthMachine { I6300ESB(vm: $0, id: nil) }
        machine.vm.guestActions.watchdog = .pause
        try machine.start()
    }

    private func function(_ machine: HealthMachine) throws -> PCIFunction {
        try #require(machine.pci.host.bus.function(HealthMachine.slot << 3))
    }
    private func unlock() {
        machine.write(0xc, 2, 0x80)
        machine.write(0xc, 2, 0x86)
    }
    private func setPeriods(_ first: UInt64, _ second: UInt64) {
        unlock()
        machine.write(0, 4, first)
        unlock()
        machine.write(4, 4, second)
    }
    private func reload() {
        unlock()
        machine.write(0xc, 2, 0x100)
    }
    /// The faster clock, and the timer on.
    private func enable(_ bits: UInt64 = 2) {
        machine.pci.write(HealthMachine.slot, 0x60, 3 | 4, 2)
        machine.pci.write(HealthMachine.slot, 0x68, bits, 1)
    }

    @Test func itIsIntels() {
        #expect(machine.pci.read(HealthMachine.slot, 0) == 0x25ab_8086)
        #expect(machine.pci.read(HealthMachine.slot, 8) >> 16 == 0x0880)
        #expect(machine.read(0xc, 2) == 0)
    }

    @Test func twoPeriodsLaterItActs() throws {
        let begin = EventLoop.now
        setPeriods(4000, 4000)
        enable()
        #expect(machine.vm.wait { !machine.vm.isRunning })
        #expect(EventLoop.now - begin >= 8000 * I6300ESBTests.unit, "not before its time")
        #expect(machine.vm.runState == .watchdog)
        #expect(machine.events.last { $0.name == "WATCHDOG" }?.data == ["action": .string("pause")])
        // It has ended, and says so until the guest takes note.
        #expect(machine.pci.read(HealthMachine.slot, 0x68, 1) == 0)
        machine.vm.resetDevices()
        try machine.start()
        #expect(machine.read(0xc, 2) == 0x1200)
        unlock()
        machine.write(0xc, 2, 0x200)
        #expect(machine.read(0xc, 2) == 0)
    }

    @Test func withoutTheSequenceNothingChanges() throws {
        setPeriods(4000, 5000)
        let before = savedState(try function(machine))
        machine.write(0, 4, 1)
        machine.write(0xc, 2, 0x86)
        machine.write(0, 4, 1)
        machine.write(0xc, 2, 0x100)
        #expect(savedState(try function(machine)) == before)
        // Of more than 20 bits the others are dropped; each change needs the sequence anew.
        setPeriods(0xffff_ffff, 7)
        machine.write(4, 4, 9)
        let reader = try reader(of: savedState(try function(machine)), for: try function(machine))
        #expect(try reader.array("preloads") == [0xf_ffff, 7])
    }

    @Test func reloadsKeepItFromActing() {
        setPeriods(20_000, 20_000)
        enable()
        let end = EventLoop.now + 3 * 40_000 * I6300ESBTests.unit
        #expect(
            machine.vm.wait {
                reload()
                return EventLoop.now > end
            })
        #expect(machine.vm.isRunning && machine.names == ["RESUME"])
    }

    @Test func lockedItStaysOn() {
        setPeriods(0xf_ffff, 0xf_ffff)
        enable(3)
        machine.pci.write(HealthMachine.slot, 0x68, 0, 1)
        machine.pci.write(HealthMachine.slot, 0x68, 0, 4)
        #expect(machine.pci.read(HealthMachine.slot, 0x68, 1) == 3)
        machine.vm.resetDevices()
        #expect(machine.pci.read(HealthMachine.slot, 0x68, 1) == 0)
    }

    @Test func turnedOffItDoesNotAct() throws {
        setPeriods(10, 10)
        enable()
        machine.pci.write(HealthMachine.slot, 0x68, 0, 1)
        #expect(!(try reader(of: savedState(try function(machine)), for: try function(machine)).has("left-ns")))
        let end = EventLoop.now + 5_000_000
        #expect(machine.vm.wait { EventLoop.now > end })
        #expect(machine.names == ["RESUME"])
    }

    @Test func withoutTheOutputItOnlyGoesRound() {
        setPeriods(10, 10)
        machine.pci.write(HealthMachine.slot, 0x60, 0x27, 2)
        machine.pci.write(HealthMachine.slot, 0x68, 6, 1)
        let end = EventLoop.now + 10_000_000
        #expect(machine.vm.wait { EventLoop.now > end })
        #expect(machine.names == ["RESUME"] && machine.read(0xc, 2) == 0)
        #expect(machine.vm.loop.timerCount == 1, "it goes on")
    }

    @Test func timeStandsStillWithTheVM() throws {
        let period: Int64 = 50_000
        setPeriods(UInt64(period), 10)
        enable()
        machine.vm.stop()
        let function = try function(machine)
        let state = savedState(function)
        let left = try reader(of: state, for: function).unsigned("left-ns")
        #expect(left > 0 && left <= UInt64(period * I6300ESBTests.unit))
        let end = EventLoop.now + 3 * period * I6300ESBTests.unit
        #expect(machine.vm.wait { EventLoop.now > end })
        #expect(savedState(function) == state && machine.vm.runState == .paused, "a pause is no reason to act")

        // The next VMM has as much time left, counted from when the guest runs there.
        let next = try HealthMachine { I6300ESB(vm: $0, id: nil) }
        next.vm.guestActions.watchdog = .pause
        let restored = try self.function(next)
        try loadState(state, into: restored)
        #expect(savedState(restored) == state)
        next.vm.tookOverState()
        let start = EventLoop.now
        try next.vm.start()
        #expect(next.vm.wait { !next.vm.isRunning })
        #expect(EventLoop.now - start >= Int64(left))
        #expect(next.vm.runState == .watchdog)
    }

    @Test(arguments: WatchdogAction.allCases)
    func eachActionIsDone(_ action: WatchdogAction) {
        machine.vm.guestActions.watchdog = action
        setPeriods(1, 1)
        enable()
        #expect(machine.vm.wait { machine.names.contains("WATCHDOG") })
        #expect(machine.events.last { $0.name == "WATCHDOG" }?.data == ["action": .string(action.rawValue)])
        switch action {
        case .reset:
            machine.vm.run { machine.names.contains("RESET") }
            #expect(machine.events.last?.data == ["guest": .bool(true), "reason": .string("guest-reset")])
        case .shutdown: #expect(machine.names.last == "POWERDOWN")
        case .poweroff: #expect(machine.vm.run() == 0 && machine.names.contains("SHUTDOWN"))
        case .pause: #expect(machine.vm.runState == .watchdog)
        case .debug, .none, .injectNMI: #expect(machine.vm.isRunning)
        }
    }

    @Test func badStatesAreRefused() throws {
        let function = try function(machine)
        let state = savedState(function)
        for length in stride(from: 0, to: state.count, by: 5) {
            #expect(throws: VMMError.self) { try loadState(Array(state[..<length]), into: function) }
        }
        #expect(savedState(function) == state)
    }

    @Test func randomAccessesAreHarmless() {
        machine.vm.guestActions.watchdog = .none
        var random = Randomness(seed: 63)
        for _ in 0..<20_000 {
            let width = [1, 2, 4].randomElement(using: &random) ?? 1
            let offset = UInt64.random(in: 0..<16, using: &random) & ~UInt64(width - 1)
            switch UInt8.random(in: 0..<4, using: &random) {
            case 0: _ = machine.read(offset, width)
            case 1: unlock()
            case 2: machine.pci.write(HealthMachine.slot, 0x60 + Int(offset) & ~3, random.next(), 4)
            default: machine.write(offset, width, random.next())
            }
        }
        machine.turnLoop()
        #expect(machine.vm.isRunning)
    }
}
