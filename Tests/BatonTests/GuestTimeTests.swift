import Foundation
import TestSupport
import Testing

/// What the guest's clocks show across updates, see
/// Sources/Documentation/guest-time.md.
@Suite("Guest time", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct GuestTimeTests {
    /// How long the guest is made to stand still, in s: long beside what a
    /// busy host may do to a guest that runs.
    private static let pause = 1.5
    private static let tolerance = 0.7

    private func guest(
        _ clock: String? = nil, mode: String = "restart", _ more: [String] = []
    ) throws -> CountingGuest {
        try CountingGuest(
            extra: ["-cpr-enable", mode] + (clock.map { ["-rtc", "clock=\($0)"] } ?? []) + more, guest: "clock")
    }

    private static func host(_ clock: clockid_t) -> Double {
        var time = timespec()
        clock_gettime(clock, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    /// Seconds of the guest's `mtime` and of its real-time clock.
    private func time(_ guest: CountingGuest) -> Double { Double(guest.word(2)) / 1e7 }
    private func date(_ guest: CountingGuest) -> Double { Double(guest.word(3)) / 1e9 }
    /// The longest that a timer has come too late, in s.
    private func lateness(_ guest: CountingGuest) -> Double { Double(guest.word(4)) / 1e7 }

    private func waitForWakeUps(_ guest: CountingGuest, _ count: UInt64 = 3) throws {
        try guest.waitForProgress(past: guest.count + count)
    }

    /// What the guest's clocks are ahead of the host's: the most of many
    /// readings, as a reading that comes late shows less.
    private func offsets(_ guest: CountingGuest) throws -> (time: Double, date: Double) {
        var best = (time: -Double.infinity, date: -Double.infinity)
        for _ in 0..<20 {
            try waitForWakeUps(guest, 0)
            best.time = max(best.time, time(guest) - Self.host(CLOCK_MONOTONIC))
            best.date = max(best.date, date(guest) - Self.host(CLOCK_REALTIME))
        }
        return best
    }

    /// A host that is busy may keep the guest from running for as long as a test has it stand still: what is wrong is
    /// so each time, and what was bad luck is not.
    /// - Parameter check: returns what is too late; nil if nothing is.
    private func once(in attempts: Int = 4, _ check: () throws -> String?) throws {
        for attempt in 1...attempts {
            guard let complaint = try check() else { return }
            if attempt == attempts { Issue.record("\(complaint), \(attempts) times") }
        }
    }
    private func lateness(_ guest: CountingGuest, below limit: Double) -> String? {
        lateness(guest) < limit ? nil : "a timer was late by \(lateness(guest)) s"
    }

    /// Real time has to pass: it is what the clocks are about.
    private func passTime() { usleep(UInt32(Self.pause * 1e6)) }

    private func restart(_ guest: CountingGuest) throws {
        try guest.save()
        passTime()
        try guest.exec()
        try guest.load()
    }

    private func reboot(_ guest: CountingGuest) throws {
        try guest.save(mode: "reboot")
        try guest.qmp.execute("quit")
        passTime()
        try guest.restart(["-S"])
        try guest.load(mode: "reboot")
    }

    private func savedOffset(_ guest: CountingGuest) throws -> Int {
        try guest.save()
        try guest.qmp.execute("cont")
        let tool = "\(Products.directory)/baton-ctl"
        let text = try ChildProcess.run([tool, "inspect", "--json", "--section", "clock", guest.checkpoint])
        let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        let section = try #require((object["sections"] as? [[String: Any]])?.first)
        let field = (section["fields"] as? [[String: Any]])?.first { $0["name"] as? String == "monotonic-offset-ns" }
        return try #require((field?["value"] as? NSNumber)?.intValue)
    }

    @Test("Two hundred updates leave the guest's clocks just where they were beside the host's")
    func noSkew() throws {
        let guest = try guest()
        let offset = try savedOffset(guest)
        let before = try offsets(guest)
        let start = guest.count
        for _ in 0..<200 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        }
        var after = try offsets(guest)
        let deadline = Deadline.patient
        while abs(after.time - before.time) >= 0.1 || abs(after.date - before.date) >= 0.1, !deadline.hasPassed {
            let more = try offsets(guest)
            after = (max(after.time, more.time), max(after.date, more.date))
        }
        // Each of the updates took some ms: that they are not lost shows even here.
        #expect(abs(after.time - before.time) < 0.1, "\(before.time) \(after.time)")
        #expect(abs(after.date - before.date) < 0.1, "\(before.date) \(after.date)")
        #expect(try savedOffset(guest) == offset)
        #expect(guest.word(6) == 0, "a clock has gone back")
        #expect(guest.count > start)
    }

    @Test("A pause looks like a late wake-up, and a timer due in it fires at once")
    func timersFireAtOnce() throws {
        let guest = try guest()
        let offset = try offsets(guest).time
        try once {
            guest.setWord(4, 0)
            try guest.save()
            passTime()
            try guest.exec()
            let asked = Self.host(CLOCK_MONOTONIC)
            try guest.load()
            let answered = Self.host(CLOCK_MONOTONIC)
            try waitForWakeUps(guest)
            #expect(lateness(guest) >= Self.pause - 0.02)
            let woken = Double(guest.word(5)) / 1e7 - offset
            #expect(woken > asked - 0.1)
            return woken < answered + Self.tolerance ? nil : "the guest woke \(woken - answered) s after the load"
        }
        #expect(abs(try offsets(guest).time - offset) < 0.1)
        #expect(guest.word(6) == 0)
    }

    @Test("With clock=vm the guest's clocks stand still in a restart")
    func clockStopsInARestart() throws {
        let guest = try guest("vm")
        try waitForWakeUps(guest)
        let difference = date(guest) - time(guest)
        try once {
            guest.setWord(4, 0)
            try restart(guest)
            try waitForWakeUps(guest)
            return lateness(guest, below: Self.tolerance)
        }
        #expect(abs(date(guest) - time(guest) - difference) < 0.1)
        #expect(guest.word(6) == 0)
    }

    @Test("A reboot passes as time does, or with clock=vm as none", arguments: ["host", "vm"])
    func reboots(_ clock: String) throws {
        let guest = try guest(clock, mode: "reboot")
        try waitForWakeUps(guest)
        let difference = date(guest) - time(guest)
        try once {
            guest.setWord(4, 0)
            try reboot(guest)
            try waitForWakeUps(guest)
            guard clock == "host" else { return lateness(guest, below: Self.tolerance) }
            #expect(lateness(guest) >= Self.pause - 0.02)
            return nil
        }
        #expect(abs(date(guest) - time(guest) - difference) < 0.1)
        #expect(guest.word(6) == 0)
        try guest.qmp.execute("quit")
    }

    @Test("With clock=vm time begins with the guest, and stands still as long as it is paused")
    func clockFollowsThePausedGuest() throws {
        let guest = try guest("vm")
        try once {
            try guest.qmp.execute("stop")
            guest.setWord(4, 0)
            try restart(guest)
            #expect(try guest.qmp.status() == "paused")
            passTime()
            try guest.qmp.execute("cont")
            try waitForWakeUps(guest)
            return lateness(guest, below: Self.tolerance)
        }
        try guest.qmp.execute("quit")

        try guest.restart(["-S"])
        passTime()
        let sleeps = guest.count
        let start = Self.host(CLOCK_MONOTONIC)
        try guest.qmp.execute("cont")
        try eventually("the guest has begun anew") { guest.count > 0 && guest.count != sleeps }
        // Not what has passed before.
        let time = time(guest)
        #expect(time < Self.host(CLOCK_MONOTONIC) - start + 0.5)
    }
}
