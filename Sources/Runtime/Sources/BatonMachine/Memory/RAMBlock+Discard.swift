import BatonBase
import CBaton
import Glibc

/// Giving memory back to the host, as a guest wishes it.
extension RAMBlock {
    /// Bytes of a page of the memory behind the block: the host's, or those of the huge pages of its file system.
    static func pageSize(of fd: Int32) -> Int {
        max(Mapping.pageSize, fd < 0 ? 0 : Int(cbaton_huge_page_size(fd)))
    }

    /// Whether a discarded page reads as zeroes: not those of a private mapping of a file, which has contents of its own.
    public var discardsToZeroes: Bool { fd < 0 || shared }

    /// Gives pages back to the host. They have other contents from then on: see `discardsToZeroes`.
    ///
    /// What lies in a shared file goes from the file, for all who have it mapped. Only the process that runs the
    /// guest may call this, and nobody must have the pages pinned (`AddressSpace.hasPinnedPages`).
    /// - Parameters:
    ///   - offset, length: in the block; multiples of `pageSize`.
    /// - Returns: 0, or the error (errno), with which the pages are as they were.
    public func discard(offset: Int, length: Int) -> Int32 {
        precondition(offset >= 0 && length > 0 && offset + length <= usedLength)
        precondition(offset % pageSize == 0 && length % pageSize == 0)
        let result: Int32 =
            if !shared {
                madvise(host + offset, length, Int32(MADV_DONTNEED))
            } else if fd >= 0 {
                cbaton_punch_hole(fd, off_t(offset), off_t(length))
            } else {
                madvise(host + offset, length, Int32(MADV_REMOVE))
            }
        return result == 0 ? 0 : errno
    }
}
