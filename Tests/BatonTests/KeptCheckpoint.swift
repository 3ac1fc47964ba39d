import Foundation
import TestSupport

/// A checkpoint as text in the tree: its length, and each line that is not all zeroes, as `offset: hexadecimal digits`.
enum KeptCheckpoint {
    /// Where those of each version are.
    static let directory = "\(Products.repository)/Tests/BatonTests/Checkpoints"
    private static let lineLength = 64

    static func text(of bytes: Data) -> String {
        var text = "length \(bytes.count)\n"
        for start in stride(from: 0, to: bytes.count, by: lineLength) {
            let line = bytes[start..<min(start + lineLength, bytes.count)]
            guard line.contains(where: { $0 != 0 }) else { continue }
            text += String(start, radix: 16) + ": "
            for byte in line { text += (byte < 16 ? "0" : "") + String(byte, radix: 16) }
            text += "\n"
        }
        return text
    }

    /// Writes a file that has the bytes of a text, and holes for its zeroes.
    static func write(_ text: String, to path: String) throws {
        var lines = text.split(separator: "\n")
        guard let length = lines.first?.split(separator: " ").last.flatMap({ off_t($0) }) else {
            throw TestError("a kept checkpoint has no length")
        }
        lines.removeFirst()
        let fd = open(path, O_CREAT | O_RDWR | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0, ftruncate(fd, length) == 0 else { throw TestError("cannot write \(path)") }
        defer { close(fd) }
        for line in lines {
            let parts = line.split(separator: ":")
            guard parts.count == 2, let offset = off_t(parts[0], radix: 16) else { throw TestError("no line: \(line)") }
            let digits = Array(parts[1].dropFirst().utf8)
            let bytes = try stride(from: 0, to: digits.count - 1, by: 2).map { index -> UInt8 in
                guard let byte = UInt8(String(decoding: digits[index...index + 1], as: UTF8.self), radix: 16) else {
                    throw TestError("no line: \(line)")
                }
                return byte
            }
            guard pwrite(fd, bytes, bytes.count, offset) == bytes.count else { throw TestError("cannot write \(path)") }
        }
    }

    /// Reads a file in which there are large holes.
    static func read(_ path: String) throws -> Data {
        try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
    }
}
