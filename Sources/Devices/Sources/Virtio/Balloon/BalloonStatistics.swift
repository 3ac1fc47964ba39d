import BatonRuntime
import Glibc

/// What a guest says of its memory (virtio 1.2, 5.5.6.3). Nothing of it is to be relied on.
public struct BalloonStatistics {
    /// QEMU's names, by VIRTIO_BALLOON_S_….
    static let names = [
        "stat-swap-in", "stat-swap-out", "stat-major-faults", "stat-minor-faults", "stat-free-memory",
        "stat-total-memory", "stat-available-memory", "stat-disk-caches", "stat-htlb-pgalloc", "stat-htlb-pgfail",
        "stat-oom-kills", "stat-alloc-stalls", "stat-async-scans", "stat-direct-scans", "stat-async-reclaims",
        "stat-direct-reclaims",
    ]
    /// Bytes of a tag and its value.
    private static let size = 10
    /// Bytes that are looked at: more than all tags that there are.
    static let largest = 64 * size

    /// By tag; nil for what the guest has not said.
    public private(set) var values = [UInt64?](repeating: nil, count: names.count)
    /// When the guest said so, in seconds since 1970; 0 for never.
    public private(set) var updatedAt: Int64 = 0

    mutating func read(_ bytes: UnsafeRawBufferPointer) {
        for index in values.indices { values[index] = nil }
        for start in stride(from: 0, through: bytes.count - BalloonStatistics.size, by: BalloonStatistics.size) {
            let tag = Int(bytes.loadUnaligned(fromByteOffset: start, as: UInt16.self).littleEndian)
            guard tag < values.count else { continue }
            values[tag] = bytes.loadUnaligned(fromByteOffset: start + 2, as: UInt64.self).littleEndian
        }
        updatedAt = Int64(time(nil))
    }
}
