@testable import BatonBase
import BatonRuntime

/// Options as the command line and QMP give them, and what their values are made of.
extension Target {
    static let options = Target(
        name: "options",
        words: { [",,", "=", ",help", "id=", "on", "off", "k", "T", "0x", "'", "\\", "\"", "{\"", "\": "] },
        seeds: {
            [
                "socket,id=c0,path=/x,server=on,wait=off", "virt,memory-backend=ram,,x,help", "512M", "0x10", "1.5G",
                "{\"driver\": \"a\", \"addr\": {\"list\": [1, {\"b\": false}]}}", "-append 'a b' \"c\\\"d\" e\\ f",
                "unix:/run/x,server=on", "tcp:[::1]:4444", "exec:x", "fd:3",
            ].enumerated().map { [UInt8($0)] + Array($1.utf8) }
        },
        make: {
            { bytes in
                var input = Input(bytes)
                let kind = input.byte()
                let text = String(decoding: input.rest(), as: UTF8.self)
                for style in [KeyValueOptions.Style.options, .keyval] {
                    if let options = try? KeyValueOptions(
                        text, impliedKey: kind & 1 == 0 ? "driver" : nil, style: style)
                    {
                        try Target.take(options, kind)
                    }
                }
                if let object = (try? JSON(parsing: text))?.objectValue, let options = try? KeyValueOptions(object) {
                    try Target.take(options, kind)
                }
                if let words = try? ShellWords.split(text) {
                    let line = words.map { "\"\(Target.escaped($0))\"" }.joined(separator: " ")
                    let again = try? ShellWords.split(line)
                    expect(again == words, "\(words) was quoted and split into \(String(describing: again))")
                }
                if let size = try? SizeText.parse(text) {
                    let again = try? SizeText.parse(String(size))
                    expect(again == size, "the size \(size) cannot be read again")
                }
                if let number = SizeText.unsignedNumber(text) {
                    expect(SizeText.unsignedNumber(String(number)) == number, "\(number) cannot be read again")
                }
                if let number = SizeText.number(text) {
                    expect(SizeText.number(String(number)) == number, "\(number) cannot be read again")
                }
                _ = KeyValueOptions.isIdentifier(text)
            }
        })

    /// With a backslash before what a shell would not take as itself. Bytes, as a quote may be a part of a character.
    private static func escaped(_ word: String) -> String {
        let special = Array("\\\"'".utf8)
        return String(decoding: word.utf8.flatMap { special.contains($0) ? [0x5c, $0] : [$0] }, as: UTF8.self)
    }

    /// Takes every key in each way, after which nothing is left but a call for help.
    private static func take(_ options: KeyValueOptions, _ kind: UInt8) throws {
        let keys = options.keys
        for key in keys {
            expect(options.has(key), "'\(key)' is a key and is not there")
            _ = try? options.number(key, in: 1...UInt64(kind) + 1)
            _ = try? options.size(key, defaultUnit: kind & 2 == 0 ? 1 : 1 << 20)
            _ = try? options.bool(key)
            _ = try? options.onOffAuto(key)
            _ = try? options.strings(key)
            _ = try? options.identifier(key)
            if let prefix = key.split(separator: ".").first, let inner = options.under(String(prefix)) {
                expect(!inner.keys.isEmpty, "options under '\(prefix)' without a key")
            }
            _ = try? options.string(key)
        }
        expect(options.untakenKeys.isEmpty, "keys \(options.untakenKeys) were taken and are not")
        if !options.wantsHelp { try options.finish() }
    }
}
