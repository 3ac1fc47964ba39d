/// Packets of gdb's remote serial protocol in a stream of bytes: `$DATA#CHECKSUM`, acknowledged by `+` or `-`, and the
/// byte 3 between them.
///
/// Source: gdb's manual, "Remote Protocol", Overview.
struct GDBFraming {
    enum Event: Equatable {
        /// A packet whose checksum is right, without its escapes.
        case packet([UInt8])
        /// A packet of more than `limit` bytes.
        case tooLong
        /// A packet whose checksum is wrong.
        case damaged
        /// The other side has not understood the last packet.
        case repeatLast
        /// Ctrl-C.
        case interrupt
    }

    private enum State {
        case idle
        case data
        case escaped
        case firstDigit
        case secondDigit(UInt8)
    }

    /// Bytes of a packet that are kept: what `qSupported` says, and room for escapes.
    static let limit = 0x4000

    private var state = State.idle
    private var data: [UInt8] = []
    private var isTooLong = false
    private var sum: UInt8 = 0

    mutating func feed(_ byte: UInt8) -> Event? {
        switch state {
        case .idle:
            switch byte {
            case UInt8(ascii: "$"): begin()
            case UInt8(ascii: "-"): return .repeatLast
            case 3: return .interrupt
            default: break
            }
        case .data:
            switch byte {
            case UInt8(ascii: "#"): state = .firstDigit
            // The other side has begun anew.
            case UInt8(ascii: "$"): begin()
            case UInt8(ascii: "}"):
                sum &+= byte
                state = .escaped
            default:
                sum &+= byte
                keep(byte)
            }
        case .escaped:
            sum &+= byte
            keep(byte ^ 0x20)
            state = .data
        case .firstDigit:
            guard let digit = GDBText.digit(byte) else { return end(.damaged) }
            state = .secondDigit(digit)
        case .secondDigit(let first):
            guard let digit = GDBText.digit(byte), first << 4 | digit == sum else { return end(.damaged) }
            return end(isTooLong ? .tooLong : .packet(data))
        }
        return nil
    }

    private mutating func begin() {
        self = GDBFraming()
        state = .data
    }

    private mutating func keep(_ byte: UInt8) {
        if data.count < Self.limit { data.append(byte) } else { isTooLong = true }
    }

    private mutating func end(_ event: Event) -> Event {
        self = GDBFraming()
        return event
    }

    /// What has come of a packet that has not ended; empty between packets. Fed to another framing it goes on there.
    var unfinished: [UInt8] {
        var bytes: [UInt8] = []
        if case .idle = state { return bytes }
        bytes.append(UInt8(ascii: "$"))
        bytes += GDBText.escaped(data)
        switch state {
        case .idle, .data: break
        case .escaped: bytes.append(UInt8(ascii: "}"))
        case .firstDigit: bytes.append(UInt8(ascii: "#"))
        case .secondDigit(let digit): bytes += [UInt8(ascii: "#"), GDBText.character(digit)]
        }
        return bytes
    }

    /// A packet to send. `payload` has its escapes.
    static func frame(_ payload: [UInt8]) -> [UInt8] {
        let sum = payload.reduce(0 as UInt8) { $0 &+ $1 }
        return [UInt8(ascii: "$")] + payload
            + [UInt8(ascii: "#"), GDBText.character(sum >> 4), GDBText.character(sum & 15)]
    }
}

/// The texts of packets.
enum GDBText {
    static func digit(_ byte: UInt8) -> UInt8? {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
        default: nil
        }
    }

    static func character(_ digit: UInt8) -> UInt8 {
        digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10
    }

    /// Two digits a byte.
    static func hex(_ bytes: some Sequence<UInt8>) -> String {
        var digits: [UInt8] = []
        for byte in bytes { digits += [character(byte >> 4), character(byte & 15)] }
        return String(decoding: digits, as: UTF8.self)
    }

    /// The bytes of a text of two digits a byte; nil for any other.
    static func bytes(_ text: some StringProtocol) -> [UInt8]? {
        let digits = Array(text.utf8)
        guard digits.count % 2 == 0 else { return nil }
        var bytes: [UInt8] = []
        for index in stride(from: 0, to: digits.count, by: 2) {
            guard let high = digit(digits[index]), let low = digit(digits[index + 1]) else { return nil }
            bytes.append(high << 4 | low)
        }
        return bytes
    }

    /// A number in hexadecimal digits, and nothing else.
    static func number(_ text: some StringProtocol) -> UInt64? {
        guard !text.isEmpty, text.utf8.allSatisfy({ digit($0) != nil }) else { return nil }
        return UInt64(text, radix: 16)
    }

    /// Numbers with a separator between them.
    static func numbers(_ text: some StringProtocol, _ separator: Character = ",") -> [UInt64]? {
        var numbers: [UInt64] = []
        for word in text.split(separator: separator, omittingEmptySubsequences: false) {
            guard let number = number(word) else { return nil }
            numbers.append(number)
        }
        return numbers
    }

    /// Binary data, with escapes for what a packet or its compression would mean.
    static func escaped(_ bytes: some Sequence<UInt8>) -> [UInt8] {
        var result: [UInt8] = []
        for byte in bytes {
            switch byte {
            case UInt8(ascii: "#"), UInt8(ascii: "$"), UInt8(ascii: "}"), UInt8(ascii: "*"):
                result += [UInt8(ascii: "}"), byte ^ 0x20]
            default: result.append(byte)
            }
        }
        return result
    }
}
