import BatonRuntime

/// What the passing of time makes happen: update-ended, alarm and periodic interrupts.
extension CMOSClock {
    /// The time base of the periodic interrupt.
    private static let ticksPerSecond: Int64 = 32_768
    /// The longest time, in nanoseconds, until a timer looks at the wall clock again: the host may set it meanwhile,
    /// and corrects its speed by up to 500 ppm, which the loop's timers do not follow.
    private static let longestWait: Int64 = 600_000_000_000

    /// A period of the periodic interrupt in ticks, a power of two up to half a second; nil for none.
    private var period: Int64? {
        let rate = Int64(memory[CMOSIndex.a] & 0x0f)
        guard rate > 0, isDividing else { return nil }
        // The two rates above 8192 Hz are of another time base; with this one they are the slow 256 and 128 Hz.
        return 1 << (rate < 3 ? rate + 6 : rate - 1)
    }

    /// How many periods have begun.
    private func periods(at time: (second: Int64, nanosecond: Int64), _ period: Int64) -> UInt64 {
        let ticks = time.nanosecond * CMOSClock.ticksPerSecond / Int64(CMOSClock.nanosecondsPerSecond)
        return UInt64(bitPattern: time.second &* (CMOSClock.ticksPerSecond / period) &+ ticks / period)
    }

    /// Brings `happened` up to now.
    func settle() {
        let time = now
        if isCounting {
            // A clock that was set back has no seconds to make up for.
            if time.second > settledSecond {
                happened.insert(.updateEnded)
                if let alarm = alarm(after: settledSecond), alarm <= time.second { happened.insert(.alarm) }
            }
            settledSecond = time.second
        }
        if let period {
            let periods = periods(at: time, period)
            if periods != settledPeriod { happened.insert(.periodic) }
            settledPeriod = periods
        }
    }

    /// Begins to count from now, after the guest has changed the time or how it is counted.
    func settleAnew() {
        let time = now
        settledSecond = time.second
        settledPeriod = period.map { periods(at: time, $0) } ?? 0
    }

    /// Makes line and timer follow the registers. To be called when `happened` is up to date.
    func serve() {
        updateLine()
        timer?.cancel()
        timer = nil
        guard isRunning, let wait = nextWait else { return }
        timer = loop.schedule(at: EventLoop.now + min(wait, CMOSClock.longestWait)) { [weak self] in
            self?.settle()
            self?.serve()
        }
    }

    /// Nanoseconds until the first of the interrupts that are enabled and have not happened; nil when there is none.
    private var nextWait: Int64? {
        let awaited = enabled.subtracting(happened)
        guard !awaited.isEmpty else { return nil }
        let time = now
        let perSecond = Int64(CMOSClock.nanosecondsPerSecond)
        var next: Int64?
        func wait(_ nanoseconds: Int64) { next = min(next ?? nanoseconds, nanoseconds) }
        if isCounting {
            if awaited.contains(.updateEnded) { wait(perSecond - time.nanosecond) }
            if awaited.contains(.alarm), let alarm = alarm(after: time.second) {
                wait((alarm - time.second) * perSecond - time.nanosecond)
            }
        }
        if awaited.contains(.periodic), let period {
            let ticks = time.nanosecond * CMOSClock.ticksPerSecond / perSecond
            let nextTicks = (ticks / period + 1) * period
            // Rounded up: the tick has come then.
            wait((nextTicks * perSecond + CMOSClock.ticksPerSecond - 1) / CMOSClock.ticksPerSecond - time.nanosecond)
        }
        return next
    }
}
