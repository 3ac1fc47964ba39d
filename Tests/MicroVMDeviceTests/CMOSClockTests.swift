import BatonRuntime
import MicroVM
import Testing

/// The time in the registers, and the memory.
@Suite struct CMOSClockTests {
    let bench: ClockBench
    init() throws { bench = try ClockBench() }

    @Test func startsAsQEMUs() {
        #expect(bench.read(ClockBench.a) == 0x26)
        #expect(bench.read(ClockBench.b) == 0x02)
        #expect(bench.read(ClockBench.c) == 0)
        #expect(bench.read(0x0d) == 0x80)
        #expect(bench.readTime() == [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20])
        #expect(bench.clock.mmioRead(offset: 0, width: 1) == 0xff, "the index cannot be read")
    }

    @Test func firmwareFindsTheSizesOfMemory() throws {
        func sizes(_ below: UInt64, _ above: UInt64) -> [UInt64] {
            let clock = CMOSClock(
                loop: bench.machine.vm.loop, line: bench.wire.line, memoryBelow4G: below, memoryAbove4G: above,
                wallClock: { 0 })
            func number(_ indices: [UInt8]) -> UInt64 {
                indices.reversed().reduce(0) { $0 << 8 | UInt64(bench.read($1, of: clock)) }
            }
            return [[0x15, 0x16], [0x17, 0x18], [0x30, 0x31], [0x34, 0x35], [0x5b, 0x5c, 0x5d]].map(number)
        }
        #expect(sizes(3 << 30, 5 << 30) == [640, 0xffff, 0xffff, 0xbf00, 0x14000])
        #expect(sizes(128 << 20, 0) == [640, 0xffff, 0xffff, 0x700, 0])
        #expect(sizes(16 << 20, 0) == [640, 15 << 10, 15 << 10, 0, 0])
        #expect(sizes(1 << 20, 0) == [640, 0, 0, 0, 0])
        #expect(sizes(256 << 10, 0) == [256, 0, 0, 0, 0])
    }

    @Test func goesOnWithTheWallClock() {
        bench.advance(nanoseconds: 499_999_999)
        #expect(bench.read(ClockBench.second) == 0x58)
        bench.advance(nanoseconds: 1)
        #expect(bench.read(ClockBench.second) == 0x59)
        bench.advance(seconds: 1)
        #expect(bench.readTime() == [0, 0, 0, 0x06, 0x01, 0x03, 0x24, 0x20], "1 March of a leap year")
    }

    @Test func tellsEveryTimeInEveryFormat() {
        var random = Randomness(seed: 1)
        for _ in 0..<2000 {
            // 1678 to 2261.
            let second = Int64.random(in: -9_200_000_000...9_200_000_000, using: &random)
            bench.wall.now = second * 1_000_000_000 + Int64.random(in: 0..<1_000_000_000, using: &random)
            for format in [0, ClockBench.binary, ClockBench.hours24, ClockBench.binary | ClockBench.hours24] {
                bench.write(ClockBench.b, format)
                let expected = ClockBench.registers(
                    second, binary: format & ClockBench.binary != 0, hours24: format & ClockBench.hours24 != 0)
                #expect(bench.readTime() == expected, "\(second) in format \(format)")
            }
        }
    }

    @Test func takesTheTimeThatLinuxSets() {
        bench.advance(nanoseconds: -200_000_000)
        // 31 December 1999, 23:59:59.
        bench.setTime([0x59, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x19])
        #expect(bench.readTime() == [0x59, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x19])
        // The divider was held, so that half a second is over.
        bench.advance(nanoseconds: 499_999_999)
        #expect(bench.read(ClockBench.second) == 0x59)
        bench.advance(nanoseconds: 1)
        #expect(bench.readTime() == [0, 0, 0, 0x07, 0x01, 0x01, 0x00, 0x20])
        bench.advance(seconds: 86_400)
        #expect(bench.readTime() == [0, 0, 0, 0x01, 0x02, 0x01, 0x00, 0x20])
    }

    @Test func takesTwelveHours() {
        bench.write(ClockBench.b, ClockBench.binary)
        for hour in 0..<24 {
            let half: UInt8 = hour >= 12 ? 0x80 : 0
            bench.setTime([0, 0, UInt8((hour + 11) % 12 + 1) | half, 1, 1, 1, 24, 20])
            bench.write(ClockBench.b, ClockBench.binary | ClockBench.hours24)
            #expect(bench.read(ClockBench.hour) == UInt8(hour))
            bench.write(ClockBench.b, ClockBench.binary)
        }
    }

    @Test func aRunningClockTakesSingleRegisters() {
        bench.write(ClockBench.minute, 0x07)
        #expect(bench.readTime() == [0x58, 0x07, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20])
        bench.advance(nanoseconds: 500_000_000)
        #expect(bench.read(ClockBench.second) == 0x59, "how much of the second was over stays")
        bench.write(0x37, 0x19)
        #expect(bench.read(0x32) == 0x19 && bench.read(0x37) == 0x19, "the PS/2's century")
    }

    @Test func settingStopsTheClock() {
        bench.write(ClockBench.b, ClockBench.set | ClockBench.hours24)
        bench.advance(seconds: 100)
        #expect(bench.readTime() == [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20])
        bench.write(ClockBench.b, ClockBench.hours24)
        #expect(bench.read(ClockBench.second) == 0x58)
        bench.advance(nanoseconds: 500_000_000)
        #expect(bench.read(ClockBench.second) == 0x59)
    }

