import BatonRuntime

/// Operation codes (SPC-4, SBC-3, MMC-6).
enum SCSIOperation {
    static let testUnitReady: UInt8 = 0x00
    static let requestSense: UInt8 = 0x03
    static let read6: UInt8 = 0x08
    static let write6: UInt8 = 0x0a
    static let inquiry: UInt8 = 0x12
    static let modeSense6: UInt8 = 0x1a
    static let startStop: UInt8 = 0x1b
    static let preventRemoval: UInt8 = 0x1e
    static let readCapacity10: UInt8 = 0x25
    static let read10: UInt8 = 0x28
    static let write10: UInt8 = 0x2a
    static let verify10: UInt8 = 0x2f
    static let synchronizeCache10: UInt8 = 0x35
    static let writeSame10: UInt8 = 0x41
    static let unmap: UInt8 = 0x42
    static let readTOC: UInt8 = 0x43
    static let getConfiguration: UInt8 = 0x46
    static let getEventStatus: UInt8 = 0x4a
    static let readDiscInformation: UInt8 = 0x51
    static let modeSense10: UInt8 = 0x5a
    static let read16: UInt8 = 0x88
    static let write16: UInt8 = 0x8a
    static let verify16: UInt8 = 0x8f
    static let synchronizeCache16: UInt8 = 0x91
    static let writeSame16: UInt8 = 0x93
    static let serviceActionIn: UInt8 = 0x9e
    static let reportLUNs: UInt8 = 0xa0
    static let read12: UInt8 = 0xa8
    static let write12: UInt8 = 0xaa
}

/// A command descriptor block of 32 bytes, or its parameters, borrowed.
struct SCSICommand {
    /// Bytes of a block in the driver's requests (`cdb_size`).
    static let size = 32

    let bytes: UnsafeRawBufferPointer
    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    var operation: UInt8 { bytes[0] }
    subscript(index: Int) -> UInt8 { bytes[index] }
    func number<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T {
        T(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
    }

    /// Bytes that the driver has room for, of a command whose answer is not blocks.
    var allocationLength: Int {
        switch operation {
        case SCSIOperation.requestSense, SCSIOperation.modeSense6: Int(bytes[4])
        case SCSIOperation.inquiry: Int(number(UInt16.self, at: 3))
        case SCSIOperation.readCapacity10: 8
        case SCSIOperation.serviceActionIn: Int(number(UInt32.self, at: 10))
        case SCSIOperation.reportLUNs: Int(number(UInt32.self, at: 6))
        default: Int(number(UInt16.self, at: 7))
        }
    }

    /// Blocks that are moved, written with one block's contents, or made durable: the first, and how many.
    var range: (block: UInt64, count: UInt64) {
        switch operation {
        case SCSIOperation.read6, SCSIOperation.write6:
            (
                UInt64(number(UInt32.self, at: 0) & 0x1f_ffff), bytes[4] == 0 ? 256 : UInt64(bytes[4])
            )
        case SCSIOperation.read12, SCSIOperation.write12:
            (UInt64(number(UInt32.self, at: 2)), UInt64(number(UInt32.self, at: 6)))
        case SCSIOperation.read16, SCSIOperation.write16, SCSIOperation.writeSame16, SCSIOperation.verify16,
            SCSIOperation.synchronizeCache16:
            (number(UInt64.self, at: 2), UInt64(number(UInt32.self, at: 10)))
        default: (UInt64(number(UInt32.self, at: 2)), UInt64(number(UInt16.self, at: 7)))
        }
    }
}
