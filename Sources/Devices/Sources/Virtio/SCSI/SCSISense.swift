import BatonRuntime

/// Why a command has failed (SPC-4, 4.5).
struct SCSISense: Equatable {
    let key: UInt8
    let code: UInt8
    let qualifier: UInt8

    static let none = SCSISense(key: 0, code: 0, qualifier: 0)
    static let readError = SCSISense(key: 3, code: 0x11, qualifier: 0)
    static let writeError = SCSISense(key: 3, code: 0x0c, qualifier: 0)
    static let spaceAllocationFailed = SCSISense(key: 7, code: 0x27, qualifier: 7)
    static let writeProtected = SCSISense(key: 7, code: 0x27, qualifier: 0)
    static let invalidOpcode = SCSISense(key: 5, code: 0x20, qualifier: 0)
    static let outOfRange = SCSISense(key: 5, code: 0x21, qualifier: 0)
    static let invalidField = SCSISense(key: 5, code: 0x24, qualifier: 0)
    static let unsupportedLUN = SCSISense(key: 5, code: 0x25, qualifier: 0)
    static let invalidParameter = SCSISense(key: 5, code: 0x26, qualifier: 0)
    static let savingUnsupported = SCSISense(key: 5, code: 0x39, qualifier: 0)
    static let capacityChanged = SCSISense(key: 6, code: 0x2a, qualifier: 9)

    /// Of the fixed format.
    static let size = 18

    /// Writes the fixed format, to `size` bytes.
    func write(to bytes: UnsafeMutableRawBufferPointer) {
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
        bytes[0] = 0x70
        bytes[2] = key
        bytes[7] = UInt8(SCSISense.size - 8)
        bytes[12] = code
        bytes[13] = qualifier
    }
}
