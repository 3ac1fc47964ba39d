import BatonBase
import BatonMachine
import CBaton
import Glibc

/// The host side of a disk: a raw file or block device (`-drive`, `-blockdev`).
///
/// Requests are started with `start`, sent on their way with `submit`, and end in `onCompletion`; an engine carries them
/// out beside the guest. Everything is called with the VM lock held.
public final class BlockBackend {
    /// The `id=` of `-drive` or `node-name=` of `-blockdev`.
    public let id: String
    public let filename: String
    public let readOnly: Bool
    public let settings: BlockSettings
    /// Size in bytes; a multiple of 512.
    public private(set) var size: UInt64
    let fd: Int32
    /// The device that uses the back end, for `query-block`; nil when free.
    public var user: String?
    /// What the device that uses it has had done.
    public var statistics = BlockStatistics()
    /// Whether an error has stopped the guest.
    public var ioStatus = BlockIOStatus.ok
    /// Where the file ends within the disk's last sector, whose rest reads as zeroes; nil where it ends with a sector.
    var endInSector: UInt64?
    /// Whether the guest must not make the image look like one of another format: it was taken for raw unasked.
    let restrictsFormat: Bool
    /// What the user's locks are to be, once this process has the guest.
    private var use: (taken: ImageLock.Permissions, shared: ImageLock.Permissions)?
    private unowned let handover: (any MachineHandover)?
    private let isInherited: Bool

    // MARK: Of the user

    /// A request has ended: its `error` says how. It is the asker's again.
    public var onCompletion: (UnsafeMutablePointer<BlockRequest>) -> Void = { _ in }
    /// All that had ended has been told of.
    public var onBatchEnd: () -> Void = {}
    /// The disk has another size.
    public var onResize: () -> Void = {}
    /// Whether written data is durable only after a flush: `cache=`, and the guest may change it.
    public var isWriteback: Bool

    // MARK: Of requests

    /// Requests that were started and have not ended.
    public internal(set) var inHand = 0
    /// Nothing new is begun, see `hold`.
    var isHeld = false
    var isTouched = false
    /// Of `inHand`, those that an engine has.
    var issued = 0
    /// While one is carried out that needs the file alone, the others wait.
    var isExclusive = false
    var waiting = BlockRequestList()
    /// Large requests are carried out a few at a time.
    var largeIssued = 0
    var largeWaiting = BlockRequestList()
    /// Alignments that O_DIRECT asks for, in bytes; nil before the first request.
    var alignment: (memory: Int, offset: Int)?
    /// Those of the VM; set by the first user.
    weak var engines: BlockEngines?
    var engine: BlockEngine?

    /// Opens a file or block device, or takes over the open one of the process before.
    /// - Parameter handover: that of the VM; nil in one that is not updated.
    /// - Throws: `Could not open 'FILE': …`, as QEMU says it.
    public init(
        id: String, filename: String, readOnly: Bool, settings: BlockSettings = BlockSettings(),
        handover: (any MachineHandover)? = nil
    ) throws(VMMError) {
        let isTrial = handover?.isTrial == true
        let opened: OwnedFD
        let before = try InheritedDisk.claim(id: id, filename: filename, readOnly: readOnly, handover: handover)
        if let before {
            opened = OwnedFD(adopting: before)
        } else {
            // A trial must not be able to change what another VM's guest works with.
            if isTrial, !readOnly, access(filename, W_OK) != 0 { throw .system("Could not open '\(filename)'") }
            opened = try FD.openFile(
                filename, readOnly || isTrial ? O_RDONLY : O_RDWR, kinds: [.regular, .blockDevice])
            if settings.cache.isDirect { try BlockBackend.setDirect(opened.raw, true, filename) }
        }
        let end = lseek(opened.raw, 0, SEEK_END)
        guard end >= 0 else { throw .system("Could not get the size of '\(filename)'") }
        if !settings.formatIsKnown {
            if let format = ImageFormat.find(in: opened.raw, length: Int(end)) {
                throw VMMError(
                    "Could not open '\(filename)': it is a \(format) image, and only raw images are supported",
                    hint: "Convert it with 'qemu-img convert -O raw', or say format=raw to use the file as it is.")
            }
            if !readOnly, handover?.isSuccessor != true {
                Report.warning(
                    "Image format was not specified for '\(filename)' and probing guessed raw. Automatically "
                        + "detecting the format is dangerous for raw images, write operations on block 0 will be "
                        + "restricted. Specify the 'raw' format explicitly to remove the restrictions.")
            }
        }
        self.id = id
        self.filename = filename
        self.readOnly = readOnly
        self.settings = settings
        isWriteback = settings.cache.isWriteback
        (size, endInSector) = BlockBackend.sectors(end)
        restrictsFormat = !settings.formatIsKnown && !readOnly && size > 0
        self.handover = handover
        isInherited = before != nil
        fd = opened.release()
    }

