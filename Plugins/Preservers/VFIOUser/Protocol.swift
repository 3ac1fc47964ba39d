import BatonRuntime

/// The vfio-user protocol, version 0.1, as in QEMU's
/// docs/interop/vfio-user.rst.
enum VFIOUser {
    static let majorVersion: UInt16 = 0
    static let minorVersion: UInt16 = 1

    enum Command: UInt16 {
        case version = 1
        case dmaMap = 2
        case deviceGetInfo = 4
        case deviceGetRegionInfo = 5
        case deviceGetIRQInfo = 7
        case deviceSetIRQs = 8
        case regionRead = 9
        case regionWrite = 10
        case dmaRead = 11
        case dmaWrite = 12
        case deviceReset = 13
    }

    enum Flag {
        static let typeMask: UInt32 = 0xf
        static let command: UInt32 = 0
        static let reply: UInt32 = 1
        static let noReply: UInt32 = 0x10
        static let error: UInt32 = 0x20
    }

    enum MapFlag {
        static let read: UInt32 = 1
        static let write: UInt32 = 2
    }

    /// Bytes of data in a message, here and unless the other side says less.
    static let maxTransfer = 1 << 20
    /// Bytes of a message besides its data: the largest has 32.
    static let maxOverhead = 64
    /// Descriptors in a message unless the server says more.
    static let defaultMessageFDs = 1
    /// Bytes before the data of a region's access, and of a DMA access.
    static let regionAccessSize = 16
    static let dmaAccessSize = 16
}

/// A message's header.
struct VFIOUserHeader {
    static let size = 16

    var id: UInt16
    var command: UInt16
    /// Bytes of the whole message.
    var size: UInt32
    var flags: UInt32
    var error: UInt32 = 0

    init(id: UInt16, command: UInt16, payload: Int, flags: UInt32, error: UInt32 = 0) {
        self.id = id
        self.command = command
        size = UInt32(VFIOUserHeader.size + payload)
        self.flags = flags
        self.error = error
    }

    /// - Returns: nil when there are fewer than 16 bytes.
    init?(_ bytes: ArraySlice<UInt8>) {
        var cursor = ByteCursor(bytes)
        guard let id = cursor.unsigned(UInt16.self), let command = cursor.unsigned(UInt16.self),
            let size = cursor.unsigned(UInt32.self), let flags = cursor.unsigned(UInt32.self),
            let error = cursor.unsigned(UInt32.self)
        else { return nil }
        self.id = id
        self.command = command
        self.size = size
        self.flags = flags
        self.error = error
    }

    var bytes: [UInt8] {
        littleEndianBytes(id) + littleEndianBytes(command) + littleEndianBytes(size) + littleEndianBytes(flags)
            + littleEndianBytes(error)
    }

    var isReply: Bool { flags & VFIOUser.Flag.typeMask == VFIOUser.Flag.reply }
    var isCommand: Bool { flags & VFIOUser.Flag.typeMask == VFIOUser.Flag.command }
}
