/// What has been done on a block back end in this process: QEMU's `BlockDeviceStats`, for `query-blockstats` and
/// metrics. Plain words, which whoever completes a request adds to with the VM lock held.
public struct BlockStatistics {
    public enum Operation: String, CaseIterable {
        case read, write, flush
        /// Discards and writes of zeroes: QEMU's unmap.
        case unmap
    }

    /// Of one kind of operation.
    public struct Totals {
        /// Requests that were carried out.
        public fileprivate(set) var operations: UInt64 = 0
        /// Requests that failed; not among `operations`.
        public fileprivate(set) var failures: UInt64 = 0
        /// Bytes of those that were carried out.
        public fileprivate(set) var bytes: UInt64 = 0
        /// From when a request was taken until it was done, summed up.
        public fileprivate(set) var nanoseconds: UInt64 = 0
    }

    private var totals: (read: Totals, write: Totals, flush: Totals, unmap: Totals) = (
        Totals(), Totals(), Totals(), Totals()
    )

    public init() {}

    public subscript(_ operation: Operation) -> Totals {
        switch operation {
        case .read: totals.read
        case .write: totals.write
        case .flush: totals.flush
        case .unmap: totals.unmap
        }
    }

    /// Counts a request that has ended.
    /// - Parameter nanoseconds: since it was taken.
    @inline(__always)
    public mutating func count(_ operation: Operation, bytes: Int, nanoseconds: Int64, failed: Bool) {
        switch operation {
        case .read: add(&totals.read, bytes, nanoseconds, failed)
        case .write: add(&totals.write, bytes, nanoseconds, failed)
        case .flush: add(&totals.flush, bytes, nanoseconds, failed)
        case .unmap: add(&totals.unmap, bytes, nanoseconds, failed)
        }
    }

    @inline(__always)
    private func add(_ totals: inout Totals, _ bytes: Int, _ nanoseconds: Int64, _ failed: Bool) {
        if failed {
            totals.failures &+= 1
        } else {
            totals.operations &+= 1
            totals.bytes &+= UInt64(truncatingIfNeeded: bytes)
        }
        totals.nanoseconds &+= UInt64(truncatingIfNeeded: nanoseconds)
    }
}
