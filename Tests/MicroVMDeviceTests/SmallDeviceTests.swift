import BatonRuntime
import MicroVM
import TestSupport
import Testing

@Suite struct ISADebugExitTests {
    final class Machine: GuestRequests {
        var statuses: [Int32] = []
        func guestRequestedShutdown(status: Int32) { statuses.append(status) }
        func guestRequestedReset() { Issue.record("no reset was asked for") }
    }

    @Test func aWriteEndsWithAnOddStatus() {
        let machine = Machine()
        let exit = ISADebugExit(machine: machine)
        exit.mmioWrite(offset: 0, width: 1, value: 0)
        exit.mmioWrite(offset: 1, width: 1, value: 0x10)
        exit.mmioWrite(offset: 0, width: 2, value: 0xffff)
        exit.mmioWrite(offset: 0, width: 4, value: 0xffff_ffff)
        #expect(machine.statuses == [1, 0x21, 0x1ffff, -1])
        #expect([1, 2, 4, 8].filter { exit.accepts(offset: 0, width: $0) } == [1, 2, 4])
        #expect(exit.mmioRead(offset: 0, width: 1) == 0)
    }

    @Test func theVMMEndsWithTheStatus() throws {
        let machine = try DeviceMachine()
        let exit = ISADebugExit(machine: machine.vm)
        try machine.vm.add(exit)
        try machine.vm.start()
        exit.mmioWrite(offset: 0, width: 1, value: 0x10)
        #expect(machine.vm.run() == 0x21)
        #expect(machine.event("SHUTDOWN")?["reason"] == .string("guest-shutdown"))
    }
}

@Suite struct DebugConsoleTests {
    let machine: DeviceMachine
    let chardev = TestChardev()
    let console: DebugConsole

    init() throws {
        machine = try DeviceMachine()
        console = try DebugConsole(vm: machine.vm, chardev: chardev)
        try machine.vm.add(console)
        try machine.vm.start()
    }

    private func write(_ bytes: [UInt8]) {
        for byte in bytes { console.mmioWrite(offset: 0, width: 1, value: UInt64(byte)) }
    }

    @Test func outputReachesTheHost() {
        write(Array("hello".utf8))
        machine.vm.loop.poll(timeout: 0)
        #expect(chardev.written == Array("hello".utf8))
        #expect(chardev.frontend?.chardevCanReceive() == 0)
    }

    @Test func manyBytesDoNotWaitForTheLoop() {
        write(Array(repeating: 7, count: 512))
        #expect(chardev.written.count == 512)
    }

    @Test func theGuestFindsIt() throws {
        #expect(console.mmioRead(offset: 0, width: 1) == 0xe9)
        let other = try DebugConsole(name: "other", vm: machine.vm, chardev: TestChardev("o"), readback: 0x12)
        #expect(other.mmioRead(offset: 0, width: 1) == 0x12)
        #expect([1, 2, 4, 8].filter { console.accepts(offset: 0, width: $0) } == [1])
    }

    @Test func aChardevInUseIsRefused() {
        #expect(throws: VMMError.self) { try DebugConsole(name: "other", vm: machine.vm, chardev: chardev) }
    }

    @Test func aHostThatTakesNothingHoldsNobodyUp() {
        chardev.room = 3
        write(Array("abc".utf8))
        write(Array(repeating: 0x64, count: 100_000))
        machine.vm.loop.poll(timeout: 0)
        #expect(chardev.written == Array("abc".utf8))
        chardev.room = Int.max
        chardev.frontend?.chardevWritable()
        // The first bytes are kept, and what there was no room for is dropped.
        #expect(chardev.written.count == 3 + 65_536)
        write(Array("xyz".utf8))
        machine.vm.loop.poll(timeout: 0)
        #expect(chardev.written.suffix(3) == Array("xyz".utf8))
    }

    @Test func pausingSendsWhatWasWritten() {
        write([0x41])
        machine.vm.stop()
        #expect(chardev.written == [0x41])
        machine.vm.loop.poll(timeout: 0)
        #expect(chardev.written == [0x41])
    }

