extension FloatFormat {
    /// Converts to an integer between `-lowest` and `highest`, saturating as
    /// RISC-V does: out of range and NaN raise invalid, and nothing else.
    ///
    /// The result is in two's complement in 64 bits.
    @inline(__always)
    func toInteger(
        _ a: UInt64, lowest: UInt64, highest: UInt64, rm: UInt8, flags: inout UInt8
    ) -> UInt64 {
        if isNaN(a) {
            flags |= SoftFloat.invalid
            return highest
        }
        if isZero(a) { return 0 }
        let negative = isNegative(a)
        let limit = negative ? lowest : highest
        var magnitude: UInt64 = 0
        var raised: UInt8 = 0
        var fits = false
        if !isInfinite(a) {
            let number = unpack(a)
            if number.exponent < 64 {
                (magnitude, raised) = roundToInteger(number, rm: rm)
                fits = magnitude <= limit
            }
        }
        if fits {
            flags |= raised
        } else {
            flags |= SoftFloat.invalid
            magnitude = limit
        }
        return negative ? 0 &- magnitude : magnitude
    }

    /// The magnitude of a number below 2^64 as an integer, and inexact if that was rounded.
    @inline(__always)
    func roundToInteger(_ number: Unpacked, rm: UInt8) -> (magnitude: UInt64, flags: UInt8) {
        if number.exponent == 63 { return (number.significand, 0) }
        let shift = 63 &- number.exponent
        let whole = shift > 63 ? 0 : number.significand &>> UInt64(truncatingIfNeeded: shift)
        let lost =
            shift > 63
            ? shiftRightSticky(number.significand, shift &- 64)
            : number.significand &<< UInt64(truncatingIfNeeded: 64 &- shift)
        let up = roundsUp(lost, half: 1 &<< 63, odd: whole & 1 != 0, negative: number.negative, rm: rm)
        return (whole &+ (up ? 1 : 0), lost == 0 ? 0 : SoftFloat.inexact)
    }

    @inline(__always)
    func fromInteger(negative: Bool, magnitude: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if magnitude == 0 { return 0 }
        let zeros = magnitude.leadingZeroBitCount
        return pack(
            Unpacked(
                negative: negative, exponent: 63 &- zeros,
                significand: magnitude &<< UInt64(truncatingIfNeeded: zeros)),
            rm: rm, flags: &flags)
    }

    /// Converts a number of another format to this one.
    @inline(__always)
    func convert(_ a: UInt64, from source: FloatFormat, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if source.isNaN(a) {
            if source.isSignalingNaN(a) { flags |= SoftFloat.invalid }
            return canonicalNaN
        }
        let negative = source.isNegative(a)
        if source.isInfinite(a) { return infinity(negative: negative) }
        if source.isZero(a) { return zero(negative: negative) }
        return pack(source.unpack(a), rm: rm, flags: &flags)
    }
}
