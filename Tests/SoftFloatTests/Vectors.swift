/// Operands that provoke rounding, overflow and underflow more often than
/// uniform bits would. The sequence is the same in every run.
struct Vectors {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        // xorshift64*
        state ^= state &>> 12
        state ^= state &<< 25
        state ^= state &>> 27
        return state &* 0x2545_f491_4f6c_dd1d
    }

    mutating func binary32() -> UInt32 {
        UInt32(truncatingIfNeeded: pattern(fractionBits: 23, exponentBits: 8))
    }

    mutating func binary64() -> UInt64 { pattern(fractionBits: 52, exponentBits: 11) }

    /// Integers of every length, and neighbours of powers of two.
    mutating func integer() -> UInt64 {
        let bits = next()
        let shift = next() & 63
        switch next() & 3 {
        case 0: return bits &>> shift
        case 1: return (1 &<< shift) &+ (bits & 3) &- 1
        case 2: return 0 &- (bits &>> shift)
        default: return (bits & 0xff) &<< shift &+ (next() & 3)
        }
    }

    private mutating func pattern(fractionBits: UInt64, exponentBits: UInt64) -> UInt64 {
        let maximum: UInt64 = 1 &<< exponentBits &- 1
        let bias = maximum / 2
        let sign = (next() & 1) &<< (fractionBits + exponentBits)
        let exponent: UInt64
        switch next() & 15 {
        case 0: exponent = 0
        case 1: exponent = 1 + next() % 3
        case 2: exponent = maximum - next() % 3
        case 3: exponent = next() & maximum
        case 4: exponent = bias / 2 + next() % (fractionBits + 4)
        case 5: exponent = bias + bias / 2 - next() % (fractionBits + 4)
        case 6, 7: exponent = bias + next() % 70
        default: exponent = bias - 4 + next() % 8
        }
        let mask: UInt64 = 1 &<< fractionBits &- 1
        let fraction: UInt64
        let position = next() % (fractionBits + 1)
        switch next() & 7 {
        case 0: fraction = 0
        case 1: fraction = next() & 3
        case 2: fraction = mask - next() & 3
        case 3: fraction = 1 &<< position
        case 4: fraction = mask &<< position
        case 5: fraction = next() &<< position
        default: fraction = next()
        }
        return sign | min(exponent, maximum) &<< fractionBits | fraction & mask
    }
}
