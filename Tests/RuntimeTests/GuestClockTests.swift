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
        clock.restore(monotonicOffset: clock.monotonicOffset)
        #expect(clock.gap == 0, "on the same boot it follows the host's clock")
    }

    @Test("One that stands with the VM is not put forward")
    func standing() {
        let clock = GuestClock()
        clock.stopsWithVM = true
        clock.restore(now: 5_000_000_000, wallClock: 7_000_000_000, passed: 60_000_000_000)
        #expect(clock.gap == 0 && clock.now == 5_000_000_000 && clock.wallClock == 7_000_000_000)
    }
}
