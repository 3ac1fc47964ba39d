/// An input that is read as a sequence of choices. Behind its end everything is 0.
struct Input {
    private let bytes: [UInt8]
    private var position = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    var isAtEnd: Bool { position >= bytes.count }

    mutating func byte() -> UInt8 {
        guard position < bytes.count else { return 0 }
        defer { position += 1 }
        return bytes[position]
    }

    /// Least significant byte first.
    mutating func number<T: FixedWidthInteger & UnsignedInteger>(_ type: T.Type = T.self) -> T {
        var value: T = 0
        for index in 0..<MemoryLayout<T>.size { value |= T(truncatingIfNeeded: byte()) << T(8 * index) }
        return value
    }

    mutating func bool() -> Bool { byte() & 1 != 0 }

    /// One of `choices`, which has at most 256 elements.
    mutating func choice<T>(_ choices: [T]) -> T { choices[Int(byte()) % choices.count] }

    mutating func take(_ count: Int) -> [UInt8] {
        let end = min(position + count, bytes.count)
        defer { position = end }
        return Array(bytes[position..<end])
    }

    /// All that is left.
    mutating func rest() -> [UInt8] { take(bytes.count) }

    /// An address: near one of `bases`, or anywhere.
    mutating func address(near bases: [UInt64]) -> UInt64 {
        let kind = Int(byte())
        if kind == 255 { return number(UInt64.self) }
        return bases[kind % bases.count] &+ UInt64(number(UInt16.self))
    }
}

/// Numbers as bytes, least significant first; what seeds are made of.
func little<T: FixedWidthInteger>(_ values: T...) -> [UInt8] {
    values.flatMap { value in withUnsafeBytes(of: value.littleEndian) { Array($0) } }
}

extension Array where Element == UInt8 {
    mutating func store<T: FixedWidthInteger>(little value: T, at offset: Int) {
        for (index, byte) in little(value).enumerated() { self[offset + index] = byte }
    }

    func load<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type = T.self) -> T {
        withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }
}