    deinit { close(fd) }

    /// Has the page cache passed by, or not: of the open file, which processes share.
    private static func setDirect(_ fd: Int32, _ isDirect: Bool, _ filename: String) throws(VMMError) {
        guard cbaton_set_direct(fd, isDirect ? 1 : 0) == 0 else {
            throw .system(
                "Could not open '\(filename)'",
                hint: "The file system may not support O_DIRECT: cache=writeback goes without it.")
        }
    }

    // MARK: Users

    /// What a device does with an image.
    public enum Access {
        /// A disk, which its guest alone writes unless it `sharesWrites`.
        case disk(sharesWrites: Bool)
        /// Contents that are only read, and that others may have too.
        case firmware
    }

    /// Locks the image for the use of a device, which sets `user` when it stands.
    /// - Throws: QEMU's errors when another device or process has the image.
    public func lock(for access: Access) throws(VMMError) {
        guard user == nil else { throw VMMError("Drive '\(id)' is already in use by another device") }
        // As QEMU's disks: nobody else may write, or resize what is in use.
        switch access {
        case .disk(let sharesWrites):
            use = (
                readOnly ? .consistentRead : [.consistentRead, .write],
                sharesWrites ? [.consistentRead, .writeUnchanged, .write] : [.consistentRead, .writeUnchanged]
            )
        case .firmware: use = (.consistentRead, [.consistentRead, .writeUnchanged, .write])
        }
        // An open file of the process before has its locks, which are still that one's.
        if !isInherited { try lock() }
    }

    private func lock() throws(VMMError) {
        guard settings.isLocked, let use else { return }
        // A trial only looks: the locks are for who has the guest.
        if handover?.isTrial == true {
            return try ImageLock.check(fd, filename, taking: use.taken, sharing: use.shared)
        }
        try ImageLock.acquire(fd, filename, taking: use.taken, sharing: use.shared)
    }

    /// Whether `[offset, offset + length)` lies within the disk.
    public func contains(offset: UInt64, length: UInt64) -> Bool {
        offset <= size && length <= size - offset
    }

    // MARK: In the caller's thread

    /// Reads into the vectors, for a board that loads its firmware: nothing else is in hand. The range must be within
    /// the disk.
    /// - Returns: false on an I/O error, with errno.
    public func read(_ vectors: UnsafeBufferPointer<iovec>, offset: UInt64) -> Bool {
        carryOut(.read, vectors, offset: offset)
    }

    /// Writes whole sectors from the vectors, as `read` reads. An image whose format was guessed stays raw, and what is
    /// written is durable where the drive's cache says so.
    public func write(_ vectors: UnsafeBufferPointer<iovec>, offset: UInt64) -> Bool {
        if changesFormat(vectors, offset: offset) {
            errno = EPERM
            return false
        }
        return carryOut(.write, vectors, offset: offset)
    }

