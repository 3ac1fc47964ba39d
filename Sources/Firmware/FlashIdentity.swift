import BatonRuntime

/// What a flash of two chips of 16 bits says about itself.
struct FlashIdentity {
    /// Intel, and the number of a 28F128J3: what QEMU's boards have.
    private static let manufacturer: UInt16 = 0x89, device: UInt16 = 0x18
    private let table: [UInt8]

    /// - Parameters: all in bytes of both chips, and powers of two.
    init(size: Int, blockSize: Int, bufferSize: Int) {
        let chips = 2
        // JESD68.01: "CFI Query Identification String", "System Interface", "Device Geometry"; behind them Intel's
        // own part, all without anything optional.
        var table = [UInt8](repeating: 0, count: 0x40)
        func put(_ bytes: [UInt8], at place: Int) { table.replaceSubrange(place..<place + bytes.count, with: bytes) }
        let (intelExtended, extendedTable): (UInt16, UInt16) = (1, 0x31)
        put(Array("QRY".utf8) + littleEndianBytes(intelExtended) + littleEndianBytes(extendedTable), at: 0x10)
        // Volts: 4.5 to 5.5. Powers of two: microseconds for a word and a buffer, milliseconds for a block; how many
        // times longer each takes at most.
        put([0x45, 0x55, 0, 0, 7, 7, 10, 0, 4, 4, 4, 0], at: 0x1b)
        // x8 and x16; one kind of block.
        put([UInt8((size / chips).trailingZeroBitCount), 2, 0], at: 0x27)
        put([UInt8((bufferSize / chips).trailingZeroBitCount), 0, 1], at: 0x2a)
        put(
            littleEndianBytes(UInt16(size / blockSize - 1)) + littleEndianBytes(UInt16(blockSize / chips / 256)),
            at: 0x2d)
        put(Array("PRI10".utf8), at: 0x31)
        // One protection register.
        put([1], at: 0x3f)
        self.table = table
    }

    /// "Read Identifier Codes" of Intel's data sheet: 0 for what is not there, such as a lock.
    /// - Parameter word: of the bus.
    func identifier(at word: UInt64) -> UInt16 {
        switch word & 0xff {
        case 0: FlashIdentity.manufacturer
        case 1: FlashIdentity.device
        default: 0
        }
    }

    /// A byte of the query table.
    func query(at word: UInt64) -> UInt8 { word < UInt64(table.count) ? table[Int(word)] : 0 }
}
