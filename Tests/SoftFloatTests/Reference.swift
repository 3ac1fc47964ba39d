import HostFloat
import SoftFloat
import Testing

/// The four modes that the host has too.
let hostModes: [UInt8] = [0, 1, 2, 3]

func canonical(_ result: host_result, width: Int) -> host_result {
    var result = result
    if width == 32, result.bits & 0x7fff_ffff > 0x7f80_0000 { result.bits = UInt64(SoftFloat.canonicalNaN32) }
    if width == 64, result.bits & (1 << 63 - 1) > 0x7ff0_0000_0000_0000 { result.bits = SoftFloat.canonicalNaN64 }
    return result
}

/// Counts differences and reports the first few with all that is needed to repeat them.
struct Comparison {
    let name: String
    private(set) var failures = 0

    init(_ name: String) { self.name = name }

    @inline(__always)
    mutating func check(
        _ bits: UInt64, _ flags: UInt8, is expected: host_result, rm: UInt8, _ a: UInt64, _ b: UInt64 = 0,
        _ c: UInt64 = 0
    ) {
        if bits != expected.bits || flags != expected.flags {
            report(bits, flags, expected, rm, a, b, c)
        }
    }

    @inline(never)
    private mutating func report(
        _ bits: UInt64, _ flags: UInt8, _ expected: host_result, _ rm: UInt8, _ a: UInt64, _ b: UInt64, _ c: UInt64
    ) {
        failures += 1
        guard failures <= 3 else { return }
        func hex(_ value: UInt64) -> String { String(value, radix: 16) }
        Issue.record(
            """
            \(name) rm \(rm) of \(hex(a)) \(hex(b)) \(hex(c)): \
            \(hex(bits)) flags \(flags), host \(hex(expected.bits)) flags \(expected.flags)
            """)
    }
}
