import BatonRuntime

/// A hart's registers by the numbers of `HartDescription`.
extension Hart {
    /// Nil when there is none of that number.
    func debugRegister(_ number: Int) -> UInt64? {
        switch HartDescription.register(number) {
        case .integer(let index): state.x[index]
        case .programCounter: state.pointee.pc
        case .float(let index): state.f[index]
        case .privilege: UInt64(state.pointee.mode)
        case .csr(let number): debugCSR(number)
        case nil: nil
        }
    }

    /// - Returns: false when there is none of that number, or it does not take the value.
    func setDebugRegister(_ number: Int, _ value: UInt64) -> Bool {
        switch HartDescription.register(number) {
        case .integer(let index): if index != 0 { state.x[index] = value }
        case .programCounter:
            state.pointee.pc = value & ~1
            // It goes on from there, whatever it waited for.
            state.pointee.waiting = state.pointee.waiting && state.pointee.hsm != .started
        case .float(let index): state.f[index] = value
        case .privilege:
            guard [0, 1, 3].contains(value) else { return false }
            state.setMode(UInt8(value))
        case .csr(let number): return setDebugCSR(number, value)
        case nil: return false
        }
        return true
    }

    /// A CSR as machine mode reads it; nil when there is none.
    func debugCSR(_ number: Int) -> UInt64? {
        asMachineMode(number) { state.readCSR(number) }
    }

    private func setDebugCSR(_ number: Int, _ value: UInt64) -> Bool {
        guard number >> 10 != 3, debugCSR(number) != nil else { return false }
        return asMachineMode(number) { state.writeCSR(number, value) } != nil
    }

    /// Calls `body` in machine mode, and for a register of the floating point unit with that on. Both are as before
    /// afterwards.
    private func asMachineMode<Result>(_ number: Int, _ body: () -> Result) -> Result {
        let mode = state.pointee.mode
        let status = state.pointee.mstatus
        let isFloat = (CSR.fflags...CSR.fcsr).contains(number)
        state.pointee.mode = Mode.machine
        if isFloat { state.pointee.mstatus |= MStatus.fs }
        let result = body()
        if isFloat {
            state.pointee.mstatus = status
            state.pointee.floatReady = status & MStatus.fs == MStatus.fs
            state.updateFloatFast()
        }
        state.setMode(mode)
        return result
    }
}
