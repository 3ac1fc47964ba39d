import BatonRuntime

/// A structure of linux/vfio.h as it is asked and answered, most of which begin
/// with their size. Offsets beyond the end read as 0: an answer may say less
/// than it should.
public struct VFIOArgument {
    public private(set) var bytes: [UInt8]

    /// A structure that begins with its size (`argsz`) and flags.
    public init(size: Int, flags: UInt32 = 0) {
        bytes = Array(repeating: 0, count: max(size, 8))
        set(0, UInt32(truncatingIfNeeded: size))
        set(4, flags)
    }

    /// Any other.
    public init(bytes: [UInt8]) { self.bytes = bytes }

    public mutating func set<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ value: T) {
        for (index, byte) in littleEndianBytes(value).enumerated() where bytes.indices.contains(offset + index) {
            bytes[offset + index] = byte
        }
    }

    public func value<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, as type: T.Type = T.self) -> T {
        guard offset >= 0, offset <= bytes.count - MemoryLayout<T>.size else { return 0 }
        var value: T = 0
        for index in 0..<MemoryLayout<T>.size { value |= T(bytes[offset + index]) << T(8 * index) }
        return value
    }

    /// Calls what fills in an answer.
    public mutating func withBytes<R>(_ body: (UnsafeMutableRawBufferPointer) -> R) -> R {
        bytes.withUnsafeMutableBytes(body)
    }
}
