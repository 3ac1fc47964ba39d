/// Prints a number as `0x…`.
public struct Hex: CustomStringConvertible {
    let value: UInt64
    public init(_ value: UInt64) { self.value = value }
    public init(_ value: Int) { self.value = UInt64(bitPattern: Int64(value)) }
    public var description: String { "0x" + String(value, radix: 16) }
}
