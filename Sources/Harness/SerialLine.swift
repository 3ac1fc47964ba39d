import Foundation
import ProcessSupport

/// The other end of the guest's serial line: what the guest wrote, checked as
/// it comes. Not one byte may be lost, doubled or out of order.
package final class SerialLine {
    private let client: StreamClient
    private let stepsPerLine: UInt64
    private var text: [UInt8] = []
    /// What the guest has sent back, in order: `G` to `Z`, which its lines lack.
    private(set) var echoed: [UInt8] = []
    /// The number of the last whole line.
    package private(set) var line: UInt64 = 0

    /// Whether `line` is known: it is from the guest's first byte on.
    private var isInStep: Bool
    /// The guest has been reset: its first line is to come.
    private var awaitsFirstLine = false

    /// - Parameters:
    ///   - stepsPerLine: what the guest counts from one line to the next.
    ///   - fromStart: the guest has not run yet.
    init(_ client: StreamClient, stepsPerLine: UInt64, fromStart: Bool) {
        self.client = client
        self.stepsPerLine = stepsPerLine
        isInStep = fromStart
    }

    var isClosed: Bool { client.isClosed }
    func send(_ bytes: ArraySlice<UInt8>) -> Int { client.send(bytes) }

    /// The guest is reset, and begins anew; before its first line there may be a part of one.
    package func expectReset() { awaitsFirstLine = true }
    /// Whether its first line has come since.
    package var hasBegunAnew: Bool { !awaitsFirstLine }

    /// Takes what is there.
    /// - Throws: what is wrong in it.
    package func read() throws {
        client.poll()
        for byte in client.take() {
            if (UInt8(ascii: "G")...UInt8(ascii: "Z")).contains(byte) { echoed.append(byte) } else { text.append(byte) }
        }
        while let end = text.firstIndex(of: 10) {
            let found = String(decoding: text[...end], as: UTF8.self)
            text.removeSubrange(...end)
            if awaitsFirstLine {
                guard found.hasSuffix(Self.text(of: 1, stepsPerLine: stepsPerLine)) else { continue }
                (line, isInStep, awaitsFirstLine) = (1, true, false)
                continue
            }
            guard isInStep else {
                // The first may be half a line; its number is that of the next less one.
                guard let number = found.split(separator: "=").last?.prefix(while: \.isHexDigit),
                    number.count == 16, let value = UInt64(number, radix: 16)
                else { continue }
                (line, isInStep) = (value, true)
                continue
            }
            line += 1
            let expected = Self.text(of: line, stepsPerLine: stepsPerLine)
            try require(found == expected, "the guest's line \(line) is '\(found)' and not '\(expected)'")
        }
    }

    /// What the guest writes in its line of a number.
    static func text(of line: UInt64, stepsPerLine: UInt64) -> String {
        func hex(_ value: UInt64) -> String {
            let digits = String(value, radix: 16)
            return String(repeating: "0", count: 16 - digits.count) + digits
        }
        return "count=\(hex(line &* stepsPerLine)) line=\(hex(line))\r\n"
    }

    /// Sends bytes and waits until the guest has sent them back.
    func exchange(_ bytes: [UInt8], by deadline: Deadline) throws {
        let before = echoed.count
        var sent = 0
        try eventually("the guest's echo over the serial line", by: deadline) {
            sent += self.client.send(bytes[sent...])
            try self.read()
            try require(!self.isClosed, "the serial line was closed")
            return self.echoed.count >= before + bytes.count
        }
        try require(Array(self.echoed[before...]) == bytes, "the guest's echo is not what was sent")
    }
}
