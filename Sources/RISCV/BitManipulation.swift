@inline(__always)
func rotateLeft<T: FixedWidthInteger & UnsignedInteger>(_ value: T, _ count: T) -> T {
    (value &<< count) | (value &>> (0 &- count))
}

@inline(__always)
func rotateRight<T: FixedWidthInteger & UnsignedInteger>(_ value: T, _ count: T) -> T {
    (value &>> count) | (value &<< (0 &- count))
}

/// orc.b: each byte that is not zero becomes 0xff.
@inline(__always)
func orCombineBytes(_ value: UInt64) -> UInt64 {
    let low: UInt64 = 0x7f7f_7f7f_7f7f_7f7f
    let high = (((value & low) &+ low) | value) & ~low
    return (high &>> 7) &* 0xff
}

/// The product of two polynomials over GF(2): as long multiplication without carries.
func carrylessProduct(_ a: UInt64, _ b: UInt64) -> UInt128 {
    var result: UInt128 = 0
    var left = b
    while left != 0 {
        result ^= UInt128(a) << UInt128(left.trailingZeroBitCount)
        left &= left &- 1
    }
    return result
}
