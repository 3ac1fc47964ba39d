/// Conversions of binary16, which is all that Zfhmin has.
extension SoftFloat {
    /// Widens to binary32, which is exact.
    public static func f16ToF32(_ a: UInt16, flags: inout UInt8) -> UInt32 {
        UInt32(
            truncatingIfNeeded: FloatFormat.binary32.convert(
                UInt64(a), from: .binary16, rm: roundingNearestEven, flags: &flags))
    }

    /// Widens to binary64, which is exact.
    public static func f16ToF64(_ a: UInt16, flags: inout UInt8) -> UInt64 {
        FloatFormat.binary64.convert(UInt64(a), from: .binary16, rm: roundingNearestEven, flags: &flags)
    }

    /// Narrows binary32.
    public static func f32ToF16(_ a: UInt32, rm: UInt8, flags: inout UInt8) -> UInt16 {
        UInt16(
            truncatingIfNeeded: FloatFormat.binary16.convert(UInt64(a), from: .binary32, rm: rm, flags: &flags))
    }

    /// Narrows binary64, in one step.
    public static func f64ToF16(_ a: UInt64, rm: UInt8, flags: inout UInt8) -> UInt16 {
        UInt16(truncatingIfNeeded: FloatFormat.binary16.convert(a, from: .binary64, rm: rm, flags: &flags))
    }
}
