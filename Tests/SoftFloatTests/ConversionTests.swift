import HostFloat
import SoftFloat
import Testing

private let count = 400_000

/// What RISC-V's conversions give for `value`, already rounded by the host to
/// an integral value with `flags` raised. The bounds are powers of two or
/// zero, so they are exact: lowest <= value < limit.
private func saturated<T: FixedWidthInteger>(_ value: Double, flags: UInt8, _ type: T.Type) -> (T, UInt8) {
    if value.isNaN { return (T.max, SoftFloat.invalid) }
    let limit = Double(sign: .plus, exponent: T.isSigned ? T.bitWidth - 1 : T.bitWidth, significand: 1)
    if value >= limit { return (T.max, SoftFloat.invalid) }
    if value < (T.isSigned ? -limit : 0) { return (T.min, SoftFloat.invalid) }
    return (T(value), flags)
}

@Suite struct ConversionTests {
    private func compareToInteger<T: FixedWidthInteger>(
        _ type: T.Type, _ from32: (UInt32, UInt8, inout UInt8) -> T, _ from64: (UInt64, UInt8, inout UInt8) -> T
    ) {
        var failures = 0
        func check(_ bits: UInt64, _ rm: UInt8, _ got: (T, UInt8), _ want: (T, UInt8)) {
            guard got != want else { return }
            failures += 1
            if failures <= 3 {
                Issue.record("\(type) rm \(rm) of \(String(bits, radix: 16)): \(got), host \(want)")
            }
        }
        var vectors = Vectors(seed: 0xaaaa_5555_1234)
        for _ in 0..<count {
            let a = vectors.binary32(), b = vectors.binary64()
            for rm in hostModes {
                let narrow = host_binary32(HOST_RINT, rm, a, 0, 0)
                let value = Float(bitPattern: UInt32(truncatingIfNeeded: narrow.bits))
                var flags: UInt8 = 0
                let integer = from32(a, rm, &flags)
                check(UInt64(a), rm, (integer, flags), saturated(Double(value), flags: narrow.flags, type))

                let wide = host_binary64(HOST_RINT, rm, b, 0, 0)
                flags = 0
                let other = from64(b, rm, &flags)
                check(b, rm, (other, flags), saturated(Double(bitPattern: wide.bits), flags: wide.flags, type))
            }
            // The fifth mode, through the host's function that rounds ties away from zero.
            let value = Double(bitPattern: b)
            let rounded = value.rounded(.toNearestOrAwayFromZero)
            var flags: UInt8 = 0
            let away = from64(b, SoftFloat.roundingNearestAway, &flags)
            check(b, 4, (away, flags), saturated(rounded, flags: rounded == value ? 0 : SoftFloat.inexact, type))
        }
        #expect(failures == 0)
    }

    @Test func `conversions to integers round and saturate`() {
        compareToInteger(
            Int32.self, { SoftFloat.toInt32_32($0, rm: $1, flags: &$2) },
            { SoftFloat.toInt32_64($0, rm: $1, flags: &$2) })
        compareToInteger(
            UInt32.self, { SoftFloat.toUInt32_32($0, rm: $1, flags: &$2) },
            { SoftFloat.toUInt32_64($0, rm: $1, flags: &$2) })
        compareToInteger(
            Int64.self, { SoftFloat.toInt64_32($0, rm: $1, flags: &$2) },
            { SoftFloat.toInt64_64($0, rm: $1, flags: &$2) })
        compareToInteger(
            UInt64.self, { SoftFloat.toUInt64_32($0, rm: $1, flags: &$2) },
            { SoftFloat.toUInt64_64($0, rm: $1, flags: &$2) })
    }

    @Test func `conversions from integers agree with the host`() {
        var comparison = Comparison("from integer")
        var vectors = Vectors(seed: 0x7777_1111)
        for _ in 0..<count {
            let v = vectors.integer()
            let low = UInt32(truncatingIfNeeded: v)
            let signed32 = Int32(truncatingIfNeeded: v), signed64 = Int64(truncatingIfNeeded: v)
            for rm in hostModes {
                func check(_ expected: host_result, _ ours: (inout UInt8) -> UInt64) {
                    var flags: UInt8 = 0
                    let bits = ours(&flags)
                    comparison.check(bits, flags, is: expected, rm: rm, v)
                }
                let extended = UInt64(bitPattern: Int64(signed32))
                check(host_integer_to_binary32(1, rm, v)) {
                    UInt64(SoftFloat.fromInt64_32(signed64, rm: rm, flags: &$0))
                }
                check(host_integer_to_binary32(0, rm, v)) { UInt64(SoftFloat.fromUInt64_32(v, rm: rm, flags: &$0)) }
                check(host_integer_to_binary32(1, rm, extended)) {
                    UInt64(SoftFloat.fromInt32_32(signed32, rm: rm, flags: &$0))
                }
                check(host_integer_to_binary32(0, rm, UInt64(low))) {
                    UInt64(SoftFloat.fromUInt32_32(low, rm: rm, flags: &$0))
                }
                check(host_integer_to_binary64(1, rm, v)) { SoftFloat.fromInt64_64(signed64, rm: rm, flags: &$0) }
                check(host_integer_to_binary64(0, rm, v)) { SoftFloat.fromUInt64_64(v, rm: rm, flags: &$0) }
                check(host_integer_to_binary64(1, rm, extended)) {
                    SoftFloat.fromInt32_64(signed32, rm: rm, flags: &$0)
                }
                check(host_integer_to_binary64(0, rm, UInt64(low))) {
                    SoftFloat.fromUInt32_64(low, rm: rm, flags: &$0)
                }
            }
        }
        #expect(comparison.failures == 0)
    }

    @Test func `narrowing and widening agree with the host`() {
        var comparison = Comparison("convert")
        var vectors = Vectors(seed: 0x3141_5926)
        for _ in 0..<count {
            let narrow = vectors.binary32()
            // Exponents around binary32's range, where binary64's own would all overflow or vanish.
            var wide = vectors.binary64()
            if vectors.next() & 1 == 0 {
                wide = wide & ~(0x7ff &<< 52) | (1023 - 160 + vectors.next() % 300) &<< 52
            }
            for rm in hostModes {
                var flags: UInt8 = 0
                let bits = SoftFloat.f64ToF32(wide, rm: rm, flags: &flags)
                comparison.check(
                    UInt64(bits), flags, is: canonical(host_binary64(HOST_CONVERT, rm, wide, 0, 0), width: 32),
                    rm: rm, wide)
            }
            // A subnormal operand is an exception on x86 alone ("denormal operand"), not one of IEEE 754's.
            var flags: UInt8 = 0
            let bits = SoftFloat.f32ToF64(narrow, flags: &flags)
            comparison.check(
                bits, flags, is: canonical(host_binary32(HOST_CONVERT, 0, narrow, 0, 0), width: 64), rm: 0,
                UInt64(narrow))
        }
        #expect(comparison.failures == 0)
    }
}
