import Glibc

/// Builds one value from a sequence of tokens. Keeps its own stack, so input
/// cannot choose how deep the process' stack grows.
struct JSONBuilder {
    private enum Container {
        case array([JSON])
        case object(ObjectBuilder)
    }

    private struct ObjectBuilder {
        var members: [(key: String, value: JSON)] = []
        var seen: Set<String> = []
        var key = ""
    }

    /// What may come next.
    private enum Expectation {
        case value
        case valueOrEnd
        case keyOrEnd
        case key
        case colon
        case separator
    }

    private var stack: [Container] = []
    private var expectation = Expectation.value
    private(set) var result: JSON?

    /// - Throws: `JSON parse error, …`. The builder must be dropped then.
    mutating func add(_ token: JSONLexer.Token) throws(VMMError) {
        switch expectation {
        case .value, .valueOrEnd:
            if case .closeArray = token, case .valueOrEnd = expectation { return close() }
            try addValue(token)
        case .keyOrEnd, .key:
            if case .closeObject = token, case .keyOrEnd = expectation { return close() }
            guard case .string(let raw) = token, case .object(var object)? = stack.popLast() else {
                throw Self.error("key is not a string in object")
            }
            object.key = try Self.string(raw)
            guard object.seen.insert(object.key).inserted else { throw Self.error("duplicate key") }
            stack.append(.object(object))
            expectation = .colon
        case .colon:
            guard case .colon = token else { throw Self.error("missing : in object pair") }
            expectation = .value
        case .separator:
            switch (stack.last, token) {
            case (.array, .comma): expectation = .value
            case (.object, .comma): expectation = .key
            case (.array, .closeArray), (.object, .closeObject): close()
            case (.object, _): throw Self.error("expected separator in dict")
            default: throw Self.error("expected separator in list")
            }
        }
    }

    private mutating func addValue(_ token: JSONLexer.Token) throws(VMMError) {
        switch token {
        case .openArray:
            stack.append(.array([]))
            expectation = .valueOrEnd
        case .openObject:
            stack.append(.object(ObjectBuilder()))
            expectation = .keyOrEnd
        case .string(let raw): put(.string(try Self.string(raw)))
        case .number(let raw): put(try Self.number(raw))
        case .keyword(let raw):
            switch String(decoding: raw.prefix(16), as: UTF8.self) {
            case "true": put(.bool(true))
            case "false": put(.bool(false))
            case "null": put(.null)
            default: throw Self.error("invalid keyword '\(JSONLexer.text(raw))'")
            }
        case .closeArray, .closeObject, .comma, .colon:
            throw Self.error("expecting value")
        }
    }

    private mutating func put(_ value: JSON) {
        expectation = .separator
        switch stack.popLast() {
        case nil: result = value
        case .array(var elements)?:
            elements.append(value)
            stack.append(.array(elements))
        case .object(var object)?:
            object.members.append((key: object.key, value: value))
            stack.append(.object(object))
        }
    }

    private mutating func close() {
        switch stack.popLast() {
        case .array(let elements)?: put(.array(elements))
        case .object(let object)?: put(.object(JSONObject(uniqueMembers: object.members)))
        case nil: break
        }
    }

    private static func error(_ text: String) -> VMMError { VMMError("JSON parse error, \(text)") }

