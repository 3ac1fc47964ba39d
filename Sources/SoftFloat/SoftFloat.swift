/// IEEE 754 binary32 and binary64 arithmetic on raw bits, with the results
/// and the accrued flags that the RISC-V F and D extensions ask for.
///
/// Every function is exact in all five rounding modes. `rm` is the resolved
/// rounding mode (the `rounding…` constants; the caller has replaced "dynamic"
/// and refused the reserved ones), `flags` is the `fflags` field, into which
/// exceptions are or-ed. A NaN result is always the canonical NaN; tininess is
/// detected after rounding (RISC-V unprivileged ISA, 20.2 to 20.4).
///
/// Names end in the width of their operands; a conversion to or from an
/// integer is `toInt64_32` (binary32 to a 64-bit integer) or `fromInt64_32`.
public enum SoftFloat {
    /// Round to nearest, ties to even.
    public static let roundingNearestEven: UInt8 = 0
    /// Round towards zero.
    public static let roundingTowardZero: UInt8 = 1
    /// Round towards minus infinity.
    public static let roundingDown: UInt8 = 2
    /// Round towards plus infinity.
    public static let roundingUp: UInt8 = 3
    /// Round to nearest, ties away from zero.
    public static let roundingNearestAway: UInt8 = 4

    /// `fflags.NX`: the result was rounded.
    public static let inexact: UInt8 = 1
    /// `fflags.UF`: the result was tiny, and rounded.
    public static let underflow: UInt8 = 2
    /// `fflags.OF`: the result was too large for the format.
    public static let overflow: UInt8 = 4
    /// `fflags.DZ`: a finite number other than zero was divided by zero.
    public static let divideByZero: UInt8 = 8
    /// `fflags.NV`: the operation has no useful result.
    public static let invalid: UInt8 = 16

    /// The NaN that every binary32 operation returns.
    public static let canonicalNaN32: UInt32 = 0x7fc0_0000
    /// The NaN that every binary64 operation returns.
    public static let canonicalNaN64: UInt64 = 0x7ff8_0000_0000_0000
}
