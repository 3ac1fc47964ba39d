import BatonRuntime
import Glibc

/// A part of guest RAM.
struct VFIORange {
    let start: UInt64
    let size: UInt64
    let host: UnsafeMutableRawPointer
    let readOnly: Bool
    let name: String
    /// The file that it is in, -1 for none, and where in that. Borrowed.
    let file: Int32
    let fileOffset: UInt64

    static func all(_ space: AddressSpace) -> [VFIORange] {
        space.ramRanges.map {
            VFIORange(
                start: $0.start, size: $0.size, host: $0.host, readOnly: $0.readOnly, name: $0.block.name,
                file: $0.block.shared ? $0.block.fd : -1, fileOffset: UInt64($0.host - $0.block.host))
        }
    }

    /// Where guest RAM is, to be compared by another process.
    static func numbers(_ ranges: [VFIORange]) -> [UInt64] {
        ranges.flatMap { [$0.start, $0.size, $0.readOnly ? 1 : 0] }
    }

    func failure() -> VMMError {
        let code = errno
        return .system(
            "cannot map RAM block '\(name)' (\(size) bytes at \(Hex(start))) for DMA", errno: code,
            hint: code == ENOMEM
                ? "All of guest memory is locked: raise the limit (ulimit -l)."
                : "The host's IOMMU may reserve these addresses; less memory (-m) may avoid them.")
    }
}

/// What the kernel has pinned guest RAM for, on behalf of this process: a
/// container or an iommufd. An update hands it to another process.
protocol VFIOMemoryOwner: AnyObject {
    /// Why that could not be done now; nil when it can.
    var blocker: String? { get }
    /// The last step before another program is executed here.
    func giveUp() throws(VMMError)
    /// The first step of a process that takes the guest over; it may fail still.
    func acquire() throws(VMMError)
    /// The guest, and its memory, is this process' own.
    func settle() throws(VMMError)
    /// The guest goes on here after all.
    /// Comes only after `giveUp` of some owner. What the new VMM has done meanwhile
    /// is not known.
    func takeBack() throws(VMMError)
}
