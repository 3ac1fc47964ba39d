/// Sizes and numbers as people write them on a command line: QEMU's
/// `qemu_strtosz` and `qemu_strtou64`.
public enum SizeText {
    public enum Failure: Error {
        case notASize
        case outOfRange
    }

    /// Parses `512M`, `1.5G`, `0x1000`, `65536`: digits, with a fraction only
    /// before a unit larger than a byte, and one of `B K M G T P E` in either case.
    /// - Parameter defaultUnit: bytes that a number without unit counts.
    /// - Returns: bytes, rounded down.
    public static func parse(_ text: String, defaultUnit: UInt64 = 1) throws(Failure) -> UInt64 {
        var bytes = Array(text.utf8)[...]
        while bytes.first == UInt8(ascii: " ") { bytes = bytes.dropFirst() }
        let hexadecimal =
            bytes.count > 2 && bytes.first == UInt8(ascii: "0")
            && (bytes.dropFirst().first == UInt8(ascii: "x") || bytes.dropFirst().first == UInt8(ascii: "X"))
        if hexadecimal { bytes = bytes.dropFirst(2) }
        let radix: UInt64 = hexadecimal ? 16 : 10

        var whole: UInt64 = 0
        var digits = 0
        var overflow = false
        while let byte = bytes.first, let value = digit(byte), value < radix {
            let (product, o1) = whole.multipliedReportingOverflow(by: radix)
            let (sum, o2) = product.addingReportingOverflow(value)
            overflow = overflow || o1 || o2
            whole = sum
            digits += 1
            bytes = bytes.dropFirst()
        }

        // Digits past the 18th cannot change a size.
        var fraction: UInt64 = 0
        var scale: UInt64 = 1
        if !hexadecimal, bytes.first == UInt8(ascii: ".") {
            bytes = bytes.dropFirst()
            while let byte = bytes.first, let value = digit(byte), value < 10 {
                if scale < 1_000_000_000_000_000_000 {
                    fraction = fraction * 10 + value
                    scale *= 10
                }
                digits += 1
                bytes = bytes.dropFirst()
            }
        }
        guard digits > 0 else { throw .notASize }

        var unit = defaultUnit
        if let suffix = bytes.first {
            guard bytes.count == 1, let known = SizeText.unit(suffix) else { throw .notASize }
            unit = known
        }
        if fraction != 0 && unit == 1 { throw .notASize }

        let (product, o3) = whole.multipliedReportingOverflow(by: unit)
        let part = scale.dividingFullWidth(fraction.multipliedFullWidth(by: unit)).quotient
        let (sum, o4) = product.addingReportingOverflow(part)
        guard !overflow, !o3, !o4 else { throw .outOfRange }
        return sum
    }

    /// Parses a signed number, decimal or `0x`; nil when it is none or does not fit.
    public static func number(_ text: String) -> Int64? {
        if text.hasPrefix("-") {
            guard let magnitude = unsignedNumber(String(text.dropFirst())) else { return nil }
            return magnitude == 1 << 63 ? Int64.min : Int64(exactly: magnitude).map { -$0 }
        }
        return unsignedNumber(text).flatMap { Int64(exactly: $0) }
    }

    /// Parses an unsigned number, decimal or `0x`; nil when it is none or does not fit.
    public static func unsignedNumber(_ text: String) -> UInt64? {
        guard let first = text.utf8.first, first != UInt8(ascii: "+"), first != UInt8(ascii: "-") else { return nil }
        if text.hasPrefix("0x") || text.hasPrefix("0X") {
            let digits = text.dropFirst(2)
            guard let lead = digits.utf8.first, digit(lead) != nil else { return nil }
            return UInt64(digits, radix: 16)
        }
        return UInt64(text)
    }

    private static func digit(_ byte: UInt8) -> UInt64? {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): UInt64(byte - UInt8(ascii: "0"))
        case UInt8(ascii: "a")...UInt8(ascii: "f"): UInt64(byte - UInt8(ascii: "a") + 10)
        case UInt8(ascii: "A")...UInt8(ascii: "F"): UInt64(byte - UInt8(ascii: "A") + 10)
        default: nil
        }
    }

    private static func unit(_ byte: UInt8) -> UInt64? {
        switch byte | 0x20 {
        case UInt8(ascii: "b"): 1
        case UInt8(ascii: "k"): 1 << 10
        case UInt8(ascii: "m"): 1 << 20
        case UInt8(ascii: "g"): 1 << 30
        case UInt8(ascii: "t"): 1 << 40
        case UInt8(ascii: "p"): 1 << 50
        case UInt8(ascii: "e"): 1 << 60
        default: nil
        }
    }
}
