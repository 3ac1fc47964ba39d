// Exact integer implementations. Operands are in the low bits of a UInt64.

extension FloatFormat {
    @inline(__always)
    func add(_ a: UInt64, _ b: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if isNaN(a) || isNaN(b) { return propagateNaN(a, b, flags: &flags) }
        if isInfinite(a) {
            if isInfinite(b) && a != b { return invalidResult(flags: &flags) }
            return a
        }
        if isInfinite(b) { return b }
        if isZero(a) {
            if !isZero(b) || a == b { return b }
            return zero(negative: rm == SoftFloat.roundingDown)
        }
        if isZero(b) { return a }
        return addFinite(unpack(a), unpack(b), rm: rm, flags: &flags)
    }

    /// a + b where neither is zero.
    private func addFinite(_ a: Unpacked, _ b: Unpacked, rm: UInt8, flags: inout UInt8) -> UInt64 {
        // One bit of headroom for the carry; the formats leave at least ten zeros below, so nothing is lost.
        var large = a, small = b
        if b.exponent > a.exponent { swap(&large, &small) }
        large.significand &>>= 1
        small.significand = shiftRightSticky(small.significand &>> 1, large.exponent &- small.exponent)
        if large.negative == small.negative {
            large.significand &+= small.significand
        } else if large.significand >= small.significand {
            large.significand &-= small.significand
        } else {
            large.significand = small.significand &- large.significand
            large.negative = small.negative
        }
        if large.significand == 0 { return zero(negative: rm == SoftFloat.roundingDown) }
        let zeros = large.significand.leadingZeroBitCount
        large.significand &<<= UInt64(truncatingIfNeeded: zeros)
        large.exponent &-= zeros &- 1
        return pack(large, rm: rm, flags: &flags)
    }

    @inline(__always)
    func subtract(_ a: UInt64, _ b: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        add(a, b ^ signBit, rm: rm, flags: &flags)
    }

    @inline(__always)
    func multiply(_ a: UInt64, _ b: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if isNaN(a) || isNaN(b) { return propagateNaN(a, b, flags: &flags) }
        let negative = isNegative(a) != isNegative(b)
        if isInfinite(a) || isInfinite(b) {
            if isZero(a) || isZero(b) { return invalidResult(flags: &flags) }
            return infinity(negative: negative)
        }
        if isZero(a) || isZero(b) { return zero(negative: negative) }
        let product = WideProduct(unpack(a), unpack(b))
        return pack(
            Unpacked(negative: negative, exponent: product.exponent, significand: upperSticky(product.significand)),
            rm: rm, flags: &flags)
    }

    @inline(__always)
    func divide(_ a: UInt64, _ b: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if isNaN(a) || isNaN(b) { return propagateNaN(a, b, flags: &flags) }
        let negative = isNegative(a) != isNegative(b)
        if isInfinite(a) {
            return isInfinite(b) ? invalidResult(flags: &flags) : infinity(negative: negative)
        }
        if isInfinite(b) { return zero(negative: negative) }
        if isZero(b) {
            if isZero(a) { return invalidResult(flags: &flags) }
            flags |= SoftFloat.divideByZero
            return infinity(negative: negative)
        }
        if isZero(a) { return zero(negative: negative) }
        let dividend = unpack(a), divisor = unpack(b)
        // The quotient gets exactly 64 bits if the dividend's upper half is below the divisor by less than a factor 2.
        let fits = dividend.significand < divisor.significand
        let upper = fits ? dividend.significand : dividend.significand &>> 1
        let lower: UInt64 = fits ? 0 : dividend.significand &<< 63
        let (quotient, remainder) = divisor.significand.dividingFullWidth((upper, lower))
        return pack(
            Unpacked(
                negative: negative, exponent: dividend.exponent &- divisor.exponent &- (fits ? 1 : 0),
                significand: quotient | (remainder == 0 ? 0 : 1)),
            rm: rm, flags: &flags)
    }

    @inline(__always)
    func squareRoot(_ a: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if isNaN(a) { return propagateNaN(a, a, flags: &flags) }
        if isZero(a) { return a }
        if isNegative(a) { return invalidResult(flags: &flags) }
        if isInfinite(a) { return a }
        let number = unpack(a)
        let odd = number.exponent & 1
        let square = UInt128(number.significand) &<< UInt128(truncatingIfNeeded: 63 &+ odd)
        let root = integerSquareRoot(square)
        let exact = root.multipliedFullWidth(by: root) == wide(square)
        return pack(
            Unpacked(negative: false, exponent: (number.exponent &- odd) / 2, significand: root | (exact ? 0 : 1)),
            rm: rm, flags: &flags)
    }

