import Foundation
import Soak
import TestSupport
import Testing

@Suite("What a soak's guest keeps on its disk")
struct DiskPatternTests {
    /// A disk whose slots have done so many rounds; -1 for none.
    private func disk(_ rounds: [Int]) -> [UInt64] {
        var words = [UInt64](repeating: 0, count: DiskPattern.size / 8)
        for (slot, last) in rounds.enumerated() where last >= 0 {
            for round in max(0, last + 1 - DiskPattern.places)...last { write(round, of: slot, &words) }
        }
        return words
    }

    private func start(_ place: Int, of slot: Int) -> Int {
        (slot * DiskPattern.places + place) * DiskPattern.blockWords
    }

    private func write(_ round: Int, of slot: Int, _ words: inout [UInt64]) {
        for word in 0..<DiskPattern.blockWords {
            words[start(round % DiskPattern.places, of: slot) + word] = DiskPattern.content(
                slot: slot, round: UInt64(round), word: word)
        }
    }

    private func clear(_ place: Int, of slot: Int, _ words: inout [UInt64]) {
        for word in 0..<DiskPattern.blockWords { words[start(place, of: slot) + word] = 0 }
    }

    private func verify(_ words: [UInt64]) throws -> [Int] {
        try DiskPattern.verify(words.withUnsafeBytes { Data($0) })
    }

    private func finding(_ words: [UInt64]) -> String {
        do { return "rounds \(try verify(words))" } catch { return "\(error)" }
    }

    @Test("Each state of a round is right")
    func right() throws {
        #expect(try verify(disk([-1, -1, -1, -1])) == [-1, -1, -1, -1])
        #expect(try verify(disk([0, 31, 32, 1000])) == [0, 31, 32, 1000])
        var words = disk([5, 40, 63, 7])
        // The place of the next round has been discarded.
        clear(41 % DiskPattern.places, of: 1, &words)
        clear(0, of: 2, &words)
        #expect(try verify(words) == [5, 40, 63, 7])
    }

    @Test("A word that is another, a block that is missing, old or of somebody else")
    func wrong() {
        var words = disk([5, 40, 63, 7])
        words[start(3, of: 1) + 17] ^= 1
        #expect(finding(words).contains("slot 1, place 3, word 17"), "\(finding(words))")

        words = disk([5, 40, 63, 7])
        clear(7, of: 1, &words)
        #expect(
            finding(words).contains("slot 1 is at round 40, and place 7 has nothing and not 39"), "\(finding(words))")

        words = disk([5, 40, 63, 7])
        write(39 - DiskPattern.places, of: 1, &words)
        #expect(finding(words).contains("place 7 has round 7 and not 39"), "\(finding(words))")

        words = disk([5, 40, 63, 7])
        for word in 0..<DiskPattern.blockWords { words[start(2, of: 3) + word] = words[start(2, of: 0) + word] }
        #expect(finding(words).contains("slot 3, place 2, word 2"), "\(finding(words))")

        #expect(finding([0]).contains("has 8 bytes"), "\(finding([0]))")
    }
}
