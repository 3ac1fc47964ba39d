import Foundation
import ProcessSupport

/// What the guest of Tests/Guests/soak keeps on its disk, as it must be whenever the guest stands still.
package enum DiskPattern {
    package static let slots = 4, places = 32, blockWords = 512
    package static let blockSize = blockWords * 8
    package static let size = slots * places * blockSize
    package static let magic: UInt64 = 0x4b53_4944_5341_4b53

    /// A word of the block that a slot writes in a round.
    package static func content(slot: Int, round: UInt64, word: Int) -> UInt64 {
        switch word {
        case 0: return magic
        case 1: return round
        case 2: return UInt64(slot)
        default: return mix(round &* UInt64(slots) &+ UInt64(slot), UInt64(word))
        }
    }

    private static func mix(_ a: UInt64, _ b: UInt64) -> UInt64 {
        var x = a &* 0x9e37_79b9_7f4a_7c15 ^ b &* 0xd1b5_4a32_d192_ed03
        x ^= x >> 29
        x = x &* 0xbf58_476d_1ce4_e5b9
        return x ^ x >> 32
    }

    /// Looks at each block: it is whole, and of the round that was the last at its place. The place that is written next
    /// may have been discarded.
    /// - Parameter disk: the image.
    /// - Returns: the last round of each slot; -1 before the first.
    /// - Throws: what is wrong first.
    @discardableResult
    package static func verify(_ disk: Data) throws -> [Int] {
        guard disk.count == size else { throw Failure("the disk has \(disk.count) bytes and not \(size)") }
        let words = disk.withUnsafeBytes { Array($0.bindMemory(to: UInt64.self)) }
        return try (0..<slots).map { try verify(slot: $0, words) }
    }

    private static func verify(slot: Int, _ words: [UInt64]) throws -> Int {
        func block(_ place: Int) -> ArraySlice<UInt64> {
            let start = (slot * places + place) * blockWords
            return words[start..<start + blockWords]
        }
        var rounds: [Int?] = []
        for place in 0..<places {
            let found = block(place)
            guard found.contains(where: { $0 != 0 }) else {
                rounds.append(nil)
                continue
            }
            let round = found[found.startIndex + 1]
            for (word, value) in found.enumerated() {
                let expected = content(slot: slot, round: round, word: word)
                guard value == expected else {
                    throw Failure(
                        "disk: slot \(slot), place \(place), word \(word) is 0x\(String(value, radix: 16)) and not "
                            + "0x\(String(expected, radix: 16))")
                }
            }
            guard round < 1 << 40, Int(round) % places == place else {
                throw Failure("disk: slot \(slot), place \(place) has round \(round)")
            }
            rounds.append(Int(round))
        }
        guard let last = rounds.compactMap({ $0 }).max() else { return -1 }
        for place in 0..<places {
            let behind = (last - place) % places
            let expected = last - (behind < 0 ? behind + places : behind)
            if rounds[place] == expected || expected < 0 && rounds[place] == nil { continue }
            if place == (last + 1) % places, rounds[place] == nil { continue }
            let what = rounds[place].map { "round \($0)" } ?? "nothing"
            throw Failure("disk: slot \(slot) is at round \(last), and place \(place) has \(what) and not \(expected)")
        }
        return last
    }
}
