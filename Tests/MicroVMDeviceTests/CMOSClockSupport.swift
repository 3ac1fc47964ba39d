import BatonRuntime
import Glibc
import MicroVM

/// A clock whose wall clock the test sets.
final class ClockBench {
    final class WallClock { var now: Int64 = 1_709_251_198_500_000_000 }
    /// Of the clock's first moment: 29 February 2024, 23:59:58, and a half.
    static let start: Int64 = 1_709_251_198

    let machine: DeviceMachine
    let wall = WallClock()
    let wire = Wire()
    let clock: CMOSClock

    init() throws {
        machine = try DeviceMachine()
        clock = ClockBench.clock(machine, wire, wall)
        try machine.vm.add(clock)
        try machine.vm.start()
    }

    static func clock(_ machine: DeviceMachine, _ wire: Wire, _ wall: WallClock) -> CMOSClock {
        CMOSClock(
            loop: machine.vm.loop, line: wire.line, memoryBelow4G: 3 << 30, memoryAbove4G: 5 << 30,
            wallClock: { wall.now })
    }

    /// Another clock, of a process that takes this one over.
    func successor(_ otherWire: Wire) -> CMOSClock { ClockBench.clock(machine, otherWire, wall) }

    func advance(seconds: Int64 = 0, nanoseconds: Int64 = 0) { wall.now += seconds * 1_000_000_000 + nanoseconds }

    // MARK: The guest

    func read(_ index: UInt8, of clock: CMOSClock? = nil) -> UInt8 {
        let clock = clock ?? self.clock
        clock.mmioWrite(offset: 0, width: 1, value: UInt64(index))
        return UInt8(clock.mmioRead(offset: 1, width: 1))
    }

    func write(_ index: UInt8, _ value: UInt8) {
        clock.mmioWrite(offset: 0, width: 1, value: UInt64(index))
        clock.mmioWrite(offset: 1, width: 1, value: UInt64(value))
    }

    static let second: UInt8 = 0
    static let minute: UInt8 = 2
    static let hour: UInt8 = 4
    static let a: UInt8 = 0x0a
    static let b: UInt8 = 0x0b
    static let c: UInt8 = 0x0c
    static let set: UInt8 = 0x80
    static let binary: UInt8 = 0x04
    static let hours24: UInt8 = 0x02

    /// Registers of the date and time, seconds first; weekday, day, month, year, century.
    static let timeRegisters: [UInt8] = [0, 2, 4, 6, 7, 8, 9, 0x32]

    func readTime(of clock: CMOSClock? = nil) -> [UInt8] {
        ClockBench.timeRegisters.map { read($0, of: clock) }
    }

    /// Sets date and time in the order that Linux does: within SET and a held divider.
    func setTime(_ registers: [UInt8]) {
        let control = read(ClockBench.b)
        write(ClockBench.b, control | ClockBench.set)
        let rate = read(ClockBench.a)
        write(ClockBench.a, rate | 0x70)
        for (index, value) in zip(ClockBench.timeRegisters, registers) { write(index, value) }
        write(ClockBench.b, control)
        write(ClockBench.a, rate)
    }

    // MARK: What the C library makes of a time

    static func registers(_ seconds: Int64, binary: Bool = false, hours24: Bool = true) -> [UInt8] {
        var time = time_t(seconds)
        var fields = tm()
        gmtime_r(&time, &fields)
        func number(_ value: Int32) -> UInt8 { UInt8(binary ? value : value / 10 * 16 + value % 10) }
        var hour = number(fields.tm_hour)
        if !hours24 {
            let half = fields.tm_hour % 12
            hour = number(half == 0 ? 12 : half) | (fields.tm_hour < 12 ? 0 : 0x80)
        }
        // Before the year 0 comes 9999.
        let year = ((fields.tm_year + 1900) % 10_000 + 10_000) % 10_000
        return [
            number(fields.tm_sec), number(fields.tm_min), hour, number(fields.tm_wday + 1), number(fields.tm_mday),
            number(fields.tm_mon + 1), number(year % 100), number(year / 100),
        ]
    }

    /// What binary registers in any state mean.
    static func seconds(ofBinary registers: [UInt8]) -> Int64 {
        var fields = tm()
        fields.tm_sec = Int32(registers[0])
        fields.tm_min = Int32(registers[1])
        fields.tm_hour = Int32(registers[2] & 0x7f)
        fields.tm_mday = Int32(registers[4])
        fields.tm_mon = Int32(registers[5]) - 1
        fields.tm_year = Int32(registers[7]) * 100 + Int32(registers[6]) - 1900
        return Int64(timegm(&fields))
    }
}
