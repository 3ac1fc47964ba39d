import Foundation

/// A reader and writer of checkpoints and CPR states, made from
/// Sources/Documentation/checkpoint-format.md and from nothing else.
struct FormatReader {
    struct Mismatch: Error, CustomStringConvertible {
        var description: String
    }
    struct Field {
        var name: String
        var type: UInt8
        var optional = false
        var value: Data
        var number: UInt64 { value.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
        var text: String { String(decoding: value, as: UTF8.self) }
    }
    struct Section {
        var name: String
        var version: UInt32
        var optional = false
        var fields: [Field]

        subscript(name: String) -> Field? { fields.first { $0.name == name } }
    }

    var magic: String
    var sections: [Section] = []
    /// What follows the sections, from the next multiple of 4096 on.
    var contents: Data

    private static func padding(_ length: Int) -> Int { -length & 4095 }

    subscript(name: String) -> Section? { sections.first { $0.name == name } }

    static func crc(_ data: Data) -> UInt32 {
        var crc = ~UInt32(0)
        for byte in data {
            crc ^= UInt32(byte)
            for _ in 0..<8 { crc = crc & 1 == 1 ? crc >> 1 ^ 0x82f6_3b78 : crc >> 1 }
        }
        return ~crc
    }

    // MARK: Reading

    private struct Cursor {
        let data: Data
        var position = 0
        var isAtEnd: Bool { position == data.count }
        func peek(_ count: Int) -> Data { Data(data[position..<min(position + count, data.count)]) }
        mutating func take(_ count: Int) throws -> Data {
            guard data.count - position >= count else { throw Mismatch(description: "truncated") }
            defer { position += count }
            return peek(count)
        }
        mutating func number(_ bytes: Int) throws -> Int {
            Int(truncatingIfNeeded: try take(bytes).reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) })
        }
    }

    init(_ data: Data) throws {
        func require(_ condition: Bool, _ what: String) throws { if !condition { throw Mismatch(description: what) } }
        var cursor = Cursor(data: data)
        magic = String(decoding: try cursor.take(8), as: UTF8.self)
        try require(magic == "BATONVM\0" || magic == "BATONCPR", "magic")
        try require(try cursor.number(4) == 1, "format version")
        let count = try cursor.number(4), length = try cursor.number(8)
        try require(UInt32(try cursor.number(4)) == Self.crc(data.prefix(24)), "CRC of the header")
        try require(try cursor.number(4) == 0, "zero")
        var body = Cursor(data: try cursor.take(length))
        for _ in 0..<count {
            let head = body.peek(12)
            let nameLength = try body.number(2), flags = try body.number(2), version = try body.number(4)
            let payloadLength = try body.number(4), crc = UInt32(try body.number(4))
            let name = try body.take(nameLength), payload = try body.take(payloadLength)
            try require(crc == Self.crc(head + name + payload), "CRC of a section")
            var fields: [Field] = []
            var inner = Cursor(data: payload)
            while !inner.isAtEnd {
                let name = String(decoding: try inner.take(try inner.number(1)), as: UTF8.self)
                let type = UInt8(try inner.number(1))
                let flags = try inner.number(1)
                fields.append(
                    Field(name: name, type: type, optional: flags & 1 == 1, value: try inner.take(try inner.number(4))))
            }
            sections.append(
                Section(
                    name: String(decoding: name, as: UTF8.self), version: UInt32(version), optional: flags & 1 == 1,
                    fields: fields))
        }
        try require(body.isAtEnd, "bytes after the last section")
        contents = Data()
        if self["ram-contents"] != nil { _ = try cursor.take(Self.padding(cursor.position)) }
        contents = Data(data.dropFirst(cursor.position))
        try require(contents.isEmpty || self["ram-contents"] != nil, "bytes after the sections")
    }

    // MARK: Writing

    private static func bytes(_ value: UInt64, _ count: Int) -> Data {
        Data((0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) })
    }

    var encoded: Data {
        var body = Data()
        for section in sections {
            var payload = Data()
            for field in section.fields {
                payload += Self.bytes(UInt64(field.name.utf8.count), 1) + Data(field.name.utf8)
                payload +=
                    Data([field.type, field.optional ? 1 : 0]) + Self.bytes(UInt64(field.value.count), 4) + field.value
            }
            var head = Self.bytes(UInt64(section.name.utf8.count), 2) + Self.bytes(section.optional ? 1 : 0, 2)
            head += Self.bytes(UInt64(section.version), 4) + Self.bytes(UInt64(payload.count), 4)
            let named = Data(section.name.utf8) + payload
            body += head + Self.bytes(UInt64(Self.crc(head + named)), 4) + named
        }
        var header = Data(magic.utf8) + Self.bytes(1, 4) + Self.bytes(UInt64(sections.count), 4)
        header += Self.bytes(UInt64(body.count), 8)
        var file = header + Self.bytes(UInt64(Self.crc(header)), 4) + Self.bytes(0, 4) + body
        if self["ram-contents"] != nil { file += Data(count: Self.padding(file.count)) + contents }
        return file
    }
}
