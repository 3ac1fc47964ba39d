import BatonRuntime

/// A disk on the bus of a virtio-scsi device: `-device scsi-hd` or `scsi-cd`.
final class SCSIDisk {
    /// What `-device` says.
    struct Properties {
        /// `scsi-cd`: only read, in blocks of 2048 bytes.
        var isCD = false
        var serial = ""
        var vendor = "BATON"
        var product: String?
        var version = "1.0"
        /// The name that the guest sees in page 0x83; nil for the drive's.
        var deviceID: String?
        /// A world wide name, 0 for none.
        var wwn: UInt64 = 0
        var rotationRate: UInt16 = 0
        var writeCache: Bool?
        var onWriteError: BlockErrorPolicy?
        var onReadError: BlockErrorPolicy?
    }

    let target: UInt8
    let lun: UInt16
    let backend: BlockBackend
    let properties: Properties
    var errors: BlockErrors
    private let startsWriteback: Bool
    /// The driver is still to be told that the disk has another size: by an event, and by the next command.
    var owesEvent = false
    var owesAttention = false

    init(target: UInt8, lun: UInt16, backend: BlockBackend, properties: Properties) {
        self.target = target
        self.lun = lun
        self.backend = backend
        self.properties = properties
        errors = BlockErrors(of: backend, onWrite: properties.onWriteError, onRead: properties.onReadError)
        startsWriteback = properties.writeCache ?? backend.settings.cache.isWriteback
        backend.isWriteback = startsWriteback
    }

    /// Bytes of a block.
    var blockSize: UInt64 { properties.isCD ? 2048 : 512 }
    /// Blocks that the disk has.
    var blockCount: UInt64 { backend.size / blockSize }
    var isReadOnly: Bool { properties.isCD || backend.readOnly }
    /// Whether it gives ranges back to the host.
    var discards: Bool { !isReadOnly && backend.settings.discards }

    func reset() {
        owesEvent = false
        owesAttention = false
        backend.isWriteback = startsWriteback
    }

    /// Bytes from the beginning and in all of a range that lies within the disk, else nil.
    func place(_ block: UInt64, _ count: UInt64) -> (offset: UInt64, length: UInt64)? {
        guard block <= blockCount, count <= blockCount - block else { return nil }
        return (block * blockSize, count * blockSize)
    }

    var description: String { "disk \(target):\(lun)" }
}
