import BatonRuntime
import Testing
import VirtBoard

@Suite struct CLINTTests {
    final class Harts: CLINTHarts {
        var clintHartCount: Int { 2 }
        var clintTime: UInt64 = 0x1122_3344_5566_7788
        var compare: [UInt64] = [.max, .max]
        var software = [false, false]
        func clintTimeCompare(hart: Int) -> UInt64 { compare[hart] }
        func setClintTimeCompare(hart: Int, _ value: UInt64) { compare[hart] = value }
        func setClintSoftwareInterrupt(hart: Int, _ level: Bool) { software[hart] = level }
    }
    let harts = Harts()
    let clint: CLINT
    init() { clint = CLINT(harts: harts) }

    @Test func readsTimeWholeAndInHalves() {
        #expect(clint.mmioRead(offset: 0xbff8, width: 8) == harts.clintTime)
        #expect(clint.mmioRead(offset: 0xbff8, width: 4) == 0x5566_7788)
        #expect(clint.mmioRead(offset: 0xbffc, width: 4) == 0x1122_3344)
    }

    @Test func writesTimeCompareWholeAndInHalves() {
        clint.mmioWrite(offset: 0x4008, width: 8, value: 5)
        #expect(harts.compare == [.max, 5])
        clint.mmioWrite(offset: 0x400c, width: 4, value: 7)
        #expect(harts.compare[1] == 7 << 32 | 5)
        clint.mmioWrite(offset: 0x4008, width: 4, value: 9)
        #expect(clint.mmioRead(offset: 0x4008, width: 8) == 7 << 32 | 9)
    }

    @Test func raisesSoftwareInterrupts() throws {
        clint.mmioWrite(offset: 4, width: 4, value: 0xffff_ffff)
        #expect(harts.software == [false, true])
        #expect(clint.mmioRead(offset: 4, width: 4) == 1)
        let state = savedState(clint)
        let others = Harts()
        let restored = CLINT(harts: others)
        try loadState(state, into: restored)
        #expect(others.software == [false, true] && savedState(restored) == state)
        clint.mmioWrite(offset: 4, width: 4, value: 0)
        #expect(harts.software == [false, false])
        clint.mmioWrite(offset: 8, width: 4, value: 1)
        #expect(clint.mmioRead(offset: 8, width: 4) == 0)
    }
}

@Suite struct GoldfishRTCTests {
    final class Clock { var now: Int64 = 1_700_000_000_000_000_000 }
    let machine: TestMachine
    let clock = Clock()
    let wire = Wire()
    let rtc: GoldfishRTC

    init() throws {
        machine = try TestMachine()
        let clock = clock
        rtc = GoldfishRTC(loop: machine.vm.loop, line: wire.line) { clock.now }
        try machine.vm.add(rtc)
        try machine.vm.start()
    }

    private func read(_ offset: UInt64) -> UInt64 { rtc.mmioRead(offset: offset, width: 4) }
    private func write(_ offset: UInt64, _ value: Int64) {
        rtc.mmioWrite(offset: offset, width: 4, value: UInt64(truncatingIfNeeded: value) & 0xffff_ffff)
    }
    private var time: Int64 { Int64(read(0) | read(4) << 32) }

    @Test func tellsAndTakesTheTime() {
        #expect(time == clock.now)
        write(4, 0x1234)
        write(0, 0x5678)
        #expect(time == 0x1234_0000_5678)
        clock.now += 5
        #expect(time == 0x1234_0000_567d)
    }

    @Test func theHighWordBelongsToTheLowWordReadBefore() {
        clock.now = 0x1_ffff_ffff
        let low = read(0)
        clock.now += 1
        #expect(low == 0xffff_ffff && read(4) == 1)
    }

    private func setAlarm(_ at: Int64) {
        write(0x0c, at >> 32)
        write(0x08, at)
    }

    @Test func anAlarmInterruptsOnce() {
        write(0x10, 1)
        setAlarm(clock.now + 1_000_000)
        #expect(read(0x18) == 1 && !wire.level)
        clock.now += 1_000_000
        #expect(machine.wait { wire.level })
        #expect(read(0x18) == 0)
        write(0x1c, 1)
        #expect(!wire.level)
        setAlarm(clock.now - 1)
        #expect(wire.level, "an alarm in the past is due")
    }

    @Test func aClearedAlarmDoesNotInterrupt() {
        write(0x10, 1)
        setAlarm(clock.now + 1_000_000)
        write(0x14, 1)
        clock.now += 1_000_000
        machine.vm.loop.poll(timeout: 3_000_000)
        #expect(!wire.level && read(0x18) == 0)
    }

    @Test func extremeTimesDoNoHarm() {
        for high in [Int64(0x7fff_ffff), 0xffff_ffff, 0x8000_0000, 0] {
            write(4, high)
            write(0, 0xffff_ffff)
            setAlarm(high << 32 ^ -1)
            setAlarm(~(high << 32))
            clock.now &+= 1 << 40
        }
        _ = time
    }

    @Test func theAlarmWaitsForAStoppedMachineAndOverARestart() throws {
        write(0x10, 1)
        setAlarm(clock.now + 1_000_000)
        machine.vm.stop()
        clock.now += 2_000_000
        machine.vm.loop.poll(timeout: 3_000_000)
        #expect(!wire.level)
        let state = savedState(rtc)
        let otherWire = Wire()
        let restored = GoldfishRTC(loop: machine.vm.loop, line: otherWire.line) { [clock] in clock.now }
        try loadState(state, into: restored)
        #expect(savedState(restored) == state && !otherWire.level)
        restored.resume()
        #expect(otherWire.level)
    }
}

@Suite struct TestFinisherTests {
    final class Machine: GuestRequests {
        var asked: [String] = []
        func guestRequestedShutdown(status: Int32) { asked.append("shutdown \(status)") }
        func guestRequestedReset() { asked.append("reset") }
    }

    @Test func endsAndResetsTheMachine() {
        let machine = Machine()
        let test = TestFinisher(machine: machine)
        test.mmioWrite(offset: 0, width: 4, value: 0x5555)
        test.mmioWrite(offset: 0, width: 4, value: 0x7777)
        test.mmioWrite(offset: 0, width: 4, value: 0x0005_3333)
        test.mmioWrite(offset: 0, width: 4, value: 0x1234)
        test.mmioWrite(offset: 4, width: 4, value: 0x5555)
        #expect([1, 2, 4, 8].filter { test.accepts(offset: 0, width: $0) } == [2, 4])
        #expect(machine.asked == ["shutdown 0", "reset", "shutdown 5"])
    }
}
