import BatonBase
import CBaton
import Glibc

/// Huge pages of a size that the host has (Linux' hugetlb).
public struct HugePages {
    /// Bytes of one; a power of two.
    public let size: Int

    /// What to do when there are too few.
    static let scarcity =
        "The host has too few free huge pages: see /proc/sys/vm/nr_hugepages, and those of other sizes in "
        + "/sys/kernel/mm/hugepages."

    /// - Parameter size: bytes; nil for the host's default.
    /// - Throws: an error for a size that the host's kernel does not have.
    public init(size: UInt64?) throws(VMMError) {
        let bytes: UInt64
        if let size { bytes = size } else { bytes = try HugePages.defaultSize() }
        guard bytes > 0, bytes & (bytes - 1) == 0, let exact = Int(exactly: bytes),
            access("/sys/kernel/mm/hugepages/hugepages-\(exact >> 10)kB", F_OK) == 0
        else {
            throw VMMError(
                "failed to create memfd: the host has no huge pages of \(bytes) bytes",
                hint: "Its sizes are in /sys/kernel/mm/hugepages.")
        }
        self.size = exact
    }

    private static func defaultSize() throws(VMMError) -> UInt64 {
        if let size = try HostMemory.figure("Hugepagesize") { return size }
        throw VMMError("the host's kernel has no huge pages", hint: "Leave hugetlb=on out.")
    }

    /// Bytes, rounded up to whole pages.
    public func rounded(_ length: Int) -> Int { (length + size - 1) & ~(size - 1) }

    var memfdFlags: UInt32 {
        CBATON_MFD_HUGETLB | UInt32(size.trailingZeroBitCount) << UInt32(CBATON_MFD_HUGE_SHIFT)
    }
}
