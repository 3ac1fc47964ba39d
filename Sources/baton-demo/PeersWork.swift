import Foundation
import ProcessSupport

/// What the guest of the peers' demonstration (Tests/Guests/peers/init.sh) says it has done, and
/// whether the disk and the shared directory are as it says.
final class PeersWork {
    static let blockSize = 256 << 10
    static let places = 12
    static let files = 8
    static var diskSize: Int { blockSize * places }

    /// Rounds that the guest has done and found right.
    private(set) var diskRounds = 0
    private(set) var shareRounds = 0
    private var blocks: [Int: String] = [:]
    private var copies: [Int: String] = [:]
    /// The first thing that was wrong.
    private(set) var error: String?

    /// Takes a line of the guest's console: `baton-peers: disk|share ROUND PLACE MD5`.
    func take(_ line: String) {
        guard let start = line.range(of: "baton-peers: ")?.upperBound else { return }
        let words = line[start...].split(separator: " ")
        guard words.count == 4, let round = Int(words[1]), let place = Int(words[2]), words[3].count == 32 else {
            return error = error ?? "the guest says: \(line)"
        }
        let sum = String(words[3])
        if words[0] == "disk", round == diskRounds, place == round % Self.places {
            diskRounds += 1
            blocks[place] = sum
        } else if words[0] == "share", round == shareRounds, place == round % Self.files {
            shareRounds += 1
            copies[place] = sum
        } else {
            error = error ?? "the guest's line is out of order: \(line)"
        }
    }

    /// Compares the image and the files with what the guest has said, while it stands still. What it
    /// may be writing is left out.
    /// - Returns: how many blocks and files were compared.
    func verify(_ backEnds: BackEnds, scratch: TemporaryDirectory) throws -> (blocks: Int, files: Int) {
        try Tool.require(
            ["split", "-b", "\(Self.blockSize)", "-d", "-a", "3", backEnds.disk, scratch.file("block.")])
        for under in 0...1 {
            blocks[(diskRounds + under) % Self.places] = nil
            copies[(shareRounds + under) % Self.files] = nil
        }
        for (place, sum) in blocks {
            try compare(scratch.file("block." + String(format: "%03d", place)), sum, "block \(place) of the disk")
        }
        for (place, sum) in copies {
            try compare("\(backEnds.share)/\(place)", sum, "file \(place) of the shared directory")
        }
        return (blocks.count, copies.count)
    }

    private func compare(_ file: String, _ expected: String, _ what: String) throws {
        let found = try Tool.require(["md5sum", file]).text.prefix(32)
        guard found == expected else { throw Failure("\(what) has the checksum \(found), the guest wrote \(expected)") }
    }
}
