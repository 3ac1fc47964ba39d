extension JSON {
    /// The value as text, spaced as QEMU's `qobject_to_json`: `{"a": 1, "b": []}`.
    /// ASCII only: everything else is escaped, so text survives any channel.
    /// - Parameter pretty: four blanks of indentation a level, one member a line.
    public func text(pretty: Bool = false) -> String {
        String(decoding: bytes(pretty: pretty), as: UTF8.self)
    }

    /// The bytes of `text(pretty:)`.
    public func bytes(pretty: Bool = false) -> [UInt8] {
        var writer = JSONWriter(pretty: pretty)
        writer.write(self, level: 0)
        return writer.output
    }
}

private struct JSONWriter {
    let pretty: Bool
    var output: [UInt8] = []

    init(pretty: Bool) { self.pretty = pretty }

    mutating func write(_ value: JSON, level: Int) {
        switch value {
        case .null: append("null")
        case .bool(let value): append(value ? "true" : "false")
        case .int(let value): append(String(value))
        case .uint(let value): append(String(value))
        // JSON has no infinities; QEMU does not make them either.
        case .double(let value): append(value.isFinite ? value.description : "null")
        case .string(let value): writeString(value)
        case .array(let elements):
            writeList("[", "]", count: elements.count, level: level) { writer, index in
                writer.write(elements[index], level: level + 1)
            }
        case .object(let object):
            let members = object.members
            writeList("{", "}", count: members.count, level: level) { writer, index in
                writer.writeString(members[index].key)
                writer.append(": ")
                writer.write(members[index].value, level: level + 1)
            }
        }
    }

    private mutating func writeList(
        _ open: StaticString, _ close: StaticString, count: Int, level: Int, _ element: (inout JSONWriter, Int) -> Void
    ) {
        append(open.description)
        for index in 0..<count {
            if index > 0 { append(pretty ? "," : ", ") }
            newLine(level + 1)
            element(&self, index)
        }
        if count > 0 { newLine(level) }
        append(close.description)
    }

    private mutating func newLine(_ level: Int) {
        guard pretty else { return }
        output.append(UInt8(ascii: "\n"))
        output.append(contentsOf: repeatElement(UInt8(ascii: " "), count: 4 * level))
    }

    private mutating func writeString(_ text: String) {
        output.append(UInt8(ascii: "\""))
        for scalar in text.unicodeScalars {
            switch scalar.value {
            case 0x22: append("\\\"")
            case 0x5C: append("\\\\")
            case 8: append("\\b")
            case 9: append("\\t")
            case 10: append("\\n")
            case 12: append("\\f")
            case 13: append("\\r")
            case 0x20..<0x7F: output.append(UInt8(truncatingIfNeeded: scalar.value))
            case 0x10000...:
                let rest = scalar.value - 0x10000
                writeEscape(0xD800 + rest >> 10)
                writeEscape(0xDC00 + rest & 0x3FF)
            default: writeEscape(scalar.value)
            }
        }
        output.append(UInt8(ascii: "\""))
    }

    private mutating func writeEscape(_ unit: UInt32) {
        append("\\u")
        for shift: UInt32 in [12, 8, 4, 0] {
            let digit = UInt8(truncatingIfNeeded: unit >> shift & 15)
            output.append(digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "A") - 10 + digit)
        }
    }

    private mutating func append(_ text: String) { output.append(contentsOf: text.utf8) }
}
