import Foundation

/// One line of a guest: how far it is, and what it found.
struct GuestReport: Codable {
    /// Steps done since the guest's program started.
    let count: UInt64
    /// The checksum over all of these steps.
    let sum: UInt64
    /// The number of this line, from 1.
    let line: UInt64

    static let marker = "baton-demo: "

    /// Parses `... baton-demo: count=N sum=HEX [disk=ok] mem=ok line=N`, whatever comes before.
    init?(_ text: String) {
        guard let start = text.range(of: GuestReport.marker, options: .backwards)?.upperBound else { return nil }
        var fields: [Substring: Substring] = [:]
        for word in text[start...].split(separator: " ") {
            let pair = word.split(separator: "=", maxSplits: 1)
            if pair.count == 2 { fields[pair[0]] = pair[1] }
        }
        guard let count = fields["count"].flatMap({ UInt64($0) }),
            let sum = fields["sum"].flatMap({ UInt64($0, radix: 16) }),
            let line = fields["line"].flatMap({ UInt64($0) })
        else { return nil }
        self.count = count
        self.sum = sum
        self.line = line
    }
}
