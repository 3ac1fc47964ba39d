import BatonRuntime
import GuestHealth
import MicroVM
import TestSupport
import Testing

@Suite struct PVPanicTests {
    let machine: DeviceMachine
    let device: PVPanic

    init() throws {
        machine = try DeviceMachine()
        device = PVPanic(vm: machine.vm)
        try machine.vm.add(device)
        try machine.vm.start()
    }

    private func write(_ value: UInt64) { device.mmioWrite(offset: 0, width: 1, value: value) }
    private func turnLoop() { machine.vm.loop.poll(timeout: 0) }

    @Test func tellsWhatItTakes() {
        #expect(device.mmioRead(offset: 0, width: 1) == 7)
        #expect(PVPanic(name: "p", vm: machine.vm, events: .panicked).mmioRead(offset: 0, width: 1) == 1)
        #expect([1, 2, 4, 8].filter { device.accepts(offset: 0, width: $0) } == [1])
    }

    @Test func theVMStopsInTheLoopOnly() {
        machine.vm.guestActions.panic = .pause
        write(1)
        #expect(machine.vm.isRunning, "a vCPU's thread cannot stop the VM")
        turnLoop()
        #expect(machine.vm.runState == .guestPanicked)
        #expect(machine.eventNames == ["RESUME", "GUEST_PANICKED", "STOP"])
        #expect(machine.event("GUEST_PANICKED") == ["action": .string("pause")])
        #expect(!machine.vm.isEnding)
        // A client may let it go on, as in QEMU.
        #expect(throws: Never.self) { try machine.vm.start() }
        #expect(machine.vm.isRunning)
    }

    @Test func aPanicEndsTheVMMByDefault() {
        write(1)
        #expect(machine.vm.run() == 0)
        #expect(machine.eventNames == ["RESUME", "GUEST_PANICKED", "STOP", "SHUTDOWN"])
        #expect(machine.event("GUEST_PANICKED") == ["action": .string("poweroff")])
        #expect(machine.event("SHUTDOWN") == ["guest": .bool(true), "reason": .string("guest-panic")])
    }

    @Test func aPanicCanBeAFailure() {
        machine.vm.guestActions.panic = .exitFailure
        write(1)
        #expect(machine.vm.run() == 1)
    }

    @Test func withoutShutdownAPanicOnlyStops() {
        machine.vm.noShutdown = true
        write(1)
        turnLoop()
        #expect(machine.vm.runState == .guestPanicked && !machine.vm.isEnding)
        #expect(machine.event("GUEST_PANICKED") == ["action": .string("pause")])
    }

    @Test func aPanicCanBeNothing() {
        machine.vm.guestActions.panic = .none
        write(1)
        turnLoop()
        #expect(machine.vm.isRunning)
        #expect(machine.event("GUEST_PANICKED") == ["action": .string("run")])
    }

    @Test func aCrashKernelRunsOn() {
        write(2)
        turnLoop()
        #expect(machine.vm.isRunning)
        #expect(machine.event("GUEST_CRASHLOADED") == ["action": .string("run")])
        // The guest can say so as often as it likes.
        for _ in 0..<1000 {
            write(2)
            turnLoop()
        }
        #expect(machine.events.count <= 3, "at most one event a second")
        write(1)
        turnLoop()
        #expect(machine.vm.runState == .guestPanicked, "a panic is never held back")
    }

    @Test func aGuestShutsDown() {
        write(4)
        #expect(machine.vm.run() == 0)
        #expect(machine.event("GUEST_PVSHUTDOWN") == [:])
        #expect(machine.event("SHUTDOWN") == ["guest": .bool(true), "reason": .string("guest-shutdown")])
    }

    @Test func theFirstOfSeveralCounts() {
        machine.vm.guestActions.panic = .pause
        write(7)
        turnLoop()
        #expect(machine.eventNames == ["RESUME", "GUEST_PANICKED", "STOP"])
    }

    @Test func whatIsNotOfferedIsIgnored() {
        let other = PVPanic(name: "p", vm: machine.vm, events: .crashLoaded)
        other.resume()
        for value in [0, 1, 4, 5, 8, 0xf8, 0xfd] as [UInt64] { other.mmioWrite(offset: 0, width: 1, value: value) }
        turnLoop()
        #expect(machine.eventNames == ["RESUME"])
    }

    @Test func aPanicThatAnUpdateComesBeforeIsNotLost() throws {
        machine.vm.guestActions.panic = .pause
        write(1)
        machine.vm.stop(.saveVM)
        turnLoop()
        #expect(machine.vm.runState == .saveVM, "nothing changes in the hands of an update")
        let state = savedState(device)

        // The update takes the guest over …
        let next = try DeviceMachine()
        next.vm.guestActions.panic = .pause
        let restored = PVPanic(vm: next.vm)
        try next.vm.add(restored)
        try loadState(state, into: restored)
        #expect(savedState(restored) == state)
        next.vm.tookOverState()
        try next.vm.start()
        next.vm.loop.poll(timeout: 0)
        #expect(next.vm.runState == .guestPanicked && next.eventNames.contains("GUEST_PANICKED"))

        // … or fails, and it goes on here.
        try machine.vm.start()
        turnLoop()
        #expect(machine.vm.runState == .guestPanicked && machine.eventNames.contains("GUEST_PANICKED"))
    }

    @Test func aResetForgets() {
        write(1)
        machine.vm.resetDevices()
        turnLoop()
        #expect(machine.vm.isRunning && machine.eventNames == ["RESUME"])
    }

    @Test func badStatesAreRefused() throws {
        #expect(try refuses(device, "pending", .number(8)))
        #expect(try refuses(device, "pending", .nothing))
        #expect(try refuses(device, "more", .number(0)))
        #expect(try !refuses(device, "pending", .number(7)))
    }
}
