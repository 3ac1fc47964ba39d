/// The parameters of a binary interchange format of up to 64 bits. All
/// formats share one implementation over 64-bit significands; the functions
/// that take a format are inlined where its members are constants.
struct FloatFormat {
    /// Stored bits of the significand.
    let fractionBits: Int
    /// Bits of the biased exponent.
    let exponentBits: Int

    static var binary16: FloatFormat {
        @inline(__always) get { FloatFormat(fractionBits: 10, exponentBits: 5) }
    }
    static var binary32: FloatFormat {
        @inline(__always) get { FloatFormat(fractionBits: 23, exponentBits: 8) }
    }
    static var binary64: FloatFormat {
        @inline(__always) get { FloatFormat(fractionBits: 52, exponentBits: 11) }
    }

    /// The exponent's bias, which is also the largest exponent.
    var bias: Int { @inline(__always) get { 1 &<< (exponentBits &- 1) &- 1 } }
    /// The exponent of the smallest normal number.
    var minimumExponent: Int { @inline(__always) get { 1 &- bias } }
    var maximumBiasedExponent: Int { @inline(__always) get { 1 &<< exponentBits &- 1 } }
    var signBit: UInt64 { @inline(__always) get { 1 &<< UInt64(truncatingIfNeeded: fractionBits &+ exponentBits) } }
    var fractionMask: UInt64 { @inline(__always) get { 1 &<< UInt64(truncatingIfNeeded: fractionBits) &- 1 } }
    var quietBit: UInt64 { @inline(__always) get { 1 &<< UInt64(truncatingIfNeeded: fractionBits &- 1) } }
    var infinity: UInt64 {
        @inline(__always) get {
            UInt64(truncatingIfNeeded: maximumBiasedExponent) &<< UInt64(truncatingIfNeeded: fractionBits)
        }
    }
    var largestFinite: UInt64 { @inline(__always) get { infinity &- 1 } }
    var canonicalNaN: UInt64 { @inline(__always) get { infinity | quietBit } }

    @inline(__always)
    func isNaN(_ bits: UInt64) -> Bool { bits & (signBit &- 1) > infinity }

    @inline(__always)
    func isSignalingNaN(_ bits: UInt64) -> Bool { isNaN(bits) && bits & quietBit == 0 }

    @inline(__always)
    func isInfinite(_ bits: UInt64) -> Bool { bits & (signBit &- 1) == infinity }

    @inline(__always)
    func isZero(_ bits: UInt64) -> Bool { bits & (signBit &- 1) == 0 }

    @inline(__always)
    func isNegative(_ bits: UInt64) -> Bool { bits & signBit != 0 }

    /// A zero of the given sign.
    @inline(__always)
    func zero(negative: Bool) -> UInt64 { negative ? signBit : 0 }

    /// An infinity of the given sign.
    @inline(__always)
    func infinity(negative: Bool) -> UInt64 { zero(negative: negative) | infinity }

    /// Takes apart a finite number other than zero.
    @inline(__always)
    func unpack(_ bits: UInt64) -> Unpacked {
        let biased = Int(truncatingIfNeeded: bits &>> UInt64(truncatingIfNeeded: fractionBits)) & maximumBiasedExponent
        let fraction = bits & fractionMask
        let toTop = UInt64(truncatingIfNeeded: 63 &- fractionBits)
        if biased != 0 {
            return Unpacked(
                negative: isNegative(bits), exponent: biased &- bias, significand: 1 &<< 63 | fraction &<< toTop)
        }
        let zeros = fraction.leadingZeroBitCount
        return Unpacked(
            negative: isNegative(bits), exponent: minimumExponent &- (zeros &- (63 &- fractionBits)),
            significand: fraction &<< UInt64(truncatingIfNeeded: zeros))
    }
}

/// A finite number other than zero: significand / 2^63 * 2^exponent, with bit
/// 63 of the significand set.
struct Unpacked {
    var negative: Bool
    var exponent: Int
    /// Bit 0 may be sticky: it then stands for any bits lost below it.
    var significand: UInt64
}
