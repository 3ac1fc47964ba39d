import Foundation
import ProcessSupport

/// The image behind the demo guest's disk: a ring of records, each of which
/// says when it was written and what the checksum was then.
struct DiskImage {
    let path: String

    private static let recordBytes = DemoModel.recordWords * 8

    /// Makes an image of zeros, as large as the ring.
    static func create(at path: String) throws -> DiskImage {
        guard FileManager.default.createFile(atPath: path, contents: nil),
            let file = FileHandle(forWritingAtPath: path)
        else { throw Failure("cannot create \(path)") }
        try file.truncate(atOffset: DemoModel.records * UInt64(recordBytes))
        try file.close()
        return DiskImage(path: path)
    }

    /// Checks every record while the guest stands still: the newest must not be
    /// older than `count`, the steps the guest last said it had done, and the
    /// ring must be complete behind it. Returns how many records there are.
    func verify(model: DemoModel, atLeast count: UInt64) throws -> Int {
        let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        guard bytes.count == Int(DemoModel.records) * Self.recordBytes else {
            throw Failure("the disk image has \(bytes.count) bytes")
        }
        return try bytes.withUnsafeBytes { raw in
            let words = raw.bindMemory(to: UInt64.self)
            let newest = (0..<Int(DemoModel.records)).map { words[$0 * DemoModel.recordWords + 1] }.max() ?? 0
            guard newest >= count / DemoModel.stepsPerRecord else {
                throw Failure("disk: the newest record is \(newest), but the guest had done \(count) steps")
            }
            guard newest > 0, newest < count / DemoModel.stepsPerRecord + 100_000 else {
                throw Failure("disk: the newest record is \(newest), which is absurd after \(count) steps")
            }
            let oldest = newest >= DemoModel.records ? newest - DemoModel.records + 1 : 1
            for index in oldest...newest {
                try verify(index, words: words, model: model)
            }
            return Int(newest - oldest + 1)
        }
    }

    private func verify(_ index: UInt64, words: UnsafeBufferPointer<UInt64>, model: DemoModel) throws {
        let start = Int(index % DemoModel.records) * DemoModel.recordWords
        let step = index * DemoModel.stepsPerRecord
        let head = [DemoModel.recordMagic, index, step, model.sum(after: step)]
        for word in 0..<DemoModel.recordWords {
            let expected = word < head.count ? head[word] : DemoModel.mix(index, UInt64(word))
            let found = words[start + word]
            guard found == expected else {
                throw Failure(
                    "disk: record \(index), word \(word) is \(String(found, radix: 16)), "
                        + "not \(String(expected, radix: 16))")
            }
        }
    }
}
