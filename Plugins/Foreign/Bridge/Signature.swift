import BatonRuntime

/// What a foreign function takes and gives: the text of baton-module.h.
struct Signature: Equatable {
    /// The letters that baton-module.h describes.
    enum Letter: UInt8 {
        case nothing = 0x76  // v
        case bool = 0x62  // b
        case int32 = 0x69  // i
        case uint32 = 0x49  // I
        case int64 = 0x6c  // l
        case uint64 = 0x4c  // L
        case double = 0x64  // d
        case string = 0x73  // s
        case descriptor = 0x66  // f
        case bytes = 0x42  // B
        case host = 0x68  // h
    }

    struct Item: Equatable {
        var letter: Letter
        var isOptional = false
    }

    var result: Letter
    var arguments: [Item]
    var results: [Item]

    /// Parses `RESULT(ARGUMENTS)` or `RESULT(ARGUMENTS>RESULTS)`.
    /// - Throws: what is wrong with it.
    init(parsing text: String) throws(VMMError) {
        var rest = Array(text.utf8)[...]
        guard rest.last == UInt8(ascii: ")"), let first = rest.popFirst(), rest.popFirst() == UInt8(ascii: "(") else {
            throw VMMError("the signature '\(text)' has not the form RESULT(ARGUMENTS)")
        }
        rest.removeLast()
        result = try Signature.letter(first, text)
        let parts = rest.split(separator: UInt8(ascii: ">"), maxSplits: 2, omittingEmptySubsequences: false)
        guard parts.count <= 2 else { throw VMMError("the signature '\(text)' has more than one '>'") }
        arguments = try Signature.items(parts[0], text)
        results = parts.count == 2 ? try Signature.items(parts[1], text) : []
        guard !results.contains(where: { $0.isOptional }) else {
            throw VMMError("the signature '\(text)' has an optional result")
        }
    }

    /// Parses letters, of which each may have a `?` before it.
    static func items(_ bytes: ArraySlice<UInt8>, _ text: String) throws(VMMError) -> [Item] {
        var items: [Item] = []
        var isOptional = false
        for byte in bytes {
            if byte == UInt8(ascii: "?"), !isOptional {
                isOptional = true
                continue
            }
            let letter = try Signature.letter(byte, text)
            guard letter != .nothing else { throw VMMError("the signature '\(text)' has 'v' as an argument") }
            items.append(Item(letter: letter, isOptional: isOptional))
            isOptional = false
        }
        guard !isOptional else { throw VMMError("the signature '\(text)' has a '?' with no letter behind it") }
        return items
    }

    private static func letter(_ byte: UInt8, _ text: String) throws(VMMError) -> Letter {
        guard let letter = Letter(rawValue: byte) else {
            let shown = (0x21...0x7e).contains(byte) ? String(decoding: [byte], as: UTF8.self) : "\(Hex(UInt64(byte)))"
            throw VMMError(
                "the signature '\(text)' has the unknown letter '\(shown)'",
                hint: "The letters are in baton-module.h: v b i I l L d s f B h.")
        }
        return letter
    }
}
