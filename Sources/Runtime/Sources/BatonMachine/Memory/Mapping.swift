import BatonBase
import CBaton
import Glibc

/// Maps and creates the memory that RAM blocks are made of.
public enum Mapping {
    /// The host's page size in bytes.
    public static let pageSize = Int(sysconf(Int32(_SC_PAGESIZE)))

    /// `length` rounded up to whole pages, or nil on overflow or for lengths
    /// below 1.
    public static func roundedToPages(_ length: Int) -> Int? {
        guard length > 0 else { return nil }
        let (sum, overflow) = length.addingReportingOverflow(pageSize - 1)
        return overflow ? nil : sum & ~(pageSize - 1)
    }

    /// Maps `length` bytes aligned to `alignment`.
    /// - Parameters:
    ///   - length: a positive multiple of the page size.
    ///   - alignment: a power of two, at least the page size.
    ///   - reserve: bytes of address space that are kept free of others from the start on, `length` among them.
    ///   - fd: the file to map from its start, borrowed; -1 for anonymous memory.
    ///   - shared: whether stores reach the file.
    ///   - writable: false maps for reading only.
    /// - Returns: the mapping, to be unmapped by the caller.
    public static func map(
        length: Int, alignment: Int, reserve: Int = 0, fd: Int32, shared: Bool, writable: Bool = true, name: String
    ) throws(VMMError) -> UnsafeMutableRawPointer {
        precondition(length > 0 && length % pageSize == 0 && alignment >= pageSize && alignment & (alignment - 1) == 0)
        let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
        // Of huge pages there are few, and none appears: all are reserved here, or an access would be a bus error later.
        let isHuge = fd >= 0 && cbaton_huge_page_size(fd) != 0
        let flags =
            (shared ? MAP_SHARED : MAP_PRIVATE) | (isHuge ? 0 : MAP_NORESERVE) | (fd < 0 ? MAP_ANONYMOUS : 0)
        // Reserve enough to find an aligned start in, then map over it.
        let slack = alignment > pageSize ? alignment : 0
        let room = max(length, reserve)
        guard let reserved = mmap(nil, room + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            reserved != MAP_FAILED
        else { throw .system("cannot set up guest memory '\(name)' (\(length) bytes)") }
        let start = UnsafeMutableRawPointer(
            bitPattern: (UInt(bitPattern: reserved) &+ UInt(alignment - 1)) & ~UInt(alignment - 1))
        guard let start, let mapped = mmap(start, length, protection, flags | MAP_FIXED, fd, 0), mapped != MAP_FAILED
        else {
            let code = errno
            munmap(reserved, room + slack)
            let failure = VMMError.system("cannot set up guest memory '\(name)' (\(length) bytes)", errno: code)
            throw isHuge && code == ENOMEM ? VMMError(failure.message, hint: HugePages.scarcity) : failure
        }
        let before = start - reserved
        if before > 0 { munmap(reserved, before) }
        let after = slack - before
        if after > 0 { munmap(start + room, after) }
        return mapped
    }

    /// Creates a memfd of `length` bytes with FD_CLOEXEC.
    /// - Parameter sealSize: seals the memfd, against being resized by anyone who
    ///   gets hold of it, which would make our accesses fault, and against
    ///   further seals, which would keep the next process from writing to it.
    /// - Parameter hugePages: `length` is a multiple of their size.
    public static func createMemfd(
        name: String, length: Int, sealSize: Bool = false, hugePages: HugePages? = nil
    ) throws(VMMError) -> OwnedFD {
        let raw = cbaton_memfd_create(
            name, (sealSize ? CBATON_MFD_ALLOW_SEALING : 0) | (hugePages?.memfdFlags ?? 0))
        guard raw >= 0 else { throw .system("failed to create memfd '\(name)'") }
        let fd = OwnedFD(adopting: raw)
        guard retryingInterrupts({ ftruncate(fd.raw, off_t(length)) }) == 0 else {
            throw .system("failed to resize memfd '\(name)' to \(length) bytes")
        }
        if sealSize && cbaton_seal_size(fd.raw) != 0 { throw .system("failed to seal memfd '\(name)'") }
        return fd
    }

    /// Bytes of the file behind `fd`.
    public static func fileLength(_ fd: Int32) throws(VMMError) -> Int {
        var status = stat()
        guard fstat(fd, &status) == 0 else { throw .system("Could not stat fd \(fd)") }
        return Int(status.st_size)
    }
}
