import BatonRuntime

extension Hart {
    /// Runs up to `count` instructions, or fewer when the hart begins to wait
    /// or something asks for the event loop.
    /// - Returns: what was used of `count`.
    func run(_ count: Int64) -> Int64 {
        guard state.pointee.hsm != .stopped else { return 0 }
        updateTimers()
        var left = count
        while left > 0 && !accelerator.shouldYield && state.pointee.hsm != .stopped {
            if state.pointee.waiting {
                guard hasWakeUp else { break }
                wakeUp()
            }
            if state.pointee.hasEvents { accelerator.sbi?.events.deliver(to: self) }
            state.takeInterrupt()
            state.pointee.retiredAtEnd &+= UInt64(left)
            state.pointee.budget = left
            state.pointee.withheld = 0
            interpret(state)
            left = state.pointee.withheld
        }
        // Other harts and devices may store to it now.
        state.pointee.reservation = HartState.noReservation
        return count - left
    }

    /// WFI ends with any interrupt that is pending and enabled in `mie`,
    /// whether or not it may be taken, and with an event of the SBI.
    var hasWakeUp: Bool { state.pointee.pendingBits & state.pointee.mie != 0 || state.pointee.hasEvents }

    /// Has nothing to do until an interrupt comes.
    var isIdle: Bool { state.pointee.hsm == .stopped || (state.pointee.waiting && !hasWakeUp) }
}
