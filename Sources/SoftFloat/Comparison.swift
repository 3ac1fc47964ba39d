extension FloatFormat {
    /// The smaller (or larger) operand as RISC-V's FMIN and FMAX have it: a
    /// number wins over a NaN, -0 is below +0, a signaling NaN is invalid.
    @inline(__always)
    func select(_ a: UInt64, _ b: UInt64, larger: Bool, flags: inout UInt8) -> UInt64 {
        if isSignalingNaN(a) || isSignalingNaN(b) { flags |= SoftFloat.invalid }
        if isNaN(a) { return isNaN(b) ? canonicalNaN : b }
        if isNaN(b) { return a }
        let aIsLower = orderKey(a) < orderKey(b)
        return aIsLower != larger ? a : b
    }

    /// Equality; only a signaling NaN is invalid.
    @inline(__always)
    func equal(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> Bool {
        if isNaN(a) || isNaN(b) {
            if isSignalingNaN(a) || isSignalingNaN(b) { flags |= SoftFloat.invalid }
            return false
        }
        return a == b || isZero(a) && isZero(b)
    }

    /// Order; any NaN is invalid.
    @inline(__always)
    func less(_ a: UInt64, _ b: UInt64, orEqual: Bool, flags: inout UInt8) -> Bool {
        if isNaN(a) || isNaN(b) {
            flags |= SoftFloat.invalid
            return false
        }
        if a == b || isZero(a) && isZero(b) { return orEqual }
        return orderKey(a) < orderKey(b)
    }

    /// The one bit that FCLASS sets for `a`.
    @inline(__always)
    func classify(_ a: UInt64) -> UInt64 {
        if isNaN(a) { return isSignalingNaN(a) ? 1 << 8 : 1 << 9 }
        let negative = isNegative(a)
        if isInfinite(a) { return negative ? 1 << 0 : 1 << 7 }
        if isZero(a) { return negative ? 1 << 3 : 1 << 4 }
        if a & infinity == 0 { return negative ? 1 << 2 : 1 << 5 }
        return negative ? 1 << 1 : 1 << 6
    }

    /// A key that orders numbers as their values, with -0 before +0.
    @inline(__always)
    private func orderKey(_ bits: UInt64) -> Int64 {
        let magnitude = Int64(truncatingIfNeeded: bits & (signBit &- 1))
        return isNegative(bits) ? ~magnitude : magnitude
    }
}
