/// What Zfa adds to F and D.
extension SoftFloat {
    /// The smaller of two numbers, or a NaN if either is one; -0 is below +0.
    public static func minimum32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> UInt32 {
        UInt32(truncatingIfNeeded: FloatFormat.binary32.minimum(UInt64(a), UInt64(b), larger: false, flags: &flags))
    }

    /// The larger of two numbers, or a NaN if either is one; -0 is below +0.
    public static func maximum32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> UInt32 {
        UInt32(truncatingIfNeeded: FloatFormat.binary32.minimum(UInt64(a), UInt64(b), larger: true, flags: &flags))
    }

    /// The smaller of two numbers, or a NaN if either is one; -0 is below +0.
    public static func minimum64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.minimum(a, b, larger: false, flags: &flags)
    }

    /// The larger of two numbers, or a NaN if either is one; -0 is below +0.
    public static func maximum64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.minimum(a, b, larger: true, flags: &flags)
    }

    /// `a < b`; invalid only for a signaling NaN.
    public static func quietLT32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> Bool {
        FloatFormat.binary32.quietLess(UInt64(a), UInt64(b), orEqual: false, flags: &flags)
    }

    /// `a <= b`; invalid only for a signaling NaN.
    public static func quietLE32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> Bool {
        FloatFormat.binary32.quietLess(UInt64(a), UInt64(b), orEqual: true, flags: &flags)
    }

    /// `a < b`; invalid only for a signaling NaN.
    public static func quietLT64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> Bool {
        FloatFormat.binary64.quietLess(a, b, orEqual: false, flags: &flags)
    }

    /// `a <= b`; invalid only for a signaling NaN.
    public static func quietLE64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> Bool {
        FloatFormat.binary64.quietLess(a, b, orEqual: true, flags: &flags)
    }

    /// Rounds to a whole number in the same format.
    /// - Parameter raisesInexact: whether a number that was not whole is inexact.
    public static func roundToIntegral32(_ a: UInt32, rm: UInt8, raisesInexact: Bool, flags: inout UInt8) -> UInt32 {
        UInt32(
            truncatingIfNeeded: FloatFormat.binary32.roundToIntegral(
                UInt64(a), rm: rm, raisesInexact: raisesInexact, flags: &flags))
    }

    /// Rounds to a whole number in the same format.
    /// - Parameter raisesInexact: whether a number that was not whole is inexact.
    public static func roundToIntegral64(_ a: UInt64, rm: UInt8, raisesInexact: Bool, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.roundToIntegral(a, rm: rm, raisesInexact: raisesInexact, flags: &flags)
    }

    /// The low 32 bits of the whole part, as JavaScript converts: 0 for what is not finite. The flags are those of
    /// `toInt32_64`.
    public static func toInt32Modular_64(_ a: UInt64, flags: inout UInt8) -> Int32 {
        FloatFormat.binary64.toInt32Modular(a, flags: &flags)
    }
}

extension FloatFormat {
    @inline(__always)
    fileprivate func minimum(_ a: UInt64, _ b: UInt64, larger: Bool, flags: inout UInt8) -> UInt64 {
        isNaN(a) || isNaN(b) ? propagateNaN(a, b, flags: &flags) : select(a, b, larger: larger, flags: &flags)
    }

    @inline(__always)
    fileprivate func quietLess(_ a: UInt64, _ b: UInt64, orEqual: Bool, flags: inout UInt8) -> Bool {
        if isNaN(a) || isNaN(b) {
            _ = propagateNaN(a, b, flags: &flags)
            return false
        }
        return less(a, b, orEqual: orEqual, flags: &flags)
    }

    @inline(__always)
    fileprivate func roundToIntegral(_ a: UInt64, rm: UInt8, raisesInexact: Bool, flags: inout UInt8) -> UInt64 {
        if isNaN(a) { return propagateNaN(a, a, flags: &flags) }
        if isInfinite(a) || isZero(a) { return a }
        let number = unpack(a)
        if number.exponent >= fractionBits { return a }
        let (magnitude, raised) = roundToInteger(number, rm: rm)
        if raisesInexact { flags |= raised }
        if magnitude == 0 { return zero(negative: number.negative) }
        return fromInteger(negative: number.negative, magnitude: magnitude, rm: rm, flags: &flags)
    }

    fileprivate func toInt32Modular(_ a: UInt64, flags: inout UInt8) -> Int32 {
        if isNaN(a) || isInfinite(a) {
            flags |= SoftFloat.invalid
            return 0
        }
        if isZero(a) { return 0 }
        let number = unpack(a)
        var magnitude: UInt64 = 0
        var raised = SoftFloat.invalid
        if number.exponent > 63 {
            let shift = number.exponent &- 63
            if shift < 32 { magnitude = number.significand &<< UInt64(truncatingIfNeeded: shift) }
        } else {
            let rounded = roundToInteger(number, rm: SoftFloat.roundingTowardZero)
            magnitude = rounded.magnitude
            if magnitude <= (number.negative ? 1 << 31 : 1 << 31 - 1) { raised = rounded.flags }
        }
        flags |= raised
        return Int32(truncatingIfNeeded: number.negative ? 0 &- magnitude : magnitude)
    }
}
