import BatonRuntime

/// One ACPI table: a header of 36 bytes and a body. Its checksum is 0 until the pointers in it are final.
struct ACPITable {
    private(set) var bytes: [UInt8]

    static let headerSize = 36
    static let checksumOffset = 9
    /// Six bytes.
    static let oemID = Array("BATON ".utf8)

    /// - Parameters:
    ///   - signature: four characters.
    ///   - body: what follows the header.
    init(_ signature: String, revision: UInt8, body: [UInt8]) {
        let oemTable = Array("MICROVM ".utf8)
        let creator = Array("BATN".utf8)
        let version: UInt32 = 1
        bytes = Array(signature.utf8) + littleEndianBytes(UInt32(ACPITable.headerSize + body.count)) + [revision, 0]
        bytes += ACPITable.oemID + oemTable + littleEndianBytes(version) + creator + littleEndianBytes(version)
        bytes += body
    }

    /// What makes the sum of all bytes 0.
    static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt8 { 0 &- bytes.reduce(0, &+) }
}

/// A register as tables name it ("generic address structure"): of 8 bits, in memory.
func genericAddress(_ address: UInt64) -> [UInt8] {
    let (systemMemory, bits, bitOffset, byteAccess): (UInt8, UInt8, UInt8, UInt8) = (0, 8, 0, 1)
    return [systemMemory, bits, bitOffset, byteAccess] + littleEndianBytes(address)
}
