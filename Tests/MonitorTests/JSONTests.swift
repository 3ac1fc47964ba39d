import BatonRuntime
import Testing

@Suite("JSON")
struct JSONTests {
    static func parse(_ bytes: [UInt8], pieces: Int = .max) -> [Result<JSON, VMMError>] {
        var parser = JSONStreamParser()
        var results: [Result<JSON, VMMError>] = []
        var position = 0
        while position < bytes.count {
            let end = position + min(pieces, bytes.count - position)
            bytes[position..<end].withUnsafeBytes { parser.feed($0) { results.append($0) } }
            position = end
        }
        parser.finish { results.append($0) }
        return results
    }

    static func describe(_ results: [Result<JSON, VMMError>]) -> [String] {
        results.map { result in
            switch result {
            case .success(let value): value.text()
            case .failure(let error): "error: \(error.message)"
            }
        }
    }

    @Test(
        "Values are read and written again without loss",
        arguments: [
            "null", "true", "0", "-1", "9223372036854775807", "-9223372036854775808", "18446744073709551615",
            "1.5", "0.1", "[]", "{}", #"["a", {"b": [1, 2.5, null]}]"#, #""\"\\\n\t\r\b\f""#,
            #""\u00E9\u20AC\uD83D\uDE00""#,
        ])
    func roundTrip(text: String) throws {
        #expect(try JSON(parsing: text).text() == text)
    }

    @Test("Numbers that are too large for integers become doubles")
    func largeNumbers() throws {
        #expect(try JSON(parsing: "18446744073709551616") == .double(18446744073709551616))
        #expect(try JSON(parsing: "1e2") == .double(100))
        #expect(errorText { _ = try JSON(parsing: "1e999") } == "JSON parse error, number out of range '1e999'")
    }

    @Test(
        "What is not JSON is refused",
        arguments: [
            ("", "expecting value"), ("{", "premature EOI"), ("[1,]", "expecting value"),
            ("{\"a\"}", "missing : in object pair"),
            ("{1: 2}", "key is not a string in object"), ("[1 2]", "expected separator in list"),
            ("{\"a\": 1 \"b\": 2}", "expected separator in dict"), ("{\"a\": 1, \"a\": 2}", "duplicate key"),
            ("01", "stray '01'"), ("1.", "stray '1.'"), ("-", "stray '-'"), ("1e", "stray '1e'"), ("+1", "stray '+'"),
            ("nul", "invalid keyword 'nul'"), ("]", "stray ']'"), ("[}", "stray '}'"), (",", "expecting value"),
            ("\"a\nb\"", "stray '\"a"), (#""\x""#, "invalid escape sequence '\\x'"),
            (#""\uD800""#, "invalid escape sequence '\\uD800'"), (#""\u0000""#, "invalid escape sequence '\\u0000'"),
            (#""\uDC00""#, "invalid escape sequence '\\uDC00'"), (#""\u12"#, "stray '"),
        ])
    func refused(text: String, message: String) {
        let error = errorText { _ = try JSON(parsing: text) }
        // A stray string is quoted without its opening quote.
        let wanted = message == "stray '\"a" ? "stray 'a" : message
        #expect(error.hasPrefix("JSON parse error, \(wanted)"), "\(error)")
    }

    @Test("Bytes that are not UTF-8 are refused")
    func invalidUTF8() {
        for bytes: [UInt8] in [[0xC0, 0x80], [0xED, 0xA0, 0x80], [0xF4, 0x90, 0x80, 0x80], [0x80], [0xE2, 0x82]] {
            let error = errorText { _ = try JSON(parsing: [0x22] + bytes + [0x22]) }
            #expect(error == "JSON parse error, invalid UTF-8 sequence in string")
        }
    }

    @Test("Nesting is accepted to the limit and refused beyond it")
    func nesting() throws {
        let limit = JSONStreamParser.nestingLimit
        func nested(_ depth: Int) -> String {
            String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
        }
        #expect(try JSON(parsing: nested(limit)).arrayValue?.count == 1)
        #expect(errorText { _ = try JSON(parsing: nested(limit + 1)) } == "JSON nesting depth limit exceeded")
        #expect(
            errorText { _ = try JSON(parsing: String(repeating: "{\"a\":", count: 1_000_000)) }
                == "JSON nesting depth limit exceeded")
    }

    @Test("A token beyond 64 MiB is refused, and the stream goes on")
    func tooLong() {
        var parser = JSONStreamParser()
        var results: [Result<JSON, VMMError>] = []
        func feed(_ bytes: [UInt8]) { bytes.withUnsafeBytes { parser.feed($0) { results.append($0) } } }
        let chunk = [UInt8](repeating: UInt8(ascii: "a"), count: 1 << 20)
        feed([UInt8(ascii: "\"")])
        for _ in 0..<65 { feed(chunk) }
        feed(Array("\n{\"b\": 1}".utf8))
        #expect(Self.describe(results) == ["error: JSON token size limit exceeded", #"{"b": 1}"#])
    }

    @Test("Too many tokens in one value are refused")
    func tooManyTokens() {
        let bytes = Array("[".utf8) + [UInt8](repeating: UInt8(ascii: ","), count: JSONStreamParser.valueTokenLimit)
        #expect(Self.describe(Self.parse(bytes)).first == "error: JSON token count limit exceeded")
    }

    @Test(
        "After an error the next value is read",
        arguments: [
            ("{\"a\": }{\"b\": 1}", 2), ("] {\"b\": 1}", 2), ("{\"a\": \u{1}\n{\"b\": 1}", 2), ("@@@ {\"b\": 1}", 2),
            ("nul {\"b\": 1}", 2), ("{\"a\" 1, [}}]]{\"b\": 1}", nil),
        ] as [(String, Int?)])
    func recovery(text: String, count: Int?) {
        let results = Self.describe(Self.parse(Array(text.utf8)))
        #expect(results.last == #"{"b": 1}"#, "\(results)")
        if let count { #expect(results.count == count, "\(results)") }
    }

    @Test("A byte 0xFF ends whatever was begun")
    func reset() {
        let bytes = Array("{\"a\": [1, \"half".utf8) + [0xFF] + Array("{\"b\": 1}".utf8)
        let results = Self.describe(Self.parse(bytes))
        #expect(results.count == 2 && results.last == #"{"b": 1}"#, "\(results)")
    }

    @Test("The size of the pieces makes no difference, and no input traps")
    func fuzz() {
        var random = SeededGenerator(state: 42)
        let samples = [
            #"{"execute": "query-status", "id": [1, "x", {"y": null}]}"#, #"[1, -2.5e3, "é\u20AC\n", true, {}]"#,
            "'single' {\"a\": {\"b\": {\"c\": []}}}",
        ].map { Array($0.utf8) }
        for _ in 0..<3000 {
            var bytes = samples.randomElement(using: &random) ?? []
            for _ in 0..<Int.random(in: 0..<6, using: &random) {
                let index = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: bytes[index] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes.insert(contentsOf: samples[0].prefix(index), at: index)
                default: bytes.removeSubrange(index..<min(bytes.count, index + 3))
                }
                if bytes.isEmpty { bytes = [0x5B] }
            }
            let whole = Self.describe(Self.parse(bytes))
            #expect(Self.describe(Self.parse(bytes, pieces: 1)) == whole)
            #expect(Self.describe(Self.parse(bytes, pieces: 7)) == whole)
        }
    }
}
