@testable import BatonBase
import BatonRuntime

/// The parser of QMP and of JSON options, whole and in pieces, and the writer.
extension Target {
    static let json = Target(
        name: "json",
        words: { ["true", "false", "null", "\\u", "\\ud83d", "1e", "-", "{\"", "\": ", "\u{ff}"] },
        seeds: {
            [
                #"{"execute": "query-status", "id": [1, -2.5e3, null, true], "arguments": {"a": "b\u00e9\n"}}"#,
                "[]", "'single quoted'", "18446744073709551615", "-9223372036854775808", "1e400", "\"\\ud83d\\ude00\"",
                "{\"a\": 1}{\"b\": 2}\n[", "\u{ff}{}", "[[[[[[1]]]]]]",
            ].map { Array($0.utf8) }
        },
        make: {
            { input in
                if let value = try? JSON(parsing: input) {
                    for pretty in [false, true] {
                        let text = value.bytes(pretty: pretty)
                        guard let again = try? JSON(parsing: text) else {
                            found("what the writer makes cannot be parsed: \(String(decoding: text, as: UTF8.self))")
                        }
                        expect(again == value, "\(again) was written as another value than \(value)")
                    }
                }
                // A stream's values do not depend on where its bytes are cut.
                let whole = Target.values(of: input, pieces: input.count)
                let piece = max(1, Int(input.first ?? 1) % 16)
                expect(
                    whole == Target.values(of: input, pieces: piece), "cut every \(piece) bytes it is another stream")
            }
        })

    private static func values(of input: [UInt8], pieces: Int) -> [String] {
        var parser = JSONStreamParser()
        var result: [String] = []
        func emit(_ value: Result<JSON, VMMError>) {
            switch value {
            case .success(let value): result.append(value.text())
            case .failure(let error): result.append("error: \(error.message)")
            }
        }
        for start in stride(from: 0, to: input.count, by: max(1, pieces)) {
            input[start..<min(input.count, start + pieces)].withUnsafeBytes { parser.feed($0, emit) }
        }
        parser.finish(emit)
        return result
    }
}
