/// A second of the Gregorian calendar, without a time zone.
struct CalendarTime: Equatable {
    var year: Int
    /// 1 to 12.
    var month: Int
    /// 1 to 31.
    var day: Int
    /// 0 to 23.
    var hour: Int
    var minute: Int
    var second: Int

    init(year: Int, month: Int, day: Int, hour: Int, minute: Int, second: Int) {
        (self.year, self.month, self.day) = (year, month, day)
        (self.hour, self.minute, self.second) = (hour, minute, second)
    }

    /// - Parameter seconds: since the beginning of 1970, up to 2^50 before or after it.
    init(secondsSince1970 seconds: Int64) {
        let (days, time) = Int(seconds).dividedDown(by: 86_400)
        // Counted from 1 March of the year 0: a leap day then ends a year.
        let count = days + CalendarTime.daysTo1970
        var start = (count * 400).dividedDown(by: 146_097).quotient
        while count < CalendarTime.daysBefore(marchOf: start) { start -= 1 }
        while count >= CalendarTime.daysBefore(marchOf: start + 1) { start += 1 }
        let dayOfYear = count - CalendarTime.daysBefore(marchOf: start)
        // Five months from March or August on have 153 days.
        let months = (5 * dayOfYear + 2) / 153
        day = dayOfYear - (153 * months + 2) / 5 + 1
        month = months < 10 ? months + 3 : months - 9
        year = months < 10 ? start : start + 1
        hour = time / 3600
        minute = time / 60 % 60
        second = time % 60
    }

    /// Fields that are too large or small count on into the next ones: 31 April is 1 May.
    var secondsSince1970: Int64 {
        let (years, months) = (month - 3).dividedDown(by: 12)
        let days = CalendarTime.daysBefore(marchOf: year + years) + (153 * months + 2) / 5 + day - 1
        return Int64((days - CalendarTime.daysTo1970) * 86_400 + hour * 3600 + minute * 60 + second)
    }

    /// The day of the week of a second since 1970, 1 (Sunday) to 7.
    static func weekday(secondsSince1970 seconds: Int64) -> Int {
        // 1 January 1970 was a Thursday.
        (Int(seconds).dividedDown(by: 86_400).quotient + 4).dividedDown(by: 7).remainder + 1
    }

    /// Days from 1 March of the year 0 to 1 January 1970.
    private static let daysTo1970 = 719_468

    /// Days from 1 March of the year 0 to 1 March of `year`.
    private static func daysBefore(marchOf year: Int) -> Int {
        365 * year + year.dividedDown(by: 4).quotient - year.dividedDown(by: 100).quotient
            + year.dividedDown(by: 400).quotient
    }
}

extension Int {
    /// The quotient rounded down, and the remainder from 0 on. `divisor` is positive.
    func dividedDown(by divisor: Int) -> (quotient: Int, remainder: Int) {
        let (quotient, remainder) = quotientAndRemainder(dividingBy: divisor)
        return remainder < 0 ? (quotient - 1, remainder + divisor) : (quotient, remainder)
    }
}
