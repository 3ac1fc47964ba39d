import SoftFloat
import Testing

private let rmm = SoftFloat.roundingNearestAway

/// The host has no such mode. Products and sums of binary32 numbers that are
/// exact in binary64 give the true value to round; other operations are
/// compared with nearest-even, from which only ties may differ.
@Suite struct TiesAwayTests {
    /// Rounds to binary32, ties away from zero, from the two neighbours of a value.
    private func roundAway(_ value: Double) -> Float {
        let down = value.magnitude.isFinite ? Float(value.magnitude) : .infinity
        // The neighbours in magnitude around the value.
        let lower = Double(down) > value.magnitude ? down.nextDown : down
        let upper = Double(lower) == value.magnitude ? lower : lower.nextUp
        // Beyond the largest number the next step would be 2^128.
        let top = upper.isInfinite ? 0x1p128 : Double(upper)
        let nearest = value.magnitude - Double(lower) < top - value.magnitude ? lower : upper
        return value.sign == .minus ? -nearest : nearest
    }

    @Test func `products and sums round ties away from zero`() {
        var vectors = Vectors(seed: 0xbeef)
        var failures = 0, ties = 0
        for _ in 0..<400_000 {
            let a = vectors.binary32(), b = vectors.binary32()
            let x = Double(Float(bitPattern: a)), y = Double(Float(bitPattern: b))
            if !x.isFinite || !y.isFinite { continue }
            func check(_ exact: Double, _ bits: UInt32, _ even: UInt32) {
                let expected = roundAway(exact)
                if expected.bitPattern != bits {
                    failures += 1
                    if failures <= 3 {
                        Issue.record(
                            "\(String(a, radix: 16)) \(String(b, radix: 16)): \(bits) not \(expected.bitPattern)")
                    }
                }
                if bits != even { ties += 1 }
            }
            var flags: UInt8 = 0
            check(x * y, SoftFloat.mul32(a, b, rm: rmm, flags: &flags), SoftFloat.mul32(a, b, rm: 0, flags: &flags))
            let sum = x + y
            if sum != 0, sum - x == y, sum - y == x {
                check(sum, SoftFloat.add32(a, b, rm: rmm, flags: &flags), SoftFloat.add32(a, b, rm: 0, flags: &flags))
                let fused = SoftFloat.fma32(a, 0x3f80_0000, b, rm: rmm, flags: &flags)
                check(sum, fused, SoftFloat.add32(a, b, rm: 0, flags: &flags))
            }
        }
        #expect(failures == 0)
        #expect(ties > 1000, "too few ties to mean anything: \(ties)")
    }

    @Test func `narrowing rounds ties away from zero`() {
        var vectors = Vectors(seed: 0xcafe)
        var failures = 0
        for _ in 0..<300_000 {
            // Half a unit of binary32 below its last place, at any exponent from deep underflow to overflow.
            let exponent = (1023 - 155 + vectors.next() % 290) << 52
            let wide = vectors.next() & 1 << 63 | exponent | vectors.next() & 0xf_ffff_f000_0000
            let value = Double(bitPattern: wide)
            var flags: UInt8 = 0
            if SoftFloat.f64ToF32(wide, rm: rmm, flags: &flags) != roundAway(value).bitPattern { failures += 1 }
        }
        #expect(failures == 0)
    }

    @Test func `quotients and roots without ties are those of nearest-even`() {
        // A quotient or root of normal size is never a tie.
        var vectors = Vectors(seed: 0xd00d)
        var failures = 0
        for _ in 0..<200_000 {
            let a = vectors.binary64(), b = vectors.binary64()
            var away: UInt8 = 0, even: UInt8 = 0
            let root = SoftFloat.sqrt64(a, rm: rmm, flags: &away)
            if root != SoftFloat.sqrt64(a, rm: 0, flags: &even) { failures += 1 }
            let quotient = SoftFloat.div64(a, b, rm: 0, flags: &even)
            if SoftFloat.div64(a, b, rm: rmm, flags: &away) != quotient, Double(bitPattern: quotient).isNormal {
                failures += 1
            }
            if away != even { failures += 1 }
        }
        #expect(failures == 0)
    }

    @Test func `binary64 ties go away from zero by hand`() {
        var flags: UInt8 = 0
        let half = (0x1p-53).bitPattern, one = (1.0).bitPattern
        #expect(SoftFloat.add64(one, half, rm: 0, flags: &flags) == one)
        #expect(SoftFloat.add64(one, half, rm: rmm, flags: &flags) == one + 1)
        #expect(SoftFloat.sub64((-1.0).bitPattern, half, rm: rmm, flags: &flags) == (-1.0).bitPattern + 1)
        #expect(SoftFloat.fromInt64_64(1 << 53 + 1, rm: rmm, flags: &flags) == Double(1 << 53 + 2).bitPattern)
        #expect(flags == SoftFloat.inexact)
        // Half of the smallest subnormal.
        flags = 0
        let least = Double.leastNonzeroMagnitude.bitPattern
        #expect(SoftFloat.mul64(least, (0.5).bitPattern, rm: 0, flags: &flags) == 0)
        #expect(SoftFloat.mul64(least, (0.5).bitPattern, rm: rmm, flags: &flags) == 1)
        #expect(flags == SoftFloat.inexact | SoftFloat.underflow)
    }
}
