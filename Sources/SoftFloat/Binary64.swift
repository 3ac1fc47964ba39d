// The public operations on binary64: the host's FPU where it serves, else integers.

extension SoftFloat {
    /// `a + b`.
    public static func add64(_ a: UInt64, _ b: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.add(Double(bitPattern: a), Double(bitPattern: b), flags: flags)
        {
            return result.bitPattern
        }
        return FloatFormat.binary64.add(a, b, rm: rm, flags: &flags)
    }

    /// `a - b`.
    public static func sub64(_ a: UInt64, _ b: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.add(Double(bitPattern: a), -Double(bitPattern: b), flags: flags)
        {
            return result.bitPattern
        }
        return FloatFormat.binary64.subtract(a, b, rm: rm, flags: &flags)
    }

    /// `a * b`.
    public static func mul64(_ a: UInt64, _ b: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.multiply(Double(bitPattern: a), Double(bitPattern: b), flags: flags)
        {
            return result.bitPattern
        }
        return FloatFormat.binary64.multiply(a, b, rm: rm, flags: &flags)
    }

    /// `a / b`.
    public static func div64(_ a: UInt64, _ b: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.divide(Double(bitPattern: a), Double(bitPattern: b), flags: flags)
        {
            return result.bitPattern
        }
        return FloatFormat.binary64.divide(a, b, rm: rm, flags: &flags)
    }

    /// The square root of `a`.
    public static func sqrt64(_ a: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if rm == roundingNearestEven, let result = HostArithmetic.squareRoot(Double(bitPattern: a), flags: flags) {
            return result.bitPattern
        }
        return FloatFormat.binary64.squareRoot(a, rm: rm, flags: &flags)
    }

    /// `a * b + c`, rounded once. Infinity times zero is invalid even if `c` is a quiet NaN.
    public static func fma64(_ a: UInt64, _ b: UInt64, _ c: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        if rm == roundingNearestEven,
            let result = HostArithmetic.multiplyAdd(
                Double(bitPattern: a), Double(bitPattern: b), Double(bitPattern: c), flags: flags)
        {
            return result.bitPattern
        }
        return FloatFormat.binary64.multiplyAdd(a, b, c, rm: rm, flags: &flags)
    }

    /// The smaller of two numbers, or the one that is a number; -0 is below +0.
    public static func min64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.select(a, b, larger: false, flags: &flags)
    }

    /// The larger of two numbers, or the one that is a number; -0 is below +0.
    public static func max64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.select(a, b, larger: true, flags: &flags)
    }

    /// `a == b`; invalid only for a signaling NaN.
    public static func eq64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> Bool {
        FloatFormat.binary64.equal(a, b, flags: &flags)
    }

    /// `a < b`; invalid for any NaN.
    public static func lt64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> Bool {
        FloatFormat.binary64.less(a, b, orEqual: false, flags: &flags)
    }

    /// `a <= b`; invalid for any NaN.
    public static func le64(_ a: UInt64, _ b: UInt64, flags: inout UInt8) -> Bool {
        FloatFormat.binary64.less(a, b, orEqual: true, flags: &flags)
    }

    /// FCLASS's mask, bits 0 to 9: -inf, -normal, -subnormal, -0, +0, +subnormal, +normal, +inf, sNaN, qNaN.
    public static func classify64(_ a: UInt64) -> UInt64 {
        FloatFormat.binary64.classify(a)
    }

    /// Converts to Int32, saturating; NaN gives the largest value.
    public static func toInt32_64(_ a: UInt64, rm: UInt8, flags: inout UInt8) -> Int32 {
        Int32(
            truncatingIfNeeded: FloatFormat.binary64.toInteger(
                a, lowest: 1 << 31, highest: 1 << 31 - 1, rm: rm, flags: &flags))
    }

    /// Converts to UInt32, saturating; NaN gives the largest value.
    public static func toUInt32_64(_ a: UInt64, rm: UInt8, flags: inout UInt8) -> UInt32 {
        UInt32(
            truncatingIfNeeded: FloatFormat.binary64.toInteger(
                a, lowest: 0, highest: 1 << 32 - 1, rm: rm, flags: &flags))
    }

    /// Converts to Int64, saturating; NaN gives the largest value.
    public static func toInt64_64(_ a: UInt64, rm: UInt8, flags: inout UInt8) -> Int64 {
        Int64(
            truncatingIfNeeded: FloatFormat.binary64.toInteger(
                a, lowest: 1 << 63, highest: 1 << 63 - 1, rm: rm, flags: &flags))
    }

    /// Converts to UInt64, saturating; NaN gives the largest value.
    public static func toUInt64_64(_ a: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.toInteger(a, lowest: 0, highest: UInt64.max, rm: rm, flags: &flags)
    }

    /// Converts from Int32.
    public static func fromInt32_64(_ v: Int32, rm: UInt8, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.fromInteger(negative: v < 0, magnitude: UInt64(v.magnitude), rm: rm, flags: &flags)
    }

    /// Converts from UInt32.
    public static func fromUInt32_64(_ v: UInt32, rm: UInt8, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.fromInteger(negative: false, magnitude: UInt64(v), rm: rm, flags: &flags)
    }

    /// Converts from Int64.
    public static func fromInt64_64(_ v: Int64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.fromInteger(negative: v < 0, magnitude: v.magnitude, rm: rm, flags: &flags)
    }

    /// Converts from UInt64.
    public static func fromUInt64_64(_ v: UInt64, rm: UInt8, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.fromInteger(negative: false, magnitude: v, rm: rm, flags: &flags)
    }

    /// Narrows to binary32.
    public static func f64ToF32(_ a: UInt64, rm: UInt8, flags: inout UInt8) -> UInt32 {
        UInt32(truncatingIfNeeded: FloatFormat.binary32.convert(a, from: .binary64, rm: rm, flags: &flags))
    }
}
