import BatonRuntime
import InstructionSets

/// The memory-mapped side of the interrupt files of one privilege level: a
/// page a hart, to which devices send messages (RISC-V AIA 1.0, 3.5).
public final class IMSIC: MMIODevice, Device {
    public let stateName: String
    /// Bytes of a hart's page.
    public static let pageSize: UInt64 = 0x1000
    private let files: [IMSICFile]

    /// - Parameters:
    ///   - name: `imsic.m` or `imsic.s`.
    ///   - files: one a hart, in order.
    public init(name: String, files: [IMSICFile]) {
        stateName = name
        self.files = files
    }

    /// Bytes of all pages.
    public var size: UInt64 { UInt64(files.count) * IMSIC.pageSize }

    public func accepts(offset: UInt64, width: Int) -> Bool { width == 4 && offset % 4 == 0 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        let hart = Int(truncatingIfNeeded: offset / IMSIC.pageSize)
        guard files.indices.contains(hart) else {
            return Log.guestError("\(stateName): write of \(width) bytes at \(Hex(offset))")
        }
        switch offset % IMSIC.pageSize {
        case 0: files[hart].receive(value & 0xffff_ffff)
        case 4: files[hart].receive(UInt64(UInt32(truncatingIfNeeded: value).byteSwapped))
        default: Log.guestError("\(stateName): write of the register at \(Hex(offset))")
        }
    }

    // MARK: Device

    public func reset() { for file in files { file.reset() } }

    public func save(to writer: inout StateWriter) {
        writer.put("pending", files.flatMap(\.pending))
        writer.put("enabled", files.flatMap(\.enabled))
        writer.put("delivery", files.map { $0.delivers ? 1 : 0 })
        writer.put("threshold", files.map(\.threshold))
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let words = 4
        let pending = try reader.array("pending", count: files.count * words...files.count * words)
        let enabled = try reader.array("enabled", count: files.count * words...files.count * words)
        let delivery = try reader.array("delivery", count: files.count...files.count)
        let threshold = try reader.array("threshold", count: files.count...files.count)
        try reader.finish()
        let firstWords = stride(from: 0, to: pending.count, by: words)
        guard firstWords.allSatisfy({ (pending[$0] | enabled[$0]) & 1 == 0 }), delivery.allSatisfy({ $0 <= 1 }),
            threshold.allSatisfy({ $0 <= UInt64(IMSICFile.identities) })
        else { throw VMMError("section '\(reader.section)' has a message that does not exist") }
        return { [self] in
            for (hart, file) in files.enumerated() {
                file.restore(
                    pending: Array(pending[hart * words..<(hart + 1) * words]),
                    enabled: Array(enabled[hart * words..<(hart + 1) * words]), delivers: delivery[hart] == 1,
                    threshold: threshold[hart])
            }
        }
    }
}