    @Test func unsentOutputGoesOverAnUpdate() throws {
        chardev.room = 1
        write(Array("abc".utf8))
        machine.vm.stop()
        chardev.room = Int.max
        chardev.frontend?.chardevWritable()
        machine.vm.loop.poll(timeout: 0)
        #expect(chardev.written == Array("a".utf8), "nothing is sent while the machine is stopped")
        let state = savedState(console)
        let otherChardev = TestChardev("o")
        let restored = try DebugConsole(vm: machine.vm, chardev: otherChardev)
        try loadState(state, into: restored)
        #expect(savedState(restored) == state && otherChardev.written.isEmpty)
        restored.resume()
        #expect(otherChardev.written == Array("bc".utf8))
    }

    @Test func badStatesAreRefused() throws {
        #expect(try refuses(console, "output", .bytes(Array(repeating: 0, count: 65_537))))
        #expect(try refuses(console, "output", .nothing))
        #expect(try refuses(console, "output", .number(1)))
        #expect(try refuses(console, "more", .number(1)))
        #expect(try !refuses(console, "output", .bytes(Array(repeating: 0, count: 65_536))))
    }
}

@Suite struct PostCodePortTests {
    @Test func ignoresWrites() {
        let port = PostCodePort()
        port.mmioWrite(offset: 0, width: 1, value: 0x42)
        #expect(port.mmioRead(offset: 0, width: 1) == 0xff)
    }
}

@Suite struct GenericEventDeviceTests {
    let machine: DeviceMachine
    let wire = Wire()
    let device: GenericEventDevice

    init() throws {
        machine = try DeviceMachine()
        device = GenericEventDevice(vm: machine.vm, line: wire.line)
        try machine.vm.add(device)
        try machine.vm.start()
    }

    private func readEvents() -> UInt64 { device.eventSelect.mmioRead(offset: 0, width: 4) }
    private func write(_ offset: UInt64, _ value: UInt64) {
        device.registers.mmioWrite(offset: offset, width: 1, value: value)
    }

    @Test func thePowerButtonInterruptsAndIsReadOnce() {
        #expect(readEvents() == 0 && wire.rises == 0)
        machine.vm.requestPowerdown()
        #expect(wire.rises == 1 && !wire.level, "an edge")
        #expect(readEvents() == 2 && readEvents() == 0)
        machine.vm.requestPowerdown()
        machine.vm.requestPowerdown()
        #expect(wire.rises == 3 && readEvents() == 2)
    }

    @Test func sleepFivePowersOff() {
        for type in UInt64(0)..<8 where type != 5 { write(0, 0x20 | type << 2) }
        write(0, 5 << 2)
        write(1, 0x34)
        #expect(!machine.vm.isEnding)
        write(0, 0x20 | 5 << 2)
        #expect(machine.vm.isEnding)
        #expect(machine.vm.run() == 0)
        #expect(machine.event("SHUTDOWN") == ["guest": .bool(true), "reason": .string("guest-shutdown")])
    }

    @Test func theResetRegisterResets() {
        for value in UInt64(0)..<256 where value != 0x42 { write(2, value) }
        machine.vm.requestPowerdown()
        write(2, 0x42)
        machine.vm.run { machine.event("RESET") != nil }
        #expect(machine.event("RESET")?["guest"] == .bool(true))
        #expect(readEvents() == 0, "the reset forgets events")
        #expect(machine.vm.isRunning && !machine.vm.isEnding)
    }

    @Test func onlyWholeRegistersAreAccessed() {
        #expect([1, 2, 4, 8].filter { device.eventSelect.accepts(offset: 0, width: $0) } == [4])
        #expect([1, 2, 4, 8].filter { device.registers.accepts(offset: 0, width: $0) } == [1])
        machine.vm.requestPowerdown()
        device.eventSelect.mmioWrite(offset: 0, width: 4, value: 0)
        #expect((0..<3).allSatisfy { device.registers.mmioRead(offset: $0, width: 1) == 0 })
        #expect(readEvents() == 2)
    }

    @Test func anUnreadEventGoesOverAnUpdate() throws {
        machine.vm.requestPowerdown()
        let state = savedState(device)
        let restored = GenericEventDevice(vm: machine.vm, line: Wire().line)
        try loadState(state, into: restored)
        #expect(savedState(restored) == state)
        #expect(restored.eventSelect.mmioRead(offset: 0, width: 4) == 2)
    }

    @Test func badStatesAreRefused() throws {
        for bad in [1, 4, 3, 0x8000_0002, 1 << 32] as [UInt64] {
            #expect(try refuses(device, "events", .number(bad)))
        }
        #expect(try refuses(device, "events", .nothing))
        #expect(try refuses(device, "more", .number(0)))
    }
}
