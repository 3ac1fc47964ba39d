import BatonRuntime
import Glibc

/// The bytes of a file that may be anything: what is read beyond its end is an error.
package struct FileBytes {
    package let bytes: [UInt8]
    package var count: Int { bytes.count }

    package init(bytes: [UInt8]) { self.bytes = bytes }

    /// A little-endian number.
    package func field<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type, of what: String) throws(VMMError) -> T {
        guard let value = fieldIfAny(offset, type) else { throw VMMError("\(what) is truncated") }
        return value
    }

    /// A little-endian number; nil beyond the end.
    package func fieldIfAny<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type) -> T? {
        guard offset >= 0, offset <= bytes.count - MemoryLayout<T>.size else { return nil }
        return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }

    /// Whether the file has these bytes at `offset`.
    package func has(_ text: [UInt8], at offset: Int) -> Bool {
        offset >= 0 && offset <= bytes.count - text.count && bytes[offset...].starts(with: text)
    }

    /// Reads a file as a whole: as it was at the VMM's start, if `StartFiles` holds it.
    /// - Parameter limit: bytes; a larger file is refused.
    package static func read(_ path: String, limit: UInt64) throws(VMMError) -> FileBytes {
        if let held = StartFiles.find(path) { return try read(held, path, limit: limit) }
        let fd = try FD.openFile(path, O_RDONLY)
        return try read(fd.raw, path, limit: limit)
    }

    private static func read(_ fd: Int32, _ path: String, limit: UInt64) throws(VMMError) -> FileBytes {
        var status = stat()
        guard fstat(fd, &status) == 0, status.st_size > 0, UInt64(status.st_size) <= limit else {
            // Its size is unknown, or an error that this reports. The offset is nobody's: a held file is read at its start.
            lseek(fd, 0, SEEK_SET)
            return FileBytes(bytes: try FD.readAll(fd, limit: Int(clamping: limit), from: "'\(path)'"))
        }
        // The guest's start waits for this: the bytes are copied once.
        let size = Int(status.st_size)
        var code: Int32 = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            while count < size {
                let place = buffer.baseAddress.map { $0 + count }
                let result = retryingInterrupts { pread(fd, place, size - count, off_t(count)) }
                if result < 0 { code = errno }
                // At 0 the file has become shorter.
                guard result > 0 else { return }
                count += result
            }
        }
        guard code == 0 else { throw .system("Could not read '\(path)'", errno: code) }
        return FileBytes(bytes: bytes)
    }
}

/// Runs `body`, and puts `what` before the error's message.
package func attempt<T>(_ what: String, _ body: () throws(VMMError) -> T) throws(VMMError) -> T {
    do { return try body() } catch { throw error.prefixed(what) }
}

extension Array where Element == UInt8 {
    /// Stores a number, little endian. The place must be there.
    package mutating func store<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        replaceSubrange(offset..<offset + MemoryLayout<T>.size, with: littleEndianBytes(value))
    }
}

extension UInt64 {
    /// The next multiple; nil beyond 2^64. `unit` is a power of two.
    package func alignedUp(_ unit: UInt64) -> UInt64? {
        let (sum, overflow) = addingReportingOverflow(unit - 1)
        return overflow ? nil : sum & ~(unit - 1)
    }

    package func alignedDown(_ unit: UInt64) -> UInt64 { self & ~(unit - 1) }
}
