import BatonRuntime
import Testing

@Suite("Options")
struct OptionTests {
    @Test("An implied first key, values, flags and doubled commas are read as QEMU does")
    func syntax() throws {
        let options = try KeyValueOptions("socket,id=c0,path=/a,,b,server,nowait,x=", impliedKey: "backend")
        #expect(try options.string("backend") == "socket")
        #expect(try options.identifier() == "c0")
        #expect(try options.string("path") == "/a,b")
        #expect(try options.bool("server") == true)
        #expect(try options.bool("wait") == false)
        #expect(try options.string("x") == "")
        try options.finish()
    }

    @Test("The last of equal keys counts, and repeated keys can be listed")
    func repeated() throws {
        let options = try KeyValueOptions("a=1,a=2")
        #expect(try options.string("a") == "2")
        #expect(try options.strings("a") == ["1", "2"])
    }

    @Test("Keys that nobody took are refused")
    func unknown() throws {
        #expect(errorText { try KeyValueOptions("a=1,foo=2").finish() } == "Invalid parameter 'a'")
        let keyval = try KeyValueOptions("t,foo=2", impliedKey: "type", style: .keyval)
        _ = try keyval.string("type")
        #expect(errorText { try keyval.finish() } == "Parameter 'foo' is unexpected")
        #expect(
            errorText { _ = try KeyValueOptions("t,foo", impliedKey: "type", style: .keyval) }
                == "Expected '=' after parameter 'foo'")
        #expect(errorText { _ = try KeyValueOptions("=1") } == "Invalid parameter ''")
    }

    @Test("JSON is flattened to dotted keys and keeps its types")
    func json() throws {
        let options = try KeyValueOptions(
            #"{"qom-type": "memory-backend-memfd", "size": 4096, "share": true, "addr": {"type": "unix", "l": [1, 2]}}"#
        )
        #expect(try options.string("qom-type") == "memory-backend-memfd")
        #expect(try options.size("size") == 4096)
        #expect(try options.bool("share") == true)
        let address = try #require(options.under("addr"))
        #expect(try address.string("type") == "unix")
        #expect(try address.number("l.1") == 2)
        try options.finish()
        let wrong = try KeyValueOptions(#"{"share": "on", "size": "1M"}"#)
        #expect(errorText { _ = try wrong.bool("share") } == "Invalid parameter type for 'share', expected: boolean")
        #expect(errorText { _ = try wrong.size("size") } == "Invalid parameter type for 'size', expected: integer")
        #expect(errorText { _ = try KeyValueOptions("{\"a\": ") } == "JSON parse error, premature EOI")
    }

    @Test("Values of the wrong type get QEMU's messages")
    func types() throws {
        let options = try KeyValueOptions("b=maybe,n=-1,s=12Q,e=x,id=1a,big=99999999999G")
        #expect(errorText { _ = try options.bool("b") } == "Parameter 'b' expects 'on' or 'off'")
        #expect(errorText { _ = try options.number("n") } == "Parameter 'n' expects a number")
        #expect(errorText { _ = try options.size("s") } == "Parameter 's' expects a non-negative number below 2^64")
        #expect(
            errorText { _ = try options.size("big") }
                == "Value '99999999999G' is out of range for parameter 'big'")
        #expect(errorText { _ = try options.enumeration("e", ["a"]) } == "Parameter 'e' does not accept value 'x'")
        #expect(errorText { _ = try options.identifier() } == "Parameter 'id' expects an identifier")
        #expect(errorText { _ = try options.requiredString("no") } == "Parameter 'no' is missing")
    }

    @Test(
        "Sizes have units, fractions and hexadecimal",
        arguments: [
            ("512M", 512 << 20), ("1.5G", 3 << 29), ("0x1000", 4096), ("65536", 65536), ("1k", 1024), ("0.5K", 512),
            ("16E", nil), ("15E", 15 << 60), ("1.5", nil), ("", nil), ("M", nil), ("1MM", nil), ("-1", nil),
            ("18446744073709551615", UInt64.max), ("18446744073709551616", nil), ("0x1.8k", nil), ("1e3", nil),
        ] as [(String, UInt64?)])
    func sizes(text: String, expected: UInt64?) {
        #expect((try? SizeText.parse(text)) == expected)
    }

    @Test("A number without a unit counts the caller's unit")
    func defaultUnit() throws {
        #expect(try SizeText.parse("128", defaultUnit: 1 << 20) == 128 << 20)
        #expect(try SizeText.parse("128K", defaultUnit: 1 << 20) == 128 << 10)
    }

    @Test("Help is recognised where QEMU does")
    func help() throws {
        #expect(try KeyValueOptions("help", impliedKey: "driver").wantsHelp)
        #expect(try KeyValueOptions("virtio-blk-device,help", impliedKey: "driver").wantsHelp)
        #expect(try !KeyValueOptions("virtio-blk-device,id=help", impliedKey: "driver").wantsHelp)
    }

    @Test("A call for help that nobody answers is refused, and a name is none")
    func unansweredHelp() throws {
        let options = try KeyValueOptions("x,help", impliedKey: "driver")
        _ = try options.string("driver")
        #expect(errorText { try options.finish() } == "there is no help for 'x,help'")
        let named = try KeyValueOptions("help", impliedKey: "path")
        #expect(try named.string("path") == "help")
        try named.finish()
    }

    /// What a random text is for the parser is either refused in its words, or read so that the text that says the same
    /// with every key is read alike.
    @Test("Any text is read without loss, or refused with an error")
    func fuzz() throws {
        var random = SeededGenerator(state: 1)
        let alphabet = Array("a=,.?{}[]\":1no".utf8)
        var (read, refused) = (0, 0)
        for round in 0..<20_000 {
            let count = Int.random(in: 0..<24, using: &random)
            var bytes = (0..<count).map { _ in alphabet.randomElement(using: &random) ?? 0 }
            // One in four is JSON at its beginning, so that not all of it ends there.
            if round % 4 == 0 { bytes = Array("{\"a\":".utf8) + bytes.prefix(6) + [UInt8(ascii: "}")] }
            let text = String(decoding: bytes, as: UTF8.self)
            for style in [KeyValueOptions.Style.options, .keyval] {
                do {
                    try check(KeyValueOptions(text, impliedKey: "a", style: style))
                    read += 1
                } catch let error as VMMError {
                    refused += 1
                    let known = ["Invalid parameter ", "Expected '=' after parameter ", "JSON parse error, "]
                    #expect(known.contains { error.message.hasPrefix($0) }, "'\(text)': \(error.message)")
                }
            }
        }
        #expect(read > 2_000 && refused > 2_000, "\(read) read, \(refused) refused")
    }

    private func check(_ options: KeyValueOptions) throws {
        let isJSON = options.source.hasPrefix("{")
        var words: [String] = []
        for key in options.keys {
            // A nested value that is no string is of another type, and says so.
            guard let values = try? options.strings(key) else {
                #expect(isJSON)
                #expect(errorText { _ = try options.string(key) }.hasPrefix("Invalid parameter type for '\(key)'"))
                continue
            }
            words += values.map { key + "=" + $0.replacing(",", with: ",,") }
            guard let last = values.last else {
                Issue.record("\(key) has no value")
                continue
            }
            let (number, size) = (try? options.number(key), try? options.size(key))
            if isJSON {
                #expect(number == nil && size == nil, "text is no number in JSON")
                continue
            }
            if last.allSatisfy({ $0 == "1" }) { #expect(number == UInt64(last), "'\(last)'") }
            #expect(size == (try? SizeText.parse(last)), "'\(last)'")
            if number == nil {
                #expect(errorText { _ = try options.number(key) } == "Parameter '\(key)' expects a number")
            }
            if size == nil { #expect(errorText { _ = try options.size(key) }.contains("'\(key)'")) }
        }
        guard !isJSON else { return }
        let again = try KeyValueOptions(words.joined(separator: ","), style: .keyval)
        #expect(again.keys == options.keys, "'\(options.source)'")
        for key in options.keys { #expect(try again.strings(key) == options.strings(key), "'\(options.source)'") }
    }
}
