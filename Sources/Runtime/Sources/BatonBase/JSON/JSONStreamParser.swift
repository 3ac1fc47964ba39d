/// Parses a stream of JSON values, as a QMP connection carries them: bytes go
/// in as they arrive, complete values and errors come out in order.
///
/// After an error the stream goes on at the next value: bytes up to the next
/// blank, line end, bracket or separator are skipped after a byte that cannot
/// be in JSON, and the whole bracketed value after one that is in the wrong
/// place. A byte 0xFF outside everything resets the parser, as in QEMU.
public struct JSONStreamParser {
    /// Arrays and objects inside each other that are accepted, as in QEMU.
    public static let nestingLimit = 1024
    /// Tokens that one value may have, as in QEMU.
    public static let valueTokenLimit = 2 << 20
    /// Bytes of strings and numbers that one value may have, as in QEMU.
    public static let valueByteLimit = 64 << 20

    private var lexer = JSONLexer()
    private var builder = JSONBuilder()
    private var failure: VMMError?
    private var objects = 0
    private var arrays = 0
    private var tokens = 0
    private var bytes = 0

    public init() {}

    /// Takes bytes that arrived.
    /// - Parameter emit: gets each complete value, or why there is none.
    public mutating func feed(_ input: UnsafeRawBufferPointer, _ emit: (Result<JSON, VMMError>) -> Void) {
        var outputs: [JSONLexer.Output] = []
        for byte in input {
            lexer.feed(byte) { outputs.append($0) }
            guard !outputs.isEmpty else { continue }
            for output in outputs { take(output, emit) }
            outputs.removeAll(keepingCapacity: true)
        }
    }

    /// The stream ends: gives the last value, or an error when it is cut off.
    public mutating func finish(_ emit: (Result<JSON, VMMError>) -> Void) {
        var outputs: [JSONLexer.Output] = []
        lexer.end { outputs.append($0) }
        for output in outputs { take(output, emit) }
        if tokens > 0 { fail(VMMError("JSON parse error, premature EOI"), emit) }
    }

    /// Whether a value has begun and not ended.
    public var isInValue: Bool { tokens > 0 || lexer.isInToken }

    private mutating func take(_ output: JSONLexer.Output, _ emit: (Result<JSON, VMMError>) -> Void) {
        switch output {
        case .stray(let text): fail(VMMError("JSON parse error, stray '\(text)'"), emit)
        case .tooLong: fail(VMMError("JSON token size limit exceeded"), emit)
        case .token(let token): take(token, emit)
        }
    }

    private mutating func take(_ token: JSONLexer.Token, _ emit: (Result<JSON, VMMError>) -> Void) {
        tokens += 1
        switch token {
        case .openObject: objects += 1
        case .closeObject: objects -= 1
        case .openArray: arrays += 1
        case .closeArray: arrays -= 1
        case .string(let raw), .number(let raw), .keyword(let raw): bytes += raw.count
        case .comma, .colon: break
        }
        if objects < 0 || arrays < 0 {
            let bracket = objects < 0 ? "}" : "]"
            return fail(failure ?? VMMError("JSON parse error, stray '\(bracket)'"), emit)
        }
        if tokens > Self.valueTokenLimit { return fail(VMMError("JSON token count limit exceeded"), emit) }
        if bytes > Self.valueByteLimit { return fail(VMMError("JSON token size limit exceeded"), emit) }
        if objects + arrays > Self.nestingLimit { return fail(VMMError("JSON nesting depth limit exceeded"), emit) }
        if failure == nil {
            do throws(VMMError) { try builder.add(token) } catch { failure = error }
        }
        guard objects + arrays == 0 else { return }
        // A separator at top level completes nothing, and is an error by now.
        let result: Result<JSON, VMMError>
        if let failure {
            result = .failure(failure)
        } else if let value = builder.result {
            result = .success(value)
        } else {
            result = .failure(VMMError("JSON parse error, expecting value"))
        }
        startOver()
        emit(result)
    }

    private mutating func fail(_ error: VMMError, _ emit: (Result<JSON, VMMError>) -> Void) {
        startOver()
        emit(.failure(error))
    }

    private mutating func startOver() {
        builder = JSONBuilder()
        failure = nil
        objects = 0
        arrays = 0
        tokens = 0
        bytes = 0
    }
}

extension JSON {
    /// Parses a text that is one JSON value and nothing more.
    /// - Throws: `JSON parse error, …`
    public init(parsing text: String) throws(VMMError) {
        try self.init(parsing: Array(text.utf8))
    }

    /// Parses bytes that are one JSON value in UTF-8 and nothing more.
    /// - Throws: `JSON parse error, …`
    public init(parsing bytes: [UInt8]) throws(VMMError) {
        var parser = JSONStreamParser()
        var results: [Result<JSON, VMMError>] = []
        bytes.withUnsafeBytes { parser.feed($0) { results.append($0) } }
        parser.finish { results.append($0) }
        switch results.first {
        case nil: throw VMMError("JSON parse error, expecting value")
        case .failure(let error)?: throw error
        case .success(let value)?:
            guard results.count == 1 else { throw VMMError("JSON parse error, more than one value") }
            self = value
        }
    }
}
