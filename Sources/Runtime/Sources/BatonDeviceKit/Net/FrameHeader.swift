/// What is still to be done with a frame: `struct virtio_net_hdr` (virtio 1.3,
/// 5.1.6), which the kernel's interfaces have before each frame too. Little endian, as
/// this machine is.
public struct FrameHeader: Equatable, BitwiseCopyable {
    /// Bytes in memory.
    public static let size = 10

    /// The checksum at `checksumStart + checksumOffset` is to be completed.
    public static let needsChecksum: UInt8 = 1
    /// The checksums have been found to be right.
    public static let checksumValid: UInt8 = 2
    /// Values of `segmentation`; `ecn` comes in addition.
    public static let tcp4: UInt8 = 1, tcp6: UInt8 = 4, ecn: UInt8 = 0x80

    public var flags: UInt8 = 0
    /// The protocol of a frame that is to be cut; 0 for one that is not.
    public var segmentation: UInt8 = 0
    /// A hint: bytes of all the headers.
    public var headerLength: UInt16 = 0
    /// Bytes of data in each segment.
    public var segmentSize: UInt16 = 0
    public var checksumStart: UInt16 = 0
    public var checksumOffset: UInt16 = 0

    public init() {}

    /// Reads one from the first ten bytes; all zeroes when there are fewer.
    public init(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.count >= FrameHeader.size else { return }
        self = bytes.loadUnaligned(as: FrameHeader.self)
    }

    /// Reads one that `bytes` gave.
    public init(bytes: [UInt8]) { self = bytes.withUnsafeBytes { FrameHeader($0) } }

    /// The ten bytes.
    public var bytes: [UInt8] { withUnsafeBytes(of: self) { Array($0) } }

    /// Stores the ten bytes; nothing when there is no room.
    public func store(to target: UnsafeMutableRawBufferPointer) {
        guard target.count >= FrameHeader.size else { return }
        target.storeBytes(of: self, as: FrameHeader.self)
    }
}

/// What one side of a network card leaves to the other: bits as the kernel's
/// TUNSETOFFLOAD has them (linux/if_tun.h).
public struct NetOffloads: OptionSet {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Checksums; the others need it.
    public static let checksum = NetOffloads(rawValue: 1)
    /// Frames of TCP over IPv4, or IPv6, that are to be cut.
    public static let tcp4 = NetOffloads(rawValue: 2)
    public static let tcp6 = NetOffloads(rawValue: 4)
    /// Such frames with explicit congestion notification.
    public static let ecn = NetOffloads(rawValue: 8)
}
