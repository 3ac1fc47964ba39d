/// The value of a 32-bit result in a 64-bit register.
@inline(__always)
func signExtended(_ value: UInt32) -> UInt64 { UInt64(bitPattern: Int64(Int32(bitPattern: value))) }

@inline(__always)
func signed(_ value: UInt64) -> Int64 { Int64(bitPattern: value) }

/// The low half of a register, for the 32-bit instructions.
@inline(__always)
func low(_ value: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: value) }

@inline(__always)
func signedLow(_ value: UInt64) -> Int32 { Int32(truncatingIfNeeded: value) }

@inline(__always)
func multiplyHigh(_ a: UInt64, _ b: UInt64) -> UInt64 {
    UInt64(bitPattern: signed(a).multipliedFullWidth(by: signed(b)).high)
}

@inline(__always)
func multiplyHighSignedUnsigned(_ a: UInt64, _ b: UInt64) -> UInt64 {
    a.multipliedFullWidth(by: b).high &- (Int64(bitPattern: a) < 0 ? b : 0)
}

// Division by zero and overflow have results and no traps (unprivileged
// specification, "Division Operations").

@inline(__always)
func divide(_ a: UInt64, _ b: UInt64) -> UInt64 {
    if b == 0 { return UInt64.max }
    if b == UInt64.max { return 0 &- a }
    return UInt64(bitPattern: Int64(bitPattern: a).dividingFast(by: Int64(bitPattern: b)))
}

@inline(__always)
func divideUnsigned(_ a: UInt64, _ b: UInt64) -> UInt64 { b == 0 ? UInt64.max : a / b }

@inline(__always)
func remainder(_ a: UInt64, _ b: UInt64) -> UInt64 {
    if b == 0 { return a }
    if b == UInt64.max { return 0 }
    return UInt64(bitPattern: Int64(bitPattern: a).remainderFast(by: Int64(bitPattern: b)))
}

@inline(__always)
func remainderUnsigned(_ a: UInt64, _ b: UInt64) -> UInt64 { b == 0 ? a : a % b }

@inline(__always)
func divide32(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let a = Int32(truncatingIfNeeded: a)
    let b = Int32(truncatingIfNeeded: b)
    if b == 0 { return UInt64.max }
    if b == -1 { return signExtended(0 &- UInt32(bitPattern: a)) }
    return UInt64(bitPattern: Int64(a.dividingFast(by: b)))
}

@inline(__always)
func divideUnsigned32(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let b = UInt32(truncatingIfNeeded: b)
    return b == 0 ? UInt64.max : signExtended(UInt32(truncatingIfNeeded: a) / b)
}

@inline(__always)
func remainder32(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let a = Int32(truncatingIfNeeded: a)
    let b = Int32(truncatingIfNeeded: b)
    if b == 0 { return UInt64(bitPattern: Int64(a)) }
    if b == -1 { return 0 }
    return UInt64(bitPattern: Int64(a.remainderFast(by: b)))
}

@inline(__always)
func remainderUnsigned32(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let a = UInt32(truncatingIfNeeded: a)
    let b = UInt32(truncatingIfNeeded: b)
    return signExtended(b == 0 ? a : a % b)
}

extension FixedWidthInteger {
    /// Division whose operands have been checked by the caller.
    @inline(__always)
    func dividingFast(by other: Self) -> Self { dividedReportingOverflow(by: other).partialValue }
    @inline(__always)
    func remainderFast(by other: Self) -> Self { remainderReportingOverflow(dividingBy: other).partialValue }
}