    @Test func aHeldDividerStopsTheClock() {
        bench.advance(nanoseconds: 200_000_000)
        bench.write(ClockBench.a, 0x66)
        bench.advance(seconds: 100)
        #expect(bench.read(ClockBench.second) == 0x58)
        bench.write(ClockBench.a, 0x26)
        bench.advance(nanoseconds: 499_999_999)
        #expect(bench.read(ClockBench.second) == 0x58)
        bench.advance(nanoseconds: 1)
        #expect(bench.read(ClockBench.second) == 0x59)
    }

    @Test func anyRegistersAreATime() {
        bench.write(ClockBench.b, ClockBench.binary | ClockBench.hours24)
        var random = Randomness(seed: 2)
        for _ in 0..<5000 {
            let registers = (0..<8).map { _ in UInt8.random(in: 0...255, using: &random) }
            bench.setTime(registers)
            let second = ClockBench.seconds(ofBinary: registers)
            #expect(bench.readTime() == ClockBench.registers(second, binary: true), "\(registers)")
        }
    }

    @Test func anUpdateIsAnnounced() {
        func isUpdating() -> Bool { bench.read(ClockBench.a) & 0x80 != 0 }
        #expect(!isUpdating())
        bench.advance(nanoseconds: 500_000_000 - 244_142)
        #expect(!isUpdating())
        bench.advance(nanoseconds: 1)
        #expect(isUpdating())
        bench.write(ClockBench.b, ClockBench.set)
        #expect(!isUpdating(), "no update while the guest sets the time")
        bench.write(ClockBench.b, ClockBench.hours24)
        bench.advance(nanoseconds: 244_141)
        #expect(!isUpdating())
        bench.write(ClockBench.a, 0xa6)
        #expect(bench.read(ClockBench.a) == 0x26, "the bit cannot be written")
    }

    @Test func memoryKeepsWhatIsWritten() {
        for index in UInt8(0x0e)...0x7f where index != 0x32 && index != 0x37 {
            bench.write(index, index ^ 0x5a)
            #expect(bench.read(index) == index ^ 0x5a)
        }
        bench.write(0x0d, 0)
        #expect(bench.read(0x0d) == 0x80)
        // The index and its byte at once; the index's highest bit is the NMI's.
        bench.clock.mmioWrite(offset: 0, width: 2, value: 0x77_c0)
        #expect(bench.read(0x40) == 0x77)
        #expect(bench.clock.mmioRead(offset: 0, width: 2) == 0x77ff)
    }

    @Test func aResetKeepsTimeAndMemory() {
        bench.setTime([0x30, 0x20, 0x10, 0x01, 0x02, 0x03, 0x04, 0x20])
        bench.write(0x0f, 5)
        bench.write(0x40, 0x77)
        bench.write(ClockBench.b, 0x7a)
        bench.advance(seconds: 10)
        bench.clock.reset()
        #expect(bench.read(ClockBench.b) == 0x02 && bench.read(ClockBench.c) == 0 && !bench.wire.level)
        #expect(bench.read(0x0f) == 0 && bench.read(0x40) == 0x77)
        #expect(bench.readTime()[0...2] == [0x40, 0x20, 0x10])
    }

    // MARK: Update

    @Test func timeNeitherJumpsNorStandsOverAnUpdate() throws {
        bench.setTime([0x30, 0x20, 0x10, 0x01, 0x02, 0x03, 0x04, 0x20])
        bench.advance(nanoseconds: 250_000_000)
        bench.machine.vm.stop()
        let state = savedState(bench.clock)
        let wire = Wire()
        let restored = bench.successor(wire)
        bench.advance(seconds: 7)
        try loadState(state, into: restored)
        #expect(savedState(restored) == state)
        restored.resume()
        // Three quarters of the second were over.
        bench.advance(nanoseconds: 249_999_999)
        #expect(bench.read(ClockBench.second, of: restored) == 0x37)
        bench.advance(nanoseconds: 1)
        #expect(bench.readTime(of: restored)[0...2] == [0x38, 0x20, 0x10])
    }

    @Test func badStatesAreRefused() throws {
        let clock = bench.clock
        func memory(_ index: Int, _ value: UInt8) throws -> FieldValue {
            var bytes = try reader(of: savedState(clock), for: clock).bytes("memory")
            bytes[index] = value
            return .bytes(bytes)
        }
        for name in [
            "index", "memory", "happened", "offset-seconds", "offset-nanoseconds", "settled-second", "settled-period",
        ] {
            #expect(try refuses(clock, name, .nothing), "\(name) is missing")
        }
        #expect(try refuses(clock, "more", .number(0)))
        #expect(try refuses(clock, "index", .number(0x80)))
        #expect(try refuses(clock, "memory", .bytes(Array(repeating: 0, count: 127))))
        #expect(try refuses(clock, "memory", .bytes(Array(repeating: 0, count: 129))))
        #expect(try refuses(clock, "memory", memory(0x0a, 0xa6)))
        #expect(try refuses(clock, "memory", memory(0x0b, 0x92)))
        #expect(try refuses(clock, "memory", memory(0x0c, 0x10)))
        #expect(try refuses(clock, "memory", memory(0x0d, 0)))
        #expect(try refuses(clock, "happened", .number(0x80)))
        #expect(try refuses(clock, "offset-nanoseconds", .number(1_000_000_000)))
        for name in ["offset-seconds", "settled-second"] {
            let farthest: Int64 = 1 << 41
            for value in [Int64.max, Int64.min, farthest + 1, -farthest - 1] {
                #expect(try refuses(clock, name, .number(UInt64(bitPattern: value))), "\(name) \(value)")
            }
        }
        #expect(try !refuses(clock, "memory", memory(0x0b, 0x82)))
    }
}
