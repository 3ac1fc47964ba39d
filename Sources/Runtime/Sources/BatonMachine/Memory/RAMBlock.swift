import BatonBase
import CBaton
import Glibc

/// One allocation of guest memory: main RAM, flash, ROM, device memory.
///
/// The name, as QEMU's `idstr`, is what identifies the block over an update.
/// A block owns its mapping and, when it has one, its file descriptor; both go
/// when the block does.
public final class RAMBlock {
    /// Unique in the VM: a memory backend's id, or the board's name for it, such
    /// as `pc.ram`.
    public let name: String
    /// Bytes of the block that the guest sees; a multiple of the page size.
    public let usedLength: Int
    /// Bytes reserved for growth; at least `usedLength`.
    public let maxLength: Int
    /// Alignment of the mapping in bytes; a power of two, at least a page.
    public let alignment: Int
    /// The first byte of the mapping. `maxLength` bytes are mapped, of which
    /// the first `usedLength` may be touched. Other threads and processes may
    /// change them at any time.
    public let host: UnsafeMutableRawPointer
    /// The descriptor that backs the block, or -1 for anonymous memory.
    /// Owned by the block.
    public let fd: Int32
    /// Whether stores reach the descriptor (MAP_SHARED).
    public let shared: Bool
    /// What made the block: the name of the memory backend's type or of the hook,
    /// or `anonymous`.
    public let origin: String
    /// The file that keeps the block's contents when the process is gone; nil
    /// for memory that goes with the process. Only with `shared`, and for files
    /// that `canBeMarked`.
    public var file: String?
    /// Called once, when the block is freed: the owner of the record that
    /// finds the block again after an exec forgets it here.
    public var onFree: ((RAMBlock) -> Void)?

    /// Bytes of a page of the memory behind the block: more than the host's usual one for huge pages.
    public private(set) lazy var pageSize = RAMBlock.pageSize(of: fd)

    /// Bytes of address space that belong to the block, from `host` on.
    private let reserve: Int

    /// Takes ownership of `host` (a mapping of `maxLength` bytes) and `fd`.
    /// - Parameter reserve: bytes of address space that go with the mapping, if they are more.
    public init(
        name: String, usedLength: Int, maxLength: Int, alignment: Int, host: UnsafeMutableRawPointer,
        fd: Int32, shared: Bool, origin: String, reserve: Int = 0
    ) {
        self.reserve = max(maxLength, reserve)
        self.name = name
        self.usedLength = usedLength
        self.maxLength = maxLength
        self.alignment = alignment
        self.host = host
        self.fd = fd
        self.shared = shared
        self.origin = origin
    }

    /// Whether the guest's bytes outlive this process' mapping of them: the
    /// condition for keeping them in place, and out of a checkpoint.
    public var isPreservable: Bool { fd >= 0 && shared }

    /// Guards the mapping against what may become of the file behind it: see
    /// `GuestMemory.loss`.
    func guardMapping() throws(VMMError) {
        // Nobody can take away a page of anonymous memory.
        guard fd >= 0 else { return }
        guard cbaton_guard_add(host, maxLength, CBATON_GUARD_RAM) == 0 else {
            throw .system("cannot guard the memory of RAM block '\(name)'")
        }
    }

    /// Whether pages of the block could not be had from its file when they were
    /// accessed. They have been zeroes since, which are not the guest's data.
    package var hasLostPages: Bool { fd >= 0 && cbaton_guard_has_lost(host) != 0 }

    /// Whether the guest's bytes outlive the process and the host's next boot.
    public var isPersistent: Bool { isPreservable && file != nil }

    deinit {
        onFree?(self)
        cbaton_guard_remove(host)
        munmap(host, reserve)
        if fd >= 0 { close(fd) }
    }
}