    private func carryOut(
        _ kind: BlockRequest.Kind, _ vectors: UnsafeBufferPointer<iovec>, offset: UInt64
    ) -> Bool {
        var copies = Array(vectors)
        return copies.withUnsafeMutableBufferPointer { copies in
            var request = BlockRequest()
            (request.kind, request.fd, request.offset) = (kind, fd, offset)
            (request.vectors, request.vectorCount) = (copies.baseAddress, copies.count)
            request.length = copies.reduce(0) { $0 + UInt64($1.iov_len) }
            request.isUnaligned = settings.cache.isDirect
            request.isDurable = kind == .write && !isWriteback && !settings.cache.ignoresFlush
            while request.length > 0 {
                request.beginPiece()
                let moved = withUnsafeMutablePointer(to: &request) { BlockFile.carryOut($0) }
                guard moved > 0 else {
                    if moved == 0, kind == .read, request.offset == endInSector {
                        request.endPiece(moved: 0)
                        request.clearRest()
                        continue
                    }
                    if moved != -Int(EINTR) {
                        errno = moved == 0 ? EIO : Int32(-moved)
                        return false
                    }
                    request.endPiece(moved: 0)
                    continue
                }
                request.endPiece(moved: moved)
            }
            return true
        }
    }

    // MARK: Size

    /// Changes the size of the file, or takes up that of a block device, which others have changed.
    /// - Parameter bytes: a multiple of 512.
    public func resize(to bytes: UInt64) throws(VMMError) {
        guard !readOnly else { throw VMMError("Image is read-only") }
        var status = stat()
        guard fstat(fd, &status) == 0 else { throw .system("Could not resize '\(filename)'") }
        if FileKind(mode: status.st_mode) == .regular {
            guard let length = off_t(exactly: bytes), ftruncate(fd, length) == 0 else {
                throw .system("Failed to resize the underlying file", errno: errno == 0 ? EFBIG : errno)
            }
            endInSector = nil
        } else {
            let end = lseek(fd, 0, SEEK_END)
            guard end >= 0, bytes <= UInt64(end) else { throw VMMError("Cannot grow device files") }
        }
        setSize(bytes)
    }

    /// Looks at the size again: another process may have changed it before this one got the guest.
    /// - Parameter known: bytes that the guest's disk has. A file that somebody has made shorter meanwhile changes
    ///   nothing of that, here or in the process before: what lies behind its end fails, until it is long again.
    public func refreshSize(known: UInt64 = 0) {
        let end = lseek(fd, 0, SEEK_END)
        guard end >= 0 else { return }
        let found = BlockBackend.sectors(end)
        endInSector = found.size >= known ? found.endInSector : nil
        setSize(max(known, found.size))
    }

    /// Bytes of the disk that a file makes, and where the file ends within the last sector, if it does.
    private static func sectors(_ end: off_t) -> (size: UInt64, endInSector: UInt64?) {
        let length = UInt64(end)
        return length & 511 == 0 ? (length, nil) : ((length | 511) + 1, length)
    }

    private func setSize(_ bytes: UInt64) {
        guard bytes != size else { return }
        size = bytes
        onResize()
    }

    // MARK: Update

    /// Saves the open file for the next process.
    func handOver() {
        guard let handover else { return }
        handover.fds.replace(InheritedDisk.name(id), fd)
    }

    func execFailed() { handover?.fds.delete(InheritedDisk.name(id)) }

    /// The guest is this process' own: so are its locks and the file's mode, which a new command line may have changed.
    func committed() {
        guard isInherited else { return }
        do throws(VMMError) {
            try BlockBackend.setDirect(fd, settings.cache.isDirect, filename)
            guard settings.isLocked, let use else { return ImageLock.release(fd) }
            try ImageLock.change(fd, filename, taking: use.taken, sharing: use.shared)
        } catch {
            Report.warning("drive '\(id)': \(error.description)")
        }
    }
}
