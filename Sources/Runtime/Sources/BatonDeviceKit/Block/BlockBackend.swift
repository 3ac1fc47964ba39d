import BatonBase
import BatonMachine
import CBaton
import Glibc

/// The host side of a disk: a raw file or block device (`-drive`,
/// `-blockdev`). Requests are made with the VM lock held and finish in the call,
/// so there is nothing in flight while the VM is paused.
public final class BlockBackend {
    /// The `id=` of `-drive` or `node-name=` of `-blockdev`.
    public let id: String
    public let filename: String
    public let readOnly: Bool
    /// Whether discards reach the file (`discard=unmap`).
    public let discardEnabled: Bool
    /// Size in bytes; a multiple of 512.
    public let size: UInt64
    private let fd: Int32
    /// The device that uses the back end, for `query-block`; nil when free.
    public var user: String?
    /// What the device that uses it has had done.
    public var statistics = BlockStatistics()
    /// Whether the guest must not make the image look like one of another format: it was taken for raw unasked.
    private let restrictsFormat: Bool
    private let isLocked: Bool
    /// What the user's locks are to be, once this process has the guest.
    private var use: (taken: ImageLock.Permissions, shared: ImageLock.Permissions)?
    private unowned let handover: (any MachineHandover)?
    private let isInherited: Bool

    /// Opens a file or block device, or takes over the open one of the process before.
    /// - Parameters:
    ///   - formatIsKnown: whether the command line says that the image is raw. Else it is probed, and refused if it
    ///     is known to be something else.
    ///   - isLocked: whether its use is locked as QEMU does it.
    ///   - handover: that of the VM; nil in one that is not updated.
    /// - Throws: `Could not open 'FILE': …`, as QEMU says it.
    public init(
        id: String, filename: String, readOnly: Bool, discardEnabled: Bool = true, formatIsKnown: Bool = true,
        isLocked: Bool = true, handover: (any MachineHandover)? = nil
    ) throws(VMMError) {
        let isTrial = handover?.isTrial == true
        let opened: OwnedFD
        let before = try InheritedDisk.claim(id: id, filename: filename, readOnly: readOnly, handover: handover)
        if let before {
            opened = OwnedFD(adopting: before)
        } else {
            // A trial must not be able to change what another VMM's guest works with.
            if isTrial, !readOnly, access(filename, W_OK) != 0 { throw .system("Could not open '\(filename)'") }
            opened = try FD.openFile(
                filename, readOnly || isTrial ? O_RDONLY : O_RDWR, kinds: [.regular, .blockDevice])
        }
        let end = lseek(opened.raw, 0, SEEK_END)
        guard end >= 0 else { throw .system("Could not get the size of '\(filename)'") }
        if !formatIsKnown {
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
        self.discardEnabled = discardEnabled
        self.size = UInt64(end) & ~511
        self.restrictsFormat = !formatIsKnown && !readOnly && end >= 512
        self.isLocked = isLocked
        self.handover = handover
        self.isInherited = before != nil
        self.fd = opened.release()
    }

    deinit { close(fd) }

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
        guard isLocked, let use else { return }
        // A trial only looks: the locks are for who has the guest.
        if handover?.isTrial == true {
            return try ImageLock.check(fd, filename, taking: use.taken, sharing: use.shared)
        }
        try ImageLock.acquire(fd, filename, taking: use.taken, sharing: use.shared)
    }

    // MARK: Update

    /// Saves the open file for the next process.
    func handOver() {
        guard let handover else { return }
        handover.fds.replace(InheritedDisk.name(id), fd)
    }

    func execFailed() { handover?.fds.delete(InheritedDisk.name(id)) }

    /// The guest is this process' own: so are its locks, which a new command line may have changed.
    func committed() {
        guard isInherited else { return }
        guard isLocked, let use else { return ImageLock.release(fd) }
        do throws(VMMError) {
            try ImageLock.change(fd, filename, taking: use.taken, sharing: use.shared)
        } catch {
            Report.warning("drive '\(id)': \(error.description)")
        }
    }

    // MARK: Requests

    /// Whether `[offset, offset + length)` lies within the disk.
    public func contains(offset: UInt64, length: UInt64) -> Bool {
        offset <= size && length <= size - offset
    }

    /// Reads into the vectors. The range must be within the disk.
    /// - Returns: false on an I/O error.
    public func read(_ vectors: UnsafeBufferPointer<iovec>, offset: UInt64) -> Bool {
        carryOut(vectors, offset: offset) { preadv(fd, $0, $1, $2) }
    }

    /// Writes from the vectors. The range must be within the disk.
    /// - Returns: false on an I/O error.
    public func write(_ vectors: UnsafeBufferPointer<iovec>, offset: UInt64) -> Bool {
        if restrictsFormat, offset < 512 || end(offset, vectors) > size - 512 {
            return writeRestricted(vectors, offset: offset)
        }
        return carryOut(vectors, offset: offset) { pwritev(fd, $0, $1, $2) }
    }

    private func end(_ offset: UInt64, _ vectors: UnsafeBufferPointer<iovec>) -> UInt64 {
        vectors.reduce(offset) { $0 + UInt64($1.iov_len) }
    }

