import BatonBase
import Glibc

/// How a disk's data is kept, as QEMU's `cache=`.
public struct BlockCache: Equatable {
    /// Whether the guest has to flush what is to be durable; else each write is, when it is done.
    public var isWriteback = true
    /// Whether the host's page cache is passed by (O_DIRECT).
    public var isDirect = false
    /// Whether flushes of the guest are ignored: for data that may be lost.
    public var ignoresFlush = false

    public init(isWriteback: Bool = true, isDirect: Bool = false, ignoresFlush: Bool = false) {
        (self.isWriteback, self.isDirect, self.ignoresFlush) = (isWriteback, isDirect, ignoresFlush)
    }

    /// QEMU's names for the combinations.
    public static let modes: [(name: String, cache: BlockCache)] = [
        ("writeback", BlockCache()), ("none", BlockCache(isDirect: true)),
        ("writethrough", BlockCache(isWriteback: false)),
        ("directsync", BlockCache(isWriteback: false, isDirect: true)),
        ("unsafe", BlockCache(ignoresFlush: true)),
    ]

    /// As `info block` says it.
    public var description: String {
        (isWriteback ? "writeback" : "writethrough") + (isDirect ? ", direct" : "")
            + (ignoresFlush ? ", ignore flushes" : "")
    }
}

/// Whether writes of zeroes only are carried out as such, as QEMU's `detect-zeroes=`.
public enum DetectZeroes: String, CaseIterable {
    case off, on
    /// The range may be given back to the host.
    case unmap
}

/// What is done about a request that fails, as QEMU's `werror=` and `rerror=`.
public enum BlockErrorPolicy: String, CaseIterable {
    /// The guest gets the error.
    case report
    /// The guest is told that all is well.
    case ignore
    /// The guest stops, and the request is tried again when it goes on.
    case stop
    /// `stop` where there is no room, else `report`.
    case enospc

    /// What an error comes to: `report`, `ignore` or `stop`.
    public func action(_ code: Int32) -> BlockErrorPolicy {
        self == .enospc ? (code == ENOSPC ? .stop : .report) : self
    }
}

/// What `-drive` and `-blockdev` say of a disk beside its file.
public struct BlockSettings {
    public var cache = BlockCache()
    /// Whether discards reach the file (`discard=unmap`).
    public var discards = true
    public var detectZeroes = DetectZeroes.off
    public var onWriteError = BlockErrorPolicy.enospc
    public var onReadError = BlockErrorPolicy.report
    /// Carries out the requests; nil for threads.
    public var engine: BlockEngine?
    /// Whether the command line says that the image is raw. Else it is probed, and refused if it is known to be
    /// something else.
    public var formatIsKnown = true
    /// Whether its use is locked as QEMU does it.
    public var isLocked = true

    public init() {}
}

/// Whether a disk has had errors that stopped the guest, since that went on; as QEMU's `io-status`.
public enum BlockIOStatus: String, CaseIterable {
    case ok, failed, nospace
}
