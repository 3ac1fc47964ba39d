/// Splits a byte stream into JSON tokens (RFC 8259, and strings in single
/// quotes as QEMU takes them). Bytes may come in pieces of any size.
struct JSONLexer {
    enum Token {
        case openObject, closeObject, openArray, closeArray, comma, colon
        /// The bytes between the quotes, escapes not yet resolved.
        case string([UInt8])
        case number([UInt8])
        case keyword([UInt8])
    }

    enum Output {
        case token(Token)
        /// What could not be a token.
        case stray(String)
        case tooLong
    }

    /// Bytes that one token may have, as in QEMU.
    static let tokenLimit = 64 << 20

    private enum State {
        case start
        case string(quote: UInt8)
        case escape(quote: UInt8)
        case number
        case keyword
        /// After an error: skips to what may start anew.
        case recovery
    }

    private var state = State.start
    private var bytes: [UInt8] = []

    /// Whether the stream ends inside a token.
    var isInToken: Bool {
        switch state {
        case .start, .recovery: false
        default: true
        }
    }

    mutating func reset() {
        state = .start
        bytes = []
    }

    /// Takes one byte; gives each token that is now complete.
    mutating func feed(_ byte: UInt8, _ emit: (Output) -> Void) {
        switch state {
        case .start:
            start(byte, emit)
        case .string(let quote):
            if byte == quote {
                finish(.string(take()), emit)
            } else if byte < 0x20 || byte >= 0xFE {
                fail(byte, emit)
            } else {
                if byte == UInt8(ascii: "\\") { state = .escape(quote: quote) }
                append(byte, emit)
            }
        case .escape(let quote):
            if byte < 0x20 || byte >= 0xFE {
                fail(byte, emit)
            } else {
                state = .string(quote: quote)
                append(byte, emit)
            }
        case .number:
            if Self.isNumberByte(byte) {
                append(byte, emit)
            } else {
                finish(.number(take()), emit)
                start(byte, emit)
            }
        case .keyword:
            if Self.isKeywordByte(byte) {
                append(byte, emit)
            } else {
                finish(.keyword(take()), emit)
                start(byte, emit)
            }
        case .recovery:
            // A control character, blank, bracket or separator cannot be in
            // the middle of what was wrong.
            if byte <= 0x20 || byte >= 0xFE || Self.isStructural(byte) {
                state = .start
                if byte > 0x20 && byte < 0xFE { start(byte, emit) }
            }
        }
    }

    /// The stream ends here: a number or keyword at its end is complete.
    mutating func end(_ emit: (Output) -> Void) {
        switch state {
        case .number: finish(.number(take()), emit)
        case .keyword: finish(.keyword(take()), emit)
        case .string, .escape: emit(.stray(Self.text(take())))
        default: break
        }
        reset()
    }

    private mutating func start(_ byte: UInt8, _ emit: (Output) -> Void) {
        switch byte {
        case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\n"), UInt8(ascii: "\r"): break
        case UInt8(ascii: "{"): emit(.token(.openObject))
        case UInt8(ascii: "}"): emit(.token(.closeObject))
        case UInt8(ascii: "["): emit(.token(.openArray))
        case UInt8(ascii: "]"): emit(.token(.closeArray))
        case UInt8(ascii: ","): emit(.token(.comma))
        case UInt8(ascii: ":"): emit(.token(.colon))
        case UInt8(ascii: "\""), UInt8(ascii: "'"): state = .string(quote: byte)
        case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"):
            state = .number
            bytes.append(byte)
        case UInt8(ascii: "a")...UInt8(ascii: "z"):
            state = .keyword
            bytes.append(byte)
        default: fail(byte, emit)
        }
    }

    private mutating func append(_ byte: UInt8, _ emit: (Output) -> Void) {
        guard bytes.count < Self.tokenLimit else {
            bytes = []
            state = .recovery
            return emit(.tooLong)
        }
        bytes.append(byte)
    }

    private mutating func finish(_ token: Token, _ emit: (Output) -> Void) {
        state = .start
        emit(.token(token))
    }

    private mutating func fail(_ byte: UInt8, _ emit: (Output) -> Void) {
        let seen = take() + [byte]
        state = byte < 0x20 || byte >= 0xFE ? .start : .recovery
        emit(.stray(Self.text(seen)))
    }

    private mutating func take() -> [UInt8] {
        let result = bytes
        bytes = []
        return result
    }

    /// The start of what was wrong, fit for a message: without NUL bytes, at
    /// which a client in C would cut it off.
    static func text(_ bytes: [UInt8]) -> String {
        String(decoding: bytes.prefix(64).map { $0 == 0 ? UInt8(ascii: "?") : $0 }, as: UTF8.self)
    }

    private static func isNumberByte(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "+"), UInt8(ascii: "-"), UInt8(ascii: "."),
            UInt8(ascii: "e"), UInt8(ascii: "E"):
            true
        default: false
        }
    }
    private static func isKeywordByte(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
    }
    private static func isStructural(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "{"), UInt8(ascii: "}"), UInt8(ascii: "["), UInt8(ascii: "]"), UInt8(ascii: ","),
            UInt8(ascii: ":"):
            true
        default: false
        }
    }
}
