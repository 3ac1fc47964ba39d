// The public operations on binary32: the host's FPU where it serves, else integers.

extension SoftFloat {
    /// `a + b`.
    public static func add32(_ a: UInt32, _ b: UInt32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.add(Float(bitPattern: a), Float(bitPattern: b), flags: flags)
        {
            return result.bitPattern
        }
        return UInt32(truncatingIfNeeded: FloatFormat.binary32.add(UInt64(a), UInt64(b), rm: rm, flags: &flags))
    }

    /// `a - b`.
    public static func sub32(_ a: UInt32, _ b: UInt32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.add(Float(bitPattern: a), -Float(bitPattern: b), flags: flags)
        {
            return result.bitPattern
        }
        return UInt32(truncatingIfNeeded: FloatFormat.binary32.subtract(UInt64(a), UInt64(b), rm: rm, flags: &flags))
    }

    /// `a * b`.
    public static func mul32(_ a: UInt32, _ b: UInt32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.multiply(Float(bitPattern: a), Float(bitPattern: b), flags: flags)
        {
            return result.bitPattern
        }
        return UInt32(truncatingIfNeeded: FloatFormat.binary32.multiply(UInt64(a), UInt64(b), rm: rm, flags: &flags))
    }

    /// `a / b`.
    public static func div32(_ a: UInt32, _ b: UInt32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.divide(Float(bitPattern: a), Float(bitPattern: b), flags: flags)
        {
            return result.bitPattern
        }
        return UInt32(truncatingIfNeeded: FloatFormat.binary32.divide(UInt64(a), UInt64(b), rm: rm, flags: &flags))
    }

    /// The square root of `a`.
    public static func sqrt32(_ a: UInt32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        if rm == roundingNearestEven, let result = HostArithmetic.squareRoot(Float(bitPattern: a), flags: flags) {
            return result.bitPattern
        }
        return UInt32(truncatingIfNeeded: FloatFormat.binary32.squareRoot(UInt64(a), rm: rm, flags: &flags))
    }

    /// `a * b + c`, rounded once. Infinity times zero is invalid even if `c` is a quiet NaN.
    public static func fma32(_ a: UInt32, _ b: UInt32, _ c: UInt32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.multiplyAdd(
                Float(bitPattern: a), Float(bitPattern: b), Float(bitPattern: c), flags: flags)
        {
            return result.bitPattern
        }
        return UInt32(
            truncatingIfNeeded: FloatFormat.binary32.multiplyAdd(
                UInt64(a), UInt64(b), UInt64(c), rm: rm, flags: &flags))
    }

    /// The smaller of two numbers, or the one that is a number; -0 is below +0.
    public static func min32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> UInt32 {
        UInt32(truncatingIfNeeded: FloatFormat.binary32.select(UInt64(a), UInt64(b), larger: false, flags: &flags))
    }

    /// The larger of two numbers, or the one that is a number; -0 is below +0.
    public static func max32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> UInt32 {
        UInt32(truncatingIfNeeded: FloatFormat.binary32.select(UInt64(a), UInt64(b), larger: true, flags: &flags))
    }

    /// `a == b`; invalid only for a signaling NaN.
    public static func eq32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> Bool {
        FloatFormat.binary32.equal(UInt64(a), UInt64(b), flags: &flags)
    }

    /// `a < b`; invalid for any NaN.
    public static func lt32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> Bool {
        FloatFormat.binary32.less(UInt64(a), UInt64(b), orEqual: false, flags: &flags)
    }

    /// `a <= b`; invalid for any NaN.
    public static func le32(_ a: UInt32, _ b: UInt32, flags: inout UInt8) -> Bool {
        FloatFormat.binary32.less(UInt64(a), UInt64(b), orEqual: true, flags: &flags)
    }

    /// FCLASS's mask, bits 0 to 9: -inf, -normal, -subnormal, -0, +0, +subnormal, +normal, +inf, sNaN, qNaN.
    public static func classify32(_ a: UInt32) -> UInt64 {
        FloatFormat.binary32.classify(UInt64(a))
    }

    /// Converts to Int32, saturating; NaN gives the largest value.
    public static func toInt32_32(_ a: UInt32, rm: UInt8, flags: inout UInt8) -> Int32 {
        Int32(
            truncatingIfNeeded: FloatFormat.binary32.toInteger(
                UInt64(a), lowest: 1 << 31, highest: 1 << 31 - 1, rm: rm, flags: &flags))
    }

    /// Converts to UInt32, saturating; NaN gives the largest value.
    public static func toUInt32_32(_ a: UInt32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        UInt32(
            truncatingIfNeeded: FloatFormat.binary32.toInteger(
                UInt64(a), lowest: 0, highest: 1 << 32 - 1, rm: rm, flags: &flags))
    }

    /// Converts to Int64, saturating; NaN gives the largest value.
    public static func toInt64_32(_ a: UInt32, rm: UInt8, flags: inout UInt8) -> Int64 {
        Int64(
            truncatingIfNeeded: FloatFormat.binary32.toInteger(
                UInt64(a), lowest: 1 << 63, highest: 1 << 63 - 1, rm: rm, flags: &flags))
    }

    /// Converts to UInt64, saturating; NaN gives the largest value.
    public static func toUInt64_32(_ a: UInt32, rm: UInt8, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary32.toInteger(UInt64(a), lowest: 0, highest: UInt64.max, rm: rm, flags: &flags)
    }

    /// Converts from Int32.
    public static func fromInt32_32(_ v: Int32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        UInt32(
            truncatingIfNeeded: FloatFormat.binary32.fromInteger(
                negative: v < 0, magnitude: UInt64(v.magnitude), rm: rm, flags: &flags))
    }

    /// Converts from UInt32.
    public static func fromUInt32_32(_ v: UInt32, rm: UInt8, flags: inout UInt8) -> UInt32 {
        UInt32(
            truncatingIfNeeded: FloatFormat.binary32.fromInteger(
                negative: false, magnitude: UInt64(v), rm: rm, flags: &flags))
    }

    /// Converts from Int64.
    public static func fromInt64_32(_ v: Int64, rm: UInt8, flags: inout UInt8) -> UInt32 {
        UInt32(
            truncatingIfNeeded: FloatFormat.binary32.fromInteger(
                negative: v < 0, magnitude: v.magnitude, rm: rm, flags: &flags))
    }

    /// Converts from UInt64.
    public static func fromUInt64_32(_ v: UInt64, rm: UInt8, flags: inout UInt8) -> UInt32 {
        UInt32(
            truncatingIfNeeded: FloatFormat.binary32.fromInteger(negative: false, magnitude: v, rm: rm, flags: &flags))
    }

    /// Widens to binary64, which is exact.
    public static func f32ToF64(_ a: UInt32, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.convert(UInt64(a), from: .binary32, rm: roundingNearestEven, flags: &flags)
    }
}
