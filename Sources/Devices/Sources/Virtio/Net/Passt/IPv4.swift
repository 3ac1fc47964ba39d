import BatonRuntime

/// An IPv4 address or mask, as a number.
struct IPv4: Equatable {
    var number: UInt32

    init(_ number: UInt32) { self.number = number }

    /// Four decimal numbers, `10.0.2.15`; nil for anything else.
    init?(_ text: String) {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        let bytes = parts.compactMap { $0.utf8.count <= 3 ? UInt8($0) : nil }
        guard parts.count == 4, bytes.count == 4 else { return nil }
        number = bytes.reduce(0) { $0 << 8 | UInt32($1) }
    }

    /// A mask with so many leading ones.
    init(bits: Int) { number = bits == 0 ? 0 : ~UInt32(0) << (32 - bits) }

    /// `ADDRESS`, `ADDRESS/BITS` or `ADDRESS/MASK`; without a mask that of the address' class, as QEMU has it.
    static func network(_ text: String) -> (address: IPv4, mask: IPv4)? {
        let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
        guard let address = IPv4(String(parts[0])) else { return nil }
        guard parts.count == 2 else {
            let first = address.number >> 24
            return (address, IPv4(bits: first < 128 ? 8 : first < 192 ? 16 : 24))
        }
        if let bits = Int(parts[1]) { return (0...32).contains(bits) ? (address, IPv4(bits: bits)) : nil }
        return IPv4(String(parts[1])).map { (address, $0) }
    }

    var description: String { (0..<4).reversed().map { "\(number >> (8 * $0) & 0xff)" }.joined(separator: ".") }
}
