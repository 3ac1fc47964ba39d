import BatonRuntime
import Testing

@Suite("The guest's clock") struct GuestClockTests {
    @Test("After another boot of the host it is put forward by what has passed, and says by how much")
    func anotherBoot() {
        let clock = GuestClock()
        #expect(clock.gap == 0)
        clock.restore(now: 5_000_000_000, wallClock: 0, passed: 60_000_000_000)
        #expect(clock.gap == 60_000_000_000)
        #expect(clock.now >= 65_000_000_000)
        clock.restore(monotonicOffset: clock.monotonicOffset, now: clock.now)
        #expect(clock.gap == 0, "on the same boot it follows the host's clock")
    }

    @Test("One that stands with the VM is not put forward")
    func standing() {
        let clock = GuestClock()
        clock.stopsWithVM = true
        clock.restore(now: 5_000_000_000, wallClock: 7_000_000_000, passed: 60_000_000_000)
        #expect(clock.gap == 0 && clock.now == 5_000_000_000 && clock.wallClock == 7_000_000_000)
    }

    @Test("A long time comes in steps, where a guest would take its CPUs to have stood still")
    func steps() {
        let clock = GuestClock(), step = GuestClock.longestStep
        clock.makesUpInSteps = true
        clock.restore(now: 5_000_000_000, wallClock: 0, passed: 2 * step + 3)
        #expect(clock.gap == 2 * step + 3 && clock.owed == step + 3)
        #expect((5_000_000_000 + step..<5_000_000_000 + step + step / 2).contains(clock.now))
        let whole = clock.monotonicOffset
        clock.makeUp()
        #expect(clock.owed == 3 && clock.monotonicOffset == whole)
        clock.makeUp()
        #expect(clock.owed == 0 && clock.monotonicOffset == whole)
        #expect(clock.now >= 5_000_000_000 + 2 * step + 3)
        clock.makeUp()
        #expect(clock.monotonicOffset == whole)

        // In the same boot of the host too, and not for a short time.
        clock.restore(monotonicOffset: whole, now: clock.now - step - 1_000_000_000)
        #expect((1_000_000_000..<2_000_000_000).contains(clock.owed) && clock.monotonicOffset == whole)
        clock.restore(monotonicOffset: whole, now: clock.now - step / 2)
        #expect(clock.owed == 0 && clock.monotonicOffset == whole)
    }
}
