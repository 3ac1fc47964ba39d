import BatonRuntime
import CBaton
import Glibc
import Testing

/// Nobody holds the loop. Counted, not timed: what has been done when somebody else's turn comes.
@Suite("Event loop") struct EventLoopTests {
    /// Takes its time.
    private func burn(milliseconds: Int64) {
        let end = EventLoop.now + milliseconds * 1_000_000
        while EventLoop.now < end {}
    }

    /// Descriptors that are always ready.
    private final class Ready {
        private(set) var fds: [Int32] = []
        init(_ count: Int) {
            for _ in 0..<count {
                let fd = cbaton_eventfd()
                var one: UInt64 = 1
                precondition(fd >= 0 && write(fd, &one, 8) == 8)
                fds.append(fd)
            }
        }
        deinit { for fd in fds { close(fd) } }
    }

    @Test func aTimerThatIsArmedInThePastDoesNotKeepItsRoundGoing() throws {
        let loop = try EventLoop()
        var fired = 0
        func arm() {
            loop.schedule(at: EventLoop.now - 1_000_000) {
                fired += 1
                if fired < 1000 { arm() }
            }
        }
        arm()
        for round in 1...3 {
            loop.poll(timeout: 0)
            #expect(fired == round)
        }
    }

    @Test func timersThatAreCancelledAreForgotten() throws {
        let loop = try EventLoop()
        for _ in 0..<1000 { loop.schedule(at: EventLoop.now + 1_000_000_000_000) {}.cancel() }
        #expect(loop.timerCount == 0)
        var fired = false
        loop.schedule(at: 0) { fired = true }
        loop.poll(timeout: 0)
        #expect(fired && loop.timerCount == 0)
    }

    @Test func slowHandlersTakeTurns() throws {
        let loop = try EventLoop()
        let ready = Ready(8)
        var order: [Int] = []
        for (index, fd) in ready.fds.enumerated() {
            try loop.watch(fd, .readable) { _ in
                order.append(index)
                burn(milliseconds: 2)
            }
        }
        loop.poll(timeout: 0)
        #expect(order.count <= 2, "the guest waited for \(order.count) handlers")
        while order.count < 16 { loop.poll(timeout: 0) }
        // Each had its turn before any had its second.
        #expect(Set(order.prefix(8)).count == 8 && Set(order.dropFirst(8).prefix(8)).count == 8, "\(order)")
        for fd in ready.fds { loop.unwatch(fd) }
    }

    @Test func quickHandlersAllRunInOneTurn() throws {
        let loop = try EventLoop()
        let ready = Ready(8)
        var runs = 0
        for fd in ready.fds { try loop.watch(fd, .readable) { _ in runs += 1 } }
        var best = 0
        // The process may be stopped for a while by others.
        for _ in 0..<20 where best < 8 {
            runs = 0
            loop.poll(timeout: 0)
            best = max(best, runs)
        }
        #expect(best == 8)
        for fd in ready.fds { loop.unwatch(fd) }
    }

    @Test func postponedWorkLeavesTheOthersTheirTurns() throws {
        let loop = try EventLoop()
        let ready = Ready(1)
        var turns = 0
        try loop.watch(ready.fds[0], .readable) { _ in turns += 1 }
        var done = [0, 0]
        func work(_ index: Int) {
            done[index] += 1
            burn(milliseconds: 5)
            #expect(!loop.hasTimeLeft)
            #expect(!loop.mayGoOn(after: 1 << 20))
            loop.postpone { work(index) }
        }
        for index in 0..<2 { loop.postpone { work(index) } }
        for round in 1...6 {
            // Nobody waits while there is work.
            loop.poll(timeout: -1)
            #expect(turns == round && done[0] + done[1] == round)
        }
        #expect(done == [3, 3])
        loop.unwatch(ready.fds[0])
    }
}
