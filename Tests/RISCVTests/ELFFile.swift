import Foundation
import TestSupport

/// As much of a 64-bit little-endian ELF file as the tests need.
struct ELFFile {
    private let data: Data

    init(path: String) throws {
        data = try Data(contentsOf: URL(fileURLWithPath: path))
        guard data.count > 64, data.starts(with: [0x7f, 0x45, 0x4c, 0x46, 2, 1]) else {
            throw TestError("\(path) is not an ELF file")
        }
    }

    private func read<T: FixedWidthInteger>(_ offset: UInt64, _ type: T.Type) -> T {
        data.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: Int(offset), as: type) }
    }

    var entry: UInt64 { read(24, UInt64.self) }

    /// Physical address and bytes of each loaded segment.
    var segments: [(address: UInt64, bytes: Data)] {
        let table = read(32, UInt64.self)
        return (0..<UInt64(read(56, UInt16.self))).compactMap { index in
            let header = table + index * 56
            guard read(header, UInt32.self) == 1 else { return nil }
            let offset = Int(read(header + 8, UInt64.self))
            let length = Int(read(header + 32, UInt64.self))
            return (read(header + 24, UInt64.self), data.subdata(in: offset..<offset + length))
        }
    }

    /// The value of a symbol.
    func symbol(_ name: String) -> UInt64? {
        let sections = read(40, UInt64.self)
        for index in 0..<UInt64(read(60, UInt16.self)) {
            let section = sections + index * 64
            guard read(section + 4, UInt32.self) == 2 else { continue }
            let start = read(section + 24, UInt64.self)
            let names = read(sections + UInt64(read(section + 40, UInt32.self)) * 64 + 24, UInt64.self)
            for entry in stride(from: start, to: start + read(section + 32, UInt64.self), by: 24) {
                let text = data[Int(names + UInt64(read(entry, UInt32.self)))...].prefix { $0 != 0 }
                if text.elementsEqual(name.utf8) { return read(entry + 8, UInt64.self) }
            }
        }
        return nil
    }
}
