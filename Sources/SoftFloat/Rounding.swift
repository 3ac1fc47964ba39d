/// Shifts right; any bit lost is kept as a one in bit 0, so that a later
/// rounding still sees that the value was not exact, nor a tie.
@inline(__always)
func shiftRightSticky(_ value: UInt64, _ count: Int) -> UInt64 {
    if count <= 0 { return value }
    if count > 63 { return value == 0 ? 0 : 1 }
    let amount = UInt64(truncatingIfNeeded: count)
    let lost = value & (1 &<< amount &- 1)
    return value &>> amount | (lost == 0 ? 0 : 1)
}

/// As the 64-bit version, for the exact products of `fma`.
@inline(__always)
func shiftRightSticky(_ value: UInt128, _ count: Int) -> UInt128 {
    if count <= 0 { return value }
    if count > 127 { return value == 0 ? 0 : 1 }
    let amount = UInt128(truncatingIfNeeded: count)
    let lost = value & (1 &<< amount &- 1)
    return value &>> amount | (lost == 0 ? 0 : 1)
}

/// The upper half of a 128-bit significand, with the lower half in bit 0.
@inline(__always)
func upperSticky(_ value: UInt128) -> UInt64 {
    UInt64(truncatingIfNeeded: value &>> 64) | (UInt64(truncatingIfNeeded: value) == 0 ? 0 : 1)
}

/// Whether the magnitude is to be increased by one unit: `lost` holds the bits
/// below the unit and `half` is the weight of half of it.
@inline(__always)
func roundsUp(_ lost: UInt64, half: UInt64, odd: Bool, negative: Bool, rm: UInt8) -> Bool {
    switch rm {
    case SoftFloat.roundingNearestEven: return lost > half || lost == half && odd
    case SoftFloat.roundingTowardZero: return false
    case SoftFloat.roundingDown: return negative && lost != 0
    case SoftFloat.roundingUp: return !negative && lost != 0
    default: return lost >= half
    }
}

extension FloatFormat {
    /// Rounds to the format and encodes, with overflow, underflow and inexact
    /// raised as due.
    @inline(__always)
    func pack(_ number: Unpacked, rm: UInt8, flags: inout UInt8) -> UInt64 {
        let sign = zero(negative: number.negative)
        let unit = UInt64(truncatingIfNeeded: 63 &- fractionBits)
        let mask: UInt64 = 1 &<< unit &- 1
        let half: UInt64 = 1 &<< (unit &- 1)

        func roundUp(_ significand: UInt64) -> Bool {
            roundsUp(
                significand & mask, half: half, odd: significand &>> unit & 1 != 0, negative: number.negative, rm: rm)
        }

        if number.exponent > bias { return sign | overflowed(negative: number.negative, rm: rm, flags: &flags) }
        if number.exponent >= minimumExponent {
            let increment: UInt64 = roundUp(number.significand) ? 1 : 0
            if number.significand & mask != 0 { flags |= SoftFloat.inexact }
            // The implicit bit, and a carry out of the rounding, count up the exponent.
            let exponent = UInt64(truncatingIfNeeded: number.exponent &+ bias &- 1)
            let magnitude =
                exponent &<< UInt64(truncatingIfNeeded: fractionBits)
                &+ number.significand &>> unit &+ increment
            if magnitude >= infinity {
                return sign | overflowed(negative: number.negative, rm: rm, flags: &flags)
            }
            return sign | magnitude
        }

        // Tiny, unless rounding with an unbounded exponent would reach the smallest normal number.
        let carries = number.significand &>> unit == fractionMask &* 2 &+ 1 && roundUp(number.significand)
        let tiny = number.exponent < minimumExponent &- 1 || !carries
        let significand = shiftRightSticky(number.significand, minimumExponent &- number.exponent)
        if significand & mask != 0 { flags |= tiny ? SoftFloat.underflow | SoftFloat.inexact : SoftFloat.inexact }
        return sign | (significand &>> unit &+ (roundUp(significand) ? 1 : 0))
    }

    /// The magnitude that stands for a number too large for the format.
    private func overflowed(negative: Bool, rm: UInt8, flags: inout UInt8) -> UInt64 {
        flags |= SoftFloat.overflow | SoftFloat.inexact
        switch rm {
        case SoftFloat.roundingTowardZero: return largestFinite
        case SoftFloat.roundingDown: return negative ? infinity : largestFinite
        case SoftFloat.roundingUp: return negative ? largestFinite : infinity
        default: return infinity
        }
    }

    /// The NaN result of an operation that had a NaN among its operands.
    @inline(__always)
    func propagateNaN(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> UInt64 {
        if isSignalingNaN(a) || isSignalingNaN(b) { flags |= SoftFloat.invalid }
        return canonicalNaN
    }

    /// The NaN result of an invalid operation.
    @inline(__always)
    func invalidResult(flags: inout UInt8) -> UInt64 {
        flags |= SoftFloat.invalid
        return canonicalNaN
    }
}