    /// A number as RFC 8259, 6 writes it: int64, else uint64, else double.
    static func number(_ raw: [UInt8]) throws(VMMError) -> JSON {
        var rest = raw[...]
        func isDigit(_ byte: UInt8?) -> Bool { byte.map { $0 &- UInt8(ascii: "0") < 10 } ?? false }
        func skipDigits() -> Bool {
            guard isDigit(rest.first) else { return false }
            while isDigit(rest.first) { rest = rest.dropFirst() }
            return true
        }
        let malformed = error("stray '\(JSONLexer.text(raw))'")
        if rest.first == UInt8(ascii: "-") { rest = rest.dropFirst() }
        if rest.first == UInt8(ascii: "0") {
            rest = rest.dropFirst()
        } else if !skipDigits() {
            throw malformed
        }
        var isInteger = true
        if rest.first == UInt8(ascii: ".") {
            isInteger = false
            rest = rest.dropFirst()
            guard skipDigits() else { throw malformed }
        }
        if rest.first.map({ $0 | 0x20 }) == UInt8(ascii: "e") {
            isInteger = false
            rest = rest.dropFirst()
            if rest.first == UInt8(ascii: "+") || rest.first == UInt8(ascii: "-") { rest = rest.dropFirst() }
            guard skipDigits() else { throw malformed }
        }
        guard rest.isEmpty else { throw malformed }
        let text = String(decoding: raw, as: UTF8.self)
        if isInteger {
            if let value = Int64(text) { return .int(value) }
            if let value = UInt64(text) { return .uint(value) }
        }
        let value = strtod(text, nil)
        guard value.isFinite else { throw error("number out of range '\(JSONLexer.text(raw))'") }
        return .double(value)
    }

    /// Resolves escapes and checks UTF-8. `\u0000` is refused, as in QEMU:
    /// what takes the string may be a C interface.
    static func string(_ raw: [UInt8]) throws(VMMError) -> String {
        var bytes: [UInt8]
        if raw.contains(UInt8(ascii: "\\")) {
            bytes = []
            bytes.reserveCapacity(raw.count)
            var position = 0
            while position < raw.count {
                let byte = raw[position]
                position += 1
                if byte != UInt8(ascii: "\\") {
                    bytes.append(byte)
                } else {
                    try unescape(raw, &position, into: &bytes)
                }
            }
        } else {
            bytes = raw
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw error("invalid UTF-8 sequence in string")
        }
        return text
    }

    private static func unescape(_ raw: [UInt8], _ position: inout Int, into bytes: inout [UInt8]) throws(VMMError) {
        let start = position
        func invalid(_ length: Int) -> VMMError {
            let sequence = raw[min(start, raw.count)..<min(start + length, raw.count)]
            return error("invalid escape sequence '\\\(String(decoding: sequence, as: UTF8.self))'")
        }
        guard position < raw.count else { throw invalid(1) }
        let kind = raw[position]
        position += 1
        switch kind {
        case UInt8(ascii: "\""), UInt8(ascii: "'"), UInt8(ascii: "\\"), UInt8(ascii: "/"): bytes.append(kind)
        case UInt8(ascii: "b"): bytes.append(8)
        case UInt8(ascii: "f"): bytes.append(12)
        case UInt8(ascii: "n"): bytes.append(10)
        case UInt8(ascii: "r"): bytes.append(13)
        case UInt8(ascii: "t"): bytes.append(9)
        case UInt8(ascii: "u"):
            guard var value = hex4(raw, &position) else { throw invalid(5) }
            if value & 0xFC00 == 0xD800 {
                guard position + 1 < raw.count, raw[position] == UInt8(ascii: "\\"),
                    raw[position + 1] == UInt8(ascii: "u")
                else { throw invalid(5) }
                position += 2
                guard let low = hex4(raw, &position), low & 0xFC00 == 0xDC00 else { throw invalid(11) }
                value = 0x10000 + (value & 0x3FF) << 10 + low & 0x3FF
            }
            guard value != 0, let scalar = Unicode.Scalar(value) else { throw invalid(5) }
            bytes.append(contentsOf: UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter)
        default: throw invalid(1)
        }
    }

    private static func hex4(_ raw: [UInt8], _ position: inout Int) -> UInt32? {
        guard position + 4 <= raw.count else { return nil }
        var value: UInt32 = 0
        for byte in raw[position..<position + 4] {
            switch byte {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): value = value << 4 | UInt32(byte - UInt8(ascii: "0"))
            case UInt8(ascii: "a")...UInt8(ascii: "f"): value = value << 4 | UInt32(byte - UInt8(ascii: "a") + 10)
            case UInt8(ascii: "A")...UInt8(ascii: "F"): value = value << 4 | UInt32(byte - UInt8(ascii: "A") + 10)
            default: return nil
            }
        }
        position += 4
        return value
    }
}
