/// Base64 as RFC 4648, section 4 has it, with padding.
public enum Base64 {
    private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)

    public static func encode(_ bytes: [UInt8]) -> String {
        var output: [UInt8] = []
        output.reserveCapacity((bytes.count + 2) / 3 * 4)
        for start in stride(from: 0, to: bytes.count, by: 3) {
            let group = bytes[start..<min(start + 3, bytes.count)]
            let word = group.reduce(UInt32(0)) { $0 << 8 | UInt32($1) } << UInt32(8 * (3 - group.count))
            for index in 0..<4 {
                let digit = Int(word >> UInt32(18 - 6 * index) & 63)
                output.append(index <= group.count ? alphabet[digit] : UInt8(ascii: "="))
            }
        }
        return String(decoding: output, as: UTF8.self)
    }

    /// - Returns: nil when the text is not base64. Line ends are skipped.
    public static func decode(_ text: String) -> [UInt8]? {
        var output: [UInt8] = []
        var word: UInt32 = 0
        var digits = 0
        var padding = 0
        for byte in text.utf8 where byte != 10 && byte != 13 {
            if byte == UInt8(ascii: "=") {
                padding += 1
                continue
            }
            guard padding == 0, let digit = alphabet.firstIndex(of: byte) else { return nil }
            word = word << 6 | UInt32(digit)
            digits += 1
            if digits % 4 == 0 {
                for shift: UInt32 in [16, 8, 0] { output.append(UInt8(truncatingIfNeeded: word >> shift)) }
                word = 0
            }
        }
        switch (digits % 4, padding) {
        case (0, 0): break
        case (2, 2): output.append(UInt8(truncatingIfNeeded: word >> 4))
        case (3, 1):
            output.append(UInt8(truncatingIfNeeded: word >> 10))
            output.append(UInt8(truncatingIfNeeded: word >> 2))
        default: return nil
        }
        return output
    }
}
