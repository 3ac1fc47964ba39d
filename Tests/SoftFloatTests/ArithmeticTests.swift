import HostFloat
import SoftFloat
import Testing

/// Vectors for each operation, width and rounding mode.
private let count = 500_000

@Suite struct ArithmeticTests {
    private func compare32(
        _ name: String, _ operation: host_operation,
        _ ours: (UInt32, UInt32, UInt32, UInt8, inout UInt8) -> UInt32
    ) {
        var comparison = Comparison(name)
        var vectors = Vectors(seed: 0x1234_5678_9abc_def1)
        for index in 0..<count {
            let a = vectors.binary32(), b = vectors.binary32(), c = vectors.binary32()
            for rm in hostModes {
                let expected = canonical(host_binary32(operation, rm, a, b, c), width: 32)
                var flags: UInt8 = 0
                let bits = ours(a, b, c, rm, &flags)
                comparison.check(UInt64(bits), flags, is: expected, rm: rm, UInt64(a), UInt64(b), UInt64(c))
                // With inexact set already the host's FPU may do the work: the result must not show it.
                if rm == 0 || index & 15 == 0 {
                    var accrued = SoftFloat.inexact
                    let again = ours(a, b, c, rm, &accrued)
                    comparison.check(
                        UInt64(again), accrued,
                        is: host_result(bits: expected.bits, flags: expected.flags | SoftFloat.inexact),
                        rm: rm, UInt64(a), UInt64(b), UInt64(c))
                }
            }
        }
        #expect(comparison.failures == 0)
    }

    private func compare64(
        _ name: String, _ operation: host_operation,
        _ ours: (UInt64, UInt64, UInt64, UInt8, inout UInt8) -> UInt64
    ) {
        var comparison = Comparison(name)
        var vectors = Vectors(seed: 0x0fed_cba9_8765_4321)
        for index in 0..<count {
            let a = vectors.binary64(), b = vectors.binary64(), c = vectors.binary64()
            for rm in hostModes {
                let expected = canonical(host_binary64(operation, rm, a, b, c), width: 64)
                var flags: UInt8 = 0
                let bits = ours(a, b, c, rm, &flags)
                comparison.check(bits, flags, is: expected, rm: rm, a, b, c)
                if rm == 0 || index & 15 == 0 {
                    var accrued = SoftFloat.inexact
                    let again = ours(a, b, c, rm, &accrued)
                    comparison.check(
                        again, accrued,
                        is: host_result(bits: expected.bits, flags: expected.flags | SoftFloat.inexact),
                        rm: rm, a, b, c)
                }
            }
        }
        #expect(comparison.failures == 0)
    }

    @Test func `addition agrees with the host in result and flags`() {
        compare32("add32", HOST_ADD) { SoftFloat.add32($0, $1, rm: $3, flags: &$4) }
        compare64("add64", HOST_ADD) { SoftFloat.add64($0, $1, rm: $3, flags: &$4) }
    }

    @Test func `subtraction agrees with the host in result and flags`() {
        compare32("sub32", HOST_SUB) { SoftFloat.sub32($0, $1, rm: $3, flags: &$4) }
        compare64("sub64", HOST_SUB) { SoftFloat.sub64($0, $1, rm: $3, flags: &$4) }
    }

    @Test func `multiplication agrees with the host in result and flags`() {
        compare32("mul32", HOST_MUL) { SoftFloat.mul32($0, $1, rm: $3, flags: &$4) }
        compare64("mul64", HOST_MUL) { SoftFloat.mul64($0, $1, rm: $3, flags: &$4) }
    }

    @Test func `division agrees with the host in result and flags`() {
        compare32("div32", HOST_DIV) { SoftFloat.div32($0, $1, rm: $3, flags: &$4) }
        compare64("div64", HOST_DIV) { SoftFloat.div64($0, $1, rm: $3, flags: &$4) }
    }

    @Test func `square root agrees with the host in result and flags`() {
        compare32("sqrt32", HOST_SQRT) { a, _, _, rm, flags in SoftFloat.sqrt32(a, rm: rm, flags: &flags) }
        compare64("sqrt64", HOST_SQRT) { a, _, _, rm, flags in SoftFloat.sqrt64(a, rm: rm, flags: &flags) }
    }

    @Test func `fused multiply-add agrees with the host in result and flags`() {
        // A quiet NaN addend hides infinity times zero on the host; RISC-V raises invalid.
        func hidden32(_ a: UInt32, _ b: UInt32, _ c: UInt32) -> Bool {
            let x = Float(bitPattern: a), y = Float(bitPattern: b)
            return Float(bitPattern: c).isNaN && (x.isInfinite && y.isZero || x.isZero && y.isInfinite)
        }
        func hidden64(_ a: UInt64, _ b: UInt64, _ c: UInt64) -> Bool {
            let x = Double(bitPattern: a), y = Double(bitPattern: b)
            return Double(bitPattern: c).isNaN && (x.isInfinite && y.isZero || x.isZero && y.isInfinite)
        }
        compare32("fma32", HOST_FMA) { a, b, c, rm, flags in
            let result = SoftFloat.fma32(a, b, c, rm: rm, flags: &flags)
            if hidden32(a, b, c) {
                #expect(flags & SoftFloat.invalid != 0)
                flags = flags & ~SoftFloat.invalid | host_binary32(HOST_FMA, rm, a, b, c).flags
            }
            return result
        }
        compare64("fma64", HOST_FMA) { a, b, c, rm, flags in
            let result = SoftFloat.fma64(a, b, c, rm: rm, flags: &flags)
            if hidden64(a, b, c) {
                #expect(flags & SoftFloat.invalid != 0)
                flags = flags & ~SoftFloat.invalid | host_binary64(HOST_FMA, rm, a, b, c).flags
            }
            return result
        }
    }

    @Test func `fused multiply-add rounds cancellations once`() {
        // c = -(a * b) rounded, so that what is left is the rounding error of the product.
        var comparison = Comparison("fma64")
        var vectors = Vectors(seed: 77)
        for _ in 0..<count {
            let a = vectors.binary64(), b = vectors.binary64()
            let c = (-(Double(bitPattern: a) * Double(bitPattern: b))).bitPattern
            if Double(bitPattern: c).isNaN { continue }
            for rm in hostModes {
                var flags: UInt8 = 0
                let bits = SoftFloat.fma64(a, b, c, rm: rm, flags: &flags)
                comparison.check(
                    bits, flags, is: canonical(host_binary64(HOST_FMA, rm, a, b, c), width: 64), rm: rm, a, b, c)
            }
        }
        #expect(comparison.failures == 0)
    }

    @Test func `infinity times zero plus a quiet NaN is invalid`() {
        var flags: UInt8 = 0
        #expect(SoftFloat.fma32(0x7f80_0000, 0, 0x7fc0_0001, rm: 0, flags: &flags) == SoftFloat.canonicalNaN32)
        #expect(flags == SoftFloat.invalid)
        flags = 0
        #expect(SoftFloat.fma64(0, 0xfff0 << 48, 0x7ff8 << 48, rm: 0, flags: &flags) == SoftFloat.canonicalNaN64)
        #expect(flags == SoftFloat.invalid)
    }
}
