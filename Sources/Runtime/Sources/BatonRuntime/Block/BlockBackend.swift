import CBaton
import Glibc

/// The host side of a disk: a raw file or block device (`-drive`,
/// `-blockdev`). Requests are made on the main thread and finish in the call,
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

    /// Opens a file or block device.
    /// - Throws: `Could not open 'FILE': …`, as QEMU says it, and an error when
    ///   another process holds a conflicting lock.
    public init(id: String, filename: String, readOnly: Bool, discardEnabled: Bool = true)
        throws(VMMError)
    {
        let flags = readOnly ? O_RDONLY : O_RDWR
        let opened = try FD.open(filename, flags)
        var status = stat()
        guard fstat(opened.raw, &status) == 0 else { throw .system("Could not stat '\(filename)'") }
        let kind = status.st_mode & S_IFMT
        guard kind == S_IFREG || kind == S_IFBLK else {
            throw VMMError("Could not open '\(filename)': not a regular file or block device")
        }
        let end = lseek(opened.raw, 0, SEEK_END)
        guard end >= 0 else { throw .system("Could not get the size of '\(filename)'") }
        self.id = id
        self.filename = filename
        self.readOnly = readOnly
        self.discardEnabled = discardEnabled
        self.size = UInt64(end) & ~511
        self.fd = opened.release()
    }

    deinit { close(fd) }

    /// Whether `[offset, offset + length)` lies within the disk.
    public func contains(offset: UInt64, length: UInt64) -> Bool {
        offset <= size && length <= size - offset
    }

    /// Reads into the vectors. The range must be within the disk.
    /// - Returns: false on an I/O error.
    public func read(_ vectors: UnsafeBufferPointer<iovec>, offset: UInt64) -> Bool {
        transfer(vectors, offset: offset) { preadv(fd, $0, $1, $2) }
    }

    /// Writes from the vectors. The range must be within the disk.
    /// - Returns: false on an I/O error.
    public func write(_ vectors: UnsafeBufferPointer<iovec>, offset: UInt64) -> Bool {
        transfer(vectors, offset: offset) { pwritev(fd, $0, $1, $2) }
    }

    private func transfer(
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