    /// Writes to the first or last sector of an image whose format was guessed: what would make it look like another
    /// format is refused, as in QEMU. What is looked at is what is written: the guest cannot change it in between.
    private func writeRestricted(_ vectors: UnsafeBufferPointer<iovec>, offset: UInt64) -> Bool {
        let range = offset..<end(offset, vectors)
        var copies: [(range: Range<UInt64>, bytes: [UInt8])] = []
        for sector in size == 512 ? [0..<512] : [0..<512, (size - 512)..<size] where sector.overlaps(range) {
            let part = sector.clamped(to: range)
            let bytes = BlockBackend.gather(vectors, from: part.lowerBound - offset, count: part.count)
            guard let whole = fill(sector, part, bytes) else { return false }
            let format =
                (sector.lowerBound == 0 ? ImageFormat.find(head: whole) : nil)
                ?? (sector.upperBound == size ? ImageFormat.find(tail: whole) : nil)
            if let format {
                Log.guestError("drive '\(id)': a write that would make the image look like \(format) is refused")
                errno = EPERM
                return false
            }
            copies.append((part, bytes))
        }
        var position = offset
        for (part, var bytes) in copies {
            guard writePart(vectors, of: position..<part.lowerBound, offset) else { return false }
            let done = bytes.withUnsafeMutableBytes { buffer in
                withUnsafePointer(to: iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)) { vector in
                    carryOut(UnsafeBufferPointer(start: vector, count: 1), offset: part.lowerBound) {
                        pwritev(fd, $0, $1, $2)
                    }
                }
            }
            guard done else { return false }
            position = part.upperBound
        }
        return writePart(vectors, of: position..<range.upperBound, offset)
    }

    /// A sector as it would be with a part of it written.
    private func fill(_ sector: Range<UInt64>, _ part: Range<UInt64>, _ bytes: [UInt8]) -> [UInt8]? {
        if part == sector { return bytes }
        var whole = [UInt8](repeating: 0, count: 512)
        guard retryingInterrupts({ pread(fd, &whole, 512, off_t(sector.lowerBound)) }) == 512 else { return nil }
        let start = Int(part.lowerBound - sector.lowerBound)
        whole.replaceSubrange(start..<start + bytes.count, with: bytes)
        return whole
    }

    /// Writes the part of a request that belongs to a range of the disk; `offset` is where the request begins.
    private func writePart(_ vectors: UnsafeBufferPointer<iovec>, of range: Range<UInt64>, _ offset: UInt64) -> Bool {
        if range.isEmpty { return true }
        let length = range.upperBound - range.lowerBound
        let part = BlockBackend.slice(vectors, from: range.lowerBound - offset, count: length)
        return part.withUnsafeBufferPointer { slice in
            carryOut(slice, offset: range.lowerBound) { pwritev(fd, $0, $1, $2) }
        }
    }

    private static func slice(_ vectors: UnsafeBufferPointer<iovec>, from start: UInt64, count: UInt64) -> [iovec] {
        var result: [iovec] = []
        var skip = Int(start)
        var left = Int(count)
        for vector in vectors where left > 0 {
            if vector.iov_len <= skip {
                skip -= vector.iov_len
                continue
            }
            let length = min(vector.iov_len - skip, left)
            result.append(iovec(iov_base: vector.iov_base.map { $0 + skip }, iov_len: length))
            left -= length
            skip = 0
        }
        return result
    }

    private static func gather(_ vectors: UnsafeBufferPointer<iovec>, from start: UInt64, count: Int) -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(count)
        for vector in slice(vectors, from: start, count: UInt64(count)) {
            result.append(contentsOf: UnsafeRawBufferPointer(start: vector.iov_base, count: vector.iov_len))
        }
        return result
    }

    private func carryOut(
        _ vectors: UnsafeBufferPointer<iovec>, offset: UInt64,
        _ body: (UnsafePointer<iovec>, Int32, off_t) -> Int
    ) -> Bool {
        var first = 0
        var skip = 0
        var position = off_t(offset)
        while first < vectors.count {
            // Finish a vector that was cut short by itself.
            var partial = vectors[first]
            partial.iov_base = partial.iov_base.map { $0 + skip }
            partial.iov_len -= skip
            if partial.iov_len == 0 {
                first += 1
                skip = 0
                continue
            }
            let n: Int
            if skip > 0 {
                n = retryingInterrupts { body(&partial, 1, position) }
            } else {
                let count = Int32(min(vectors.count - first, 1024))
                n = retryingInterrupts { body(vectors.baseAddress! + first, count, position) }
            }
            guard n > 0 else { return false }
            position += off_t(n)
            skip += n
            while first < vectors.count, skip >= vectors[first].iov_len {
                skip -= vectors[first].iov_len
                first += 1
            }
        }
        return true
    }

    /// Makes written data durable.
    public func flush() -> Bool { retryingInterrupts { fdatasync(fd) } == 0 }

    /// Gives a range back to the host; its contents become zeroes.
    public func discard(offset: UInt64, length: UInt64) -> Bool {
        guard discardEnabled else { return true }
        return retryingInterrupts { cbaton_punch_hole(fd, off_t(offset), off_t(length)) } == 0
            || errno == EOPNOTSUPP
    }

    /// Makes a range read as zeroes.
    public func writeZeroes(offset: UInt64, length: UInt64, mayUnmap: Bool) -> Bool {
        if mayUnmap && discardEnabled, cbaton_punch_hole(fd, off_t(offset), off_t(length)) == 0 { return true }
        if cbaton_zero_range(fd, off_t(offset), off_t(length)) == 0 { return true }
        let block = UnsafeMutableRawPointer.allocate(byteCount: 1 << 16, alignment: 4096)
        defer { block.deallocate() }
        block.initializeMemory(as: UInt8.self, repeating: 0, count: 1 << 16)
        var position = offset
        while position < offset + length {
            let vector = iovec(iov_base: block, iov_len: Int(min(1 << 16, offset + length - position)))
            let written = withUnsafePointer(to: vector) {
                write(UnsafeBufferPointer(start: $0, count: 1), offset: position)
            }
            guard written else { return false }
            position += UInt64(vector.iov_len)
        }
        return true
    }
}
