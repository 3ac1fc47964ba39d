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
