import BatonRuntime
import MicroVM
import Testing

/// What the clock interrupts for.
@Suite struct CMOSClockInterruptTests {
    let bench: ClockBench
    init() throws { bench = try ClockBench() }

    private static let updateEnded: UInt8 = 0x10
    private static let alarm: UInt8 = 0x20
    private static let periodic: UInt8 = 0x40
    private static let interrupt: UInt8 = 0x80

    /// Enables interrupts, in binary.
    private func enable(_ interrupts: UInt8) {
        bench.write(ClockBench.b, interrupts | ClockBench.binary | ClockBench.hours24)
    }
    private func happened() -> UInt8 { bench.read(ClockBench.c) }
    private func setAlarm(_ hour: UInt8, _ minute: UInt8, _ second: UInt8) {
        bench.write(5, hour)
        bench.write(3, minute)
        bench.write(1, second)
    }

    @Test func anUpdateInterruptsOnce() {
        setAlarm(12, 0, 0)
        enable(Self.updateEnded)
        // 1 ms before the next second, of the test's clock and of the timer.
        bench.advance(nanoseconds: 499_000_000)
        enable(Self.updateEnded)
        #expect(!bench.wire.level)
        bench.advance(nanoseconds: 1_000_000)
        #expect(bench.machine.wait { bench.wire.level })
        #expect(bench.machine.vm.loop.timerCount == 0, "nothing to wait for until the guest has looked")
        bench.advance(seconds: 100)
        #expect(happened() == Self.interrupt | Self.periodic | Self.updateEnded)
        #expect(!bench.wire.level && happened() == 0 && bench.wire.rises == 1)
        #expect(bench.machine.vm.loop.timerCount == 1)
    }

    @Test func whatIsNotEnabledIsToldWithoutATimer() {
        setAlarm(12, 0, 0)
        bench.write(ClockBench.a, 0x20)
        #expect(bench.machine.vm.loop.timerCount == 0)
        _ = happened()
        #expect(happened() == 0)
        bench.advance(seconds: 1)
        #expect(happened() == Self.updateEnded && happened() == 0)
        bench.advance(seconds: 1)
        // Enabling what has happened interrupts at once.
        enable(Self.updateEnded)
        #expect(bench.wire.level && happened() == Self.interrupt | Self.updateEnded)
    }

    @Test func settingTheTimeDisablesTheUpdateInterrupt() {
        enable(Self.updateEnded | ClockBench.set)
        #expect(bench.read(ClockBench.b) & Self.updateEnded == 0)
        bench.advance(seconds: 5)
        #expect(happened() & Self.updateEnded == 0)
    }

    @Test func periodsHaveTheirLengths() {
        // Nanoseconds of each rate, from the data sheet's table for 32,768 Hz.
        let lengths: [Int64] = [
            0, 3_906_250, 7_812_500, 122_071, 244_141, 488_282, 976_563, 1_953_125, 3_906_250, 7_812_500, 15_625_000,
            31_250_000, 62_500_000, 125_000_000, 250_000_000, 500_000_000,
        ]
        for (rate, length) in lengths.enumerated() {
            bench.wall.now = ClockBench.start * 1_000_000_000
            bench.write(ClockBench.a, 0x20 | UInt8(rate))
            _ = happened()
            guard length > 0 else {
                bench.advance(nanoseconds: 999_999_999)
                #expect(happened() & Self.periodic == 0)
                continue
            }
            for period in 0..<3 {
                let start = bench.wall.now
                // Rounded up, so that the first has a nanosecond more than others.
                bench.advance(nanoseconds: length - 2 - Int64(period))
                #expect(happened() & Self.periodic == 0, "rate \(rate), period \(period)")
                bench.wall.now = start + length
                #expect(happened() & Self.periodic != 0, "rate \(rate), period \(period)")
            }
        }
        bench.write(ClockBench.a, 0x63)
        _ = happened()
        bench.advance(seconds: 5)
        #expect(happened() == 0, "a held divider has no periods")
    }

    @Test func thePeriodInterruptsNoMoreThanTheGuestAnswers() {
        // The shortest period, with a clock that passes through a thousand of them.
        bench.write(ClockBench.a, 0x23)
        enable(Self.periodic)
        for _ in 0..<10 {
            let rises = bench.wire.rises
            #expect(bench.machine.vm.loop.timerCount == 1)
            bench.advance(nanoseconds: 122_000_000)
            #expect(bench.machine.wait { bench.wire.level })
            #expect(bench.wire.rises == rises + 1)
            #expect(bench.machine.vm.loop.timerCount == 0)
            #expect(happened() & (Self.interrupt | Self.periodic) == Self.interrupt | Self.periodic)
            #expect(!bench.wire.level)
        }
    }

    @Test func anAlarmInterrupts() {
        enable(Self.alarm)
        setAlarm(23, 59, 59)
        bench.advance(nanoseconds: 499_000_000)
        setAlarm(23, 59, 59)
        #expect(!bench.wire.level)
        bench.advance(nanoseconds: 1_000_000)
        #expect(bench.machine.wait { bench.wire.level })
        #expect(happened() & (Self.interrupt | Self.alarm) == Self.interrupt | Self.alarm)
        #expect(!bench.wire.level)
        bench.advance(seconds: 86_399)
        #expect(happened() & Self.alarm == 0, "not before the next day")
        bench.advance(seconds: 1)
        #expect(happened() & Self.alarm != 0)
    }