    /// a * b + c, rounded once.
    @inline(__always)
    func multiplyAdd(_ a: UInt64, _ b: UInt64, _ c: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        let infiniteTimesZero = isInfinite(a) && isZero(b) || isZero(a) && isInfinite(b)
        if infiniteTimesZero { flags |= SoftFloat.invalid }
        if isNaN(a) || isNaN(b) || isNaN(c) {
            if isSignalingNaN(c) { flags |= SoftFloat.invalid }
            return propagateNaN(a, b, flags: &flags)
        }
        if infiniteTimesZero { return canonicalNaN }
        let negative = isNegative(a) != isNegative(b)
        if isInfinite(a) || isInfinite(b) {
            if isInfinite(c) && isNegative(c) != negative { return invalidResult(flags: &flags) }
            return infinity(negative: negative)
        }
        if isInfinite(c) { return c }
        if isZero(a) || isZero(b) {
            if !isZero(c) { return c }
            return isNegative(c) == negative ? c : zero(negative: rm == SoftFloat.roundingDown)
        }
        let product = WideProduct(unpack(a), unpack(b))
        if isZero(c) {
            return pack(
                Unpacked(negative: negative, exponent: product.exponent, significand: upperSticky(product.significand)),
                rm: rm, flags: &flags)
        }
        return addToProduct(product, negative: negative, unpack(c), rm: rm, flags: &flags)
    }

    private func addToProduct(
        _ product: WideProduct, negative: Bool, _ addend: Unpacked, rm: UInt8, flags: inout UInt8
    ) -> UInt64 {
        // As in addFinite: the low bits of both are zero, so the bit of headroom costs nothing.
        var significand = product.significand &>> 1
        var other = UInt128(addend.significand) &<< 63
        let exponent = max(product.exponent, addend.exponent)
        significand = shiftRightSticky(significand, exponent &- product.exponent)
        other = shiftRightSticky(other, exponent &- addend.exponent)
        var resultNegative = negative
        if negative == addend.negative {
            significand &+= other
        } else if significand >= other {
            significand &-= other
        } else {
            significand = other &- significand
            resultNegative = addend.negative
        }
        if significand == 0 { return zero(negative: rm == SoftFloat.roundingDown) }
        let zeros = significand.leadingZeroBitCount
        significand &<<= UInt128(truncatingIfNeeded: zeros)
        return pack(
            Unpacked(
                negative: resultNegative, exponent: exponent &- (zeros &- 1), significand: upperSticky(significand)),
            rm: rm, flags: &flags)
    }
}

/// The exact product of two numbers: significand / 2^127 * 2^exponent, with
/// bit 127 of the significand set.
struct WideProduct {
    var exponent: Int
    var significand: UInt128

    @inline(__always)
    init(_ a: Unpacked, _ b: Unpacked) {
        exponent = a.exponent &+ b.exponent &+ 1
        significand = UInt128(a.significand) &* UInt128(b.significand)
        if significand &>> 127 == 0 {
            significand &<<= 1
            exponent &-= 1
        }
    }
}

@inline(__always)
private func wide(_ value: UInt128) -> (high: UInt64, low: UInt64) {
    (UInt64(truncatingIfNeeded: value &>> 64), UInt64(truncatingIfNeeded: value))
}

/// The integer part of the square root of a number from 2^126 up.
private func integerSquareRoot(_ square: UInt128) -> UInt64 {
    // The host's estimate is good to 52 bits and one step of Newton's method doubles
    // that; the comparisons then make it exact, whatever the estimate was worth.
    let upper = Double(UInt64(truncatingIfNeeded: square &>> 64))
    let scaled = upper.squareRoot() * 4_294_967_296
    let estimate = scaled < 18_446_744_073_709_549_568 ? UInt64(scaled) : UInt64.max
    let step = (UInt128(estimate) &+ square / UInt128(max(estimate, 1))) &>> 1
    var root = step > UInt128(UInt64.max) ? UInt64.max : UInt64(truncatingIfNeeded: step)
    while UInt128(root) &* UInt128(root) > square { root &-= 1 }
    while root < UInt64.max, (UInt128(root) &+ 1) &* (UInt128(root) &+ 1) <= square { root &+= 1 }
    return root
}
