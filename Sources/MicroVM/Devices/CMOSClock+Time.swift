/// The time of day in the clock's registers.
extension CMOSClock {
    /// Whether the divider gives the clock its seconds: it is not held, and in no test mode.
    var isDividing: Bool { memory[CMOSIndex.a] & 0x70 <= 0x20 }
    /// Whether the time goes on.
    var isCounting: Bool { isDividing && memory[CMOSIndex.b] & CMOSControl.set == 0 }

    static let nanosecondsPerSecond = 1_000_000_000
    /// Nanoseconds at the end of a second in which an update is said to be in progress: 8 periods of 32,768 Hz.
    private static let update: Int64 = 244_141

    /// The guest's time: seconds since 1970, and nanoseconds of that second.
    var now: (second: Int64, nanosecond: Int64) {
        let (second, nanosecond) = Int(wallClock()).dividedDown(by: CMOSClock.nanosecondsPerSecond)
        let (more, rest) = (nanosecond + Int(offsetNanoseconds)).dividedDown(by: CMOSClock.nanosecondsPerSecond)
        return (Int64(second + more) + offsetSeconds, Int64(rest))
    }

    /// Whether the registers may change in the next quarter of a millisecond.
    var isUpdating: Bool { isCounting && now.nanosecond >= Int64(CMOSClock.nanosecondsPerSecond) - CMOSClock.update }

    /// Makes the present second half over. Which second it is, the registers say (`takeTime`).
    func startHalfSecond() {
        let nanosecond = Int(wallClock()).dividedDown(by: CMOSClock.nanosecondsPerSecond).remainder
        let wait = CMOSClock.nanosecondsPerSecond / 2 - nanosecond
        offsetNanoseconds = Int64(wait.dividedDown(by: CMOSClock.nanosecondsPerSecond).remainder)
    }

    /// Writes the time to the registers.
    func showTime() {
        let second = now.second
        let time = CalendarTime(secondsSince1970: second)
        memory[CMOSIndex.second] = encoded(time.second)
        memory[CMOSIndex.minute] = encoded(time.minute)
        if memory[CMOSIndex.b] & CMOSControl.hours24 != 0 {
            memory[CMOSIndex.hour] = encoded(time.hour)
        } else {
            memory[CMOSIndex.hour] = encoded((time.hour + 11) % 12 + 1) | (time.hour >= 12 ? 0x80 : 0)
        }
        memory[CMOSIndex.weekday] = encoded(CalendarTime.weekday(secondsSince1970: second))
        memory[CMOSIndex.day] = encoded(time.day)
        memory[CMOSIndex.month] = encoded(time.month)
        let year = time.year.dividedDown(by: 10_000).remainder
        memory[CMOSIndex.year] = encoded(year % 100)
        memory[CMOSIndex.century] = encoded(year / 100)
    }

    /// Makes the time that of the registers, which may hold anything. How much of the second has passed stays.
    func takeTime() {
        let time = CalendarTime(
            year: decoded(CMOSIndex.century) * 100 + decoded(CMOSIndex.year), month: decoded(CMOSIndex.month),
            day: decoded(CMOSIndex.day), hour: decodedHour(CMOSIndex.hour), minute: decoded(CMOSIndex.minute),
            second: decoded(CMOSIndex.second))
        offsetSeconds += time.secondsSince1970 - now.second
        settleAnew()
    }

    private var isBinary: Bool { memory[CMOSIndex.b] & CMOSControl.binary != 0 }

    /// - Parameter value: 0 to 99.
    private func encoded(_ value: Int) -> UInt8 { UInt8(isBinary ? value : (value / 10) << 4 | value % 10) }

    private func decoded(_ index: Int) -> Int { decoded(memory[index]) }

    private func decoded(_ byte: UInt8) -> Int {
        isBinary ? Int(byte) : Int(byte >> 4) * 10 + Int(byte & 0x0f)
    }

    /// The highest bit says that it is after noon, in a clock of twelve hours.
    private func decodedHour(_ index: Int) -> Int {
        let hour = decoded(memory[index] & 0x7f)
        if memory[CMOSIndex.b] & CMOSControl.hours24 != 0 { return hour }
        return hour % 12 + (memory[index] & 0x80 != 0 ? 12 : 0)
    }

    // MARK: Alarm

    /// The first second after `second` that the alarm is for; nil when its registers are no time.
    func alarm(after second: Int64) -> Int64? {
        /// Nil for a register that does not matter: its two highest bits are set.
        func wanted(_ index: Int, _ value: Int) -> Int? { memory[index] & 0xc0 == 0xc0 ? nil : value }
        let hour = wanted(CMOSIndex.hourAlarm, decodedHour(CMOSIndex.hourAlarm))
        let minute = wanted(CMOSIndex.minuteAlarm, decoded(CMOSIndex.minuteAlarm))
        let last = wanted(CMOSIndex.secondAlarm, decoded(CMOSIndex.secondAlarm))
        guard hour ?? 0 < 24, minute ?? 0 < 60, last ?? 0 < 60 else { return nil }
        var time = Int(second) + 1
        // To the beginning of the next hour, minute and second that is right. A step may leave what was right before,
        // but not after the hour has begun anew: the third round finds all three so.
        for _ in 0..<3 {
            for (unit, count, value) in [(3600, 24, hour), (60, 60, minute), (1, 60, last)] {
                guard let value else { continue }
                let (units, rest) = time.dividedDown(by: unit)
                let wait = (value - units).dividedDown(by: count).remainder
                if wait > 0 { time += wait * unit - rest }
            }
        }
        return Int64(time)
    }
}