    @Test func anAlarmThatIsNoTimeNeverComes() {
        let alarms: [[UInt8]] = [[24, 0, 0], [0, 60, 0], [0, 0, 60], [0xbf, 0xff, 0xff]]
        for alarm in alarms {
            enable(Self.alarm)
            setAlarm(alarm[0], alarm[1], alarm[2])
            #expect(bench.machine.vm.loop.timerCount == 0)
            bench.advance(seconds: 200_000)
            #expect(happened() & Self.alarm == 0)
        }
    }

    @Test func anAlarmIsForTheTimeInWhichItWasSet() {
        enable(0)
        setAlarm(23, 59, 59)
        bench.advance(seconds: 10)
        setAlarm(12, 0, 0)
        #expect(happened() & Self.alarm != 0, "it came before it was changed")
        bench.advance(seconds: 10)
        setAlarm(0, 0, 15)
        #expect(happened() & Self.alarm == 0, "what is over does not come")
    }

    @Test func changingTimeOrRateForgetsNothing() {
        _ = happened()
        bench.advance(seconds: 1)
        bench.write(ClockBench.minute, 0)
        #expect(happened() & Self.updateEnded != 0)
        bench.advance(seconds: 1)
        bench.write(ClockBench.a, 0x20)
        #expect(happened() & ~Self.alarm == Self.updateEnded | Self.periodic)
    }

    @Test func theAlarmFollowsTheTimeThatIsSet() {
        enable(Self.alarm)
        setAlarm(12, 0, 0)
        bench.advance(seconds: 1, nanoseconds: 499_000_000)
        bench.write(ClockBench.hour, 11)
        #expect(!bench.wire.level)
        bench.advance(nanoseconds: 1_000_000)
        #expect(bench.machine.wait { bench.wire.level })
    }

    /// Against a search through all seconds.
    @Test func alarmsComeWhenTheirRegistersMatch() {
        enable(0)
        var random = Randomness(seed: 4)
        for _ in 0..<400 {
            bench.wall.now = Int64.random(in: 1_000_000...4_000_000_000, using: &random) * 1_000_000_000
            func register(_ count: UInt8) -> UInt8 {
                // Often near a border, or of no matter.
                [0xff, 0xc0, 0, count - 1, UInt8.random(in: 0..<count, using: &random)].randomElement(using: &random)!
            }
            let alarm = [register(24), register(60), register(60)]
            setAlarm(alarm[0], alarm[1], alarm[2])
            if Bool.random(using: &random) {
                // Begin near the alarm.
                let day = bench.wall.now / 86_400_000_000_000 * 86_400
                let near = (0..<3).map { alarm[$0] >= 0xc0 ? 0 : Int64(alarm[$0]) }
                let second = day + near[0] * 3600 + near[1] * 60 + near[2]
                bench.wall.now = (second + Int64.random(in: -100...100, using: &random)) * 1_000_000_000
                setAlarm(alarm[0], alarm[1], alarm[2])
            }
            _ = happened()
            let start = bench.wall.now / 1_000_000_000
            let length = Int64([1, 59, 3600, 86_300].randomElement(using: &random)!)
            let isDue = (start + 1...start + length).contains { second in
                func matches(_ register: UInt8, _ value: Int64) -> Bool { register >= 0xc0 || Int64(register) == value }
                return matches(alarm[2], second % 60) && matches(alarm[1], second / 60 % 60)
                    && matches(alarm[0], second / 3600 % 24)
            }
            bench.advance(seconds: length)
            #expect((happened() & Self.alarm != 0) == isDue, "\(alarm) in \(length) s after \(start)")
        }
    }

    @Test func anAlarmAfterNoonOfTwelveHours() {
        bench.setTime([0x59, 0x59, 0x11, 1, 1, 1, 0x24, 0x20])
        bench.write(ClockBench.b, Self.alarm)
        // 12 p.m.
        setAlarm(0x92, 0, 0)
        bench.advance(seconds: 1)
        #expect(happened() & Self.alarm != 0)
    }

    @Test func aClockThatIsSetBackDoesNoHarm() {
        enable(Self.updateEnded | Self.alarm)
        setAlarm(0xff, 0xff, 0xff)
        _ = happened()
        bench.advance(seconds: -100_000)
        #expect(happened() & ~Self.periodic == 0)
        bench.advance(seconds: 1)
        #expect(happened() & (Self.updateEnded | Self.alarm) == Self.updateEnded | Self.alarm)
    }

    @Test func interruptsWaitForAStoppedMachineAndOverAnUpdate() throws {
        setAlarm(0, 0, 0)
        enable(Self.alarm)
        bench.machine.vm.stop()
        #expect(bench.machine.vm.loop.timerCount == 0)
        bench.advance(seconds: 1000)
        bench.machine.vm.loop.poll(timeout: 0)
        #expect(!bench.wire.level)
        let state = savedState(bench.clock)
        let wire = Wire()
        let restored = bench.successor(wire)
        try loadState(state, into: restored)
        #expect(savedState(restored) == state && !wire.level)
        restored.resume()
        #expect(wire.level, "midnight was while it stood")
        #expect(bench.read(ClockBench.c, of: restored) & Self.alarm != 0 && !wire.level)
    }

    @Test func aRaisedLineIsRaisedAfterAnUpdate() throws {
        enable(Self.updateEnded)
        bench.advance(seconds: 1)
        // A register is written: the line is seen to.
        enable(Self.updateEnded)
        #expect(bench.wire.level)
        bench.machine.vm.stop()
        let wire = Wire()
        let restored = bench.successor(wire)
        try loadState(savedState(bench.clock), into: restored)
        #expect(wire.level)
    }
}
