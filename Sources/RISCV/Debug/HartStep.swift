import BatonRuntime

extension Hart {
    /// Carries out one instruction, or enters the handler of the trap that it causes, with `HartState.steps` set.
    /// - Returns: false when the hart waits for an interrupt, or is stopped.
    func runOne(takesInterrupts: Bool) -> Bool {
        guard state.pointee.hsm != .stopped else { return false }
        updateTimers()
        if state.pointee.waiting {
            guard hasWakeUp else { return false }
            wakeUp()
        }
        if state.pointee.hasEvents { accelerator.sbi?.events.deliver(to: self) }
        if takesInterrupts { state.takeInterrupt() }
        state.pointee.retiredAtEnd &+= 1
        state.pointee.budget = 1
        state.pointee.withheld = 0
        interpret(state)
        state.pointee.reservation = HartState.noReservation
        return true
    }
}

/// What `fillFetch`, `fillData`, `load` and `store` ask where `isDebugged` is set: off the loop, and not elsewhere.
extension UnsafeMutablePointer where Pointee == HartState {
    private func withDebugger<Result>(_ body: (HartDebugger, Hart) -> Result) -> Result? {
        pointee.owner?._withUnsafeGuaranteedRef { body($0.accelerator.debugger, $0) }
    }

    /// Whether the instruction at an address is to be fetched by itself, as an op of no page.
    @inline(never)
    func fetchesApart(_ address: UInt64) -> Bool {
        pointee.steps || withDebugger { debugger, _ in debugger.isApart(address) } ?? false
    }

    /// The op that ends the loop at an address with a breakpoint; nil where there is none. A step does not stop at the
    /// one that it begins at or comes to.
    @inline(never)
    func breakpointOp(_ address: UInt64) -> OpPointer? {
        let stops =
            !pointee.steps
            && withDebugger { debugger, hart in
                guard debugger.hasBreakpoint(address) else { return false }
                debugger.note(DebugStop(cpu: hart.index))
                return true
            } ?? false
        guard stops else { return nil }
        leaveLoop()
        let op = scratch + 3
        op.pointee = DecodedOp(code: .refetch)
        return op
    }

    /// Whether accesses to the page of an address are to be looked at one by one.
    @inline(never)
    func isWatched(page address: UInt64) -> Bool {
        withDebugger { debugger, _ in debugger.isWatched(page: address) } ?? false
    }

    /// An access will succeed.
    @inline(never)
    func noteAccess(_ address: UInt64, _ kind: AccessKind, size: Int) {
        _ = withDebugger { $0.noteAccess($1, address, size: size, isStore: kind == .store) }
    }
}
