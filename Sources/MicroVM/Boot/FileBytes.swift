import BatonRuntime
import Glibc

/// The bytes of a file that may be anything: what is read beyond its end is an error.
struct FileBytes {
    let bytes: [UInt8]
    var count: Int { bytes.count }

    /// A little-endian number.
    func field<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type, of what: String) throws(VMMError) -> T {
        guard let value = fieldIfAny(offset, type) else { throw VMMError("\(what) is truncated") }
        return value
    }

    /// A little-endian number; nil beyond the end.
    func fieldIfAny<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type) -> T? {
        guard offset >= 0, offset <= bytes.count - MemoryLayout<T>.size else { return nil }
        return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }

    /// Whether the file has these bytes at `offset`.
    func has(_ text: [UInt8], at offset: Int) -> Bool {
        offset >= 0 && offset <= bytes.count - text.count && bytes[offset...].starts(with: text)
    }

    /// Reads a file as a whole.
    /// - Parameter limit: bytes; a larger file is refused.
    static func read(_ path: String, limit: UInt64) throws(VMMError) -> FileBytes {
        let fd = try FD.openFile(path, O_RDONLY)
        return FileBytes(bytes: try FD.readAll(fd.raw, limit: Int(clamping: limit), from: "'\(path)'"))
    }
}

/// Runs `body`, and puts `what` before the error's message.
func attempt<T>(_ what: String, _ body: () throws(VMMError) -> T) throws(VMMError) -> T {
    do { return try body() } catch { throw error.prefixed(what) }
}

extension Array where Element == UInt8 {
    /// Stores a number, little endian. The place must be there.
    mutating func store<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        replaceSubrange(offset..<offset + MemoryLayout<T>.size, with: littleEndianBytes(value))
    }
}

extension UInt64 {
    /// The next multiple; nil beyond 2^64. `unit` is a power of two.
    func alignedUp(_ unit: UInt64) -> UInt64? {
        let (sum, overflow) = addingReportingOverflow(unit - 1)
        return overflow ? nil : sum & ~(unit - 1)
    }

    func alignedDown(_ unit: UInt64) -> UInt64 { self & ~(unit - 1) }
}
