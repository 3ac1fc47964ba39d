import HostFloat
import SoftFloat
import Testing

@Suite struct ComparisonTests {
    @Test func `comparisons agree with the host in result and flags`() {
        var comparison = Comparison("compare")
        var vectors = Vectors(seed: 0x2718_2818)
        for index in 0..<200_000 {
            let a = vectors.binary32(), c = vectors.binary64()
            let b = index & 7 == 0 ? a ^ (vectors.next() & 1 == 0 ? 0 : 1 << 31) : vectors.binary32()
            let d = index & 7 == 0 ? c ^ (vectors.next() & 1 == 0 ? 0 : 1 << 63) : vectors.binary64()
            func check(_ operation: host_operation, _ narrow: (inout UInt8) -> Bool, _ wide: (inout UInt8) -> Bool) {
                var flags: UInt8 = 0
                let first = narrow(&flags)
                comparison.check(
                    first ? 1 : 0, flags, is: host_binary32(operation, 0, a, b, 0), rm: 0, UInt64(a), UInt64(b))
                flags = 0
                let second = wide(&flags)
                comparison.check(second ? 1 : 0, flags, is: host_binary64(operation, 0, c, d, 0), rm: 0, c, d)
            }
            check(HOST_EQ, { SoftFloat.eq32(a, b, flags: &$0) }, { SoftFloat.eq64(c, d, flags: &$0) })
            check(HOST_LT, { SoftFloat.lt32(a, b, flags: &$0) }, { SoftFloat.lt64(c, d, flags: &$0) })
            check(HOST_LE, { SoftFloat.le32(a, b, flags: &$0) }, { SoftFloat.le64(c, d, flags: &$0) })
        }
        #expect(comparison.failures == 0)
    }

    @Test func `minimum and maximum order zeros and ignore quiet NaNs`() {
        let one: UInt32 = 0x3f80_0000, minusZero: UInt32 = 1 << 31, quiet: UInt32 = 0xffc1_2345
        let signaling: UInt32 = 0x7f80_0001, minusInfinity: UInt32 = 0xff80_0000
        func run(_ body: (inout UInt8) -> UInt32) -> [UInt32] {
            var flags: UInt8 = 0
            let result = body(&flags)
            return [result, UInt32(flags)]
        }
        #expect(run { SoftFloat.min32(0, minusZero, flags: &$0) } == [minusZero, 0])
        #expect(run { SoftFloat.min32(minusZero, 0, flags: &$0) } == [minusZero, 0])
        #expect(run { SoftFloat.max32(0, minusZero, flags: &$0) } == [0, 0])
        #expect(run { SoftFloat.max32(minusZero, 0, flags: &$0) } == [0, 0])
        #expect(run { SoftFloat.min32(one, quiet, flags: &$0) } == [one, 0])
        #expect(run { SoftFloat.max32(quiet, one, flags: &$0) } == [one, 0])
        #expect(run { SoftFloat.max32(signaling, one, flags: &$0) } == [one, 16])
        #expect(run { SoftFloat.min32(quiet, quiet, flags: &$0) } == [SoftFloat.canonicalNaN32, 0])
        #expect(run { SoftFloat.min32(quiet, signaling, flags: &$0) } == [SoftFloat.canonicalNaN32, 16])
        #expect(run { SoftFloat.min32(one, minusInfinity, flags: &$0) } == [minusInfinity, 0])
        #expect(run { SoftFloat.max32(one, minusInfinity, flags: &$0) } == [one, 0])
    }

    @Test func `minimum and maximum of numbers are the host's`() {
        var vectors = Vectors(seed: 99)
        var failures = 0
        for _ in 0..<100_000 {
            let a = vectors.binary64(), b = vectors.binary64()
            let x = Double(bitPattern: a), y = Double(bitPattern: b)
            if x.isNaN || y.isNaN || x == y { continue }
            var flags: UInt8 = 0
            let smaller = SoftFloat.min64(a, b, flags: &flags), larger = SoftFloat.max64(a, b, flags: &flags)
            if smaller != min(x, y).bitPattern || larger != max(x, y).bitPattern || flags != 0 { failures += 1 }
        }
        #expect(failures == 0)
    }

    @Test func `every class has its bit`() {
        let narrow: [UInt32] = [
            0xff80_0000, 0xbf80_0000, 0x8000_0001, 0x8000_0000, 0, 0x007f_ffff, 0x0080_0000, 0x7f80_0000,
            0x7fa0_0000, 0xffc0_0000,
        ]
        let wide: [UInt64] = [
            0xfff0 << 48, 0xbff0 << 48, 1 << 63 | 1, 1 << 63, 0, 0x000f_ffff_ffff_ffff, 0x0010 << 48, 0x7ff0 << 48,
            0x7ff4 << 48, 0xfff8 << 48,
        ]
        #expect(narrow.map(SoftFloat.classify32) == (0..<10).map { 1 << $0 })
        #expect(wide.map(SoftFloat.classify64) == (0..<10).map { 1 << $0 })
    }
}
