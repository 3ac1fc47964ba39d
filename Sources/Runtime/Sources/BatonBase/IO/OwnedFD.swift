import CBaton
import Glibc

/// A file descriptor that is closed when its owner goes away.
///
/// Every fd of the VMM has FD_CLOEXEC set; only `PreservedFDs` clears it, on
/// just the fds that are to survive an exec.
public struct OwnedFD: ~Copyable {
    /// The descriptor, valid as long as this value lives. Borrowed by callers.
    public let raw: Int32

    /// Takes ownership of an open descriptor.
    public init(adopting raw: Int32) { self.raw = raw }

    /// Gives the descriptor up, unclosed, to the caller.
    public consuming func release() -> Int32 {
        let value = raw
        discard self
        return value
    }

    deinit { _ = Glibc.close(raw) }
}

/// Operations on borrowed descriptors.
public enum FD {
    /// Opens a file with FD_CLOEXEC.
    /// - Throws: the system's error, prefixed with QEMU's `Could not open 'PATH'`.
    public static func open(_ path: String, _ flags: Int32, mode: mode_t = 0o600) throws(VMMError) -> OwnedFD {
        let fd = HostAccess.open(path, flags, mode: mode)
        guard fd >= 0 else { throw .system("Could not open '\(path)'") }
        return OwnedFD(adopting: fd)
    }

    /// The directory that a path's last name is in.
    public static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    public static func setCloseOnExec(_ fd: Int32, _ on: Bool) throws(VMMError) {
        // A descriptor has no other flag, so there is none to keep.
        guard fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0) == 0 else {
            throw .system("Could not change FD_CLOEXEC of fd \(fd)")
        }
    }

    public static func setNonBlocking(_ fd: Int32, _ on: Bool) throws(VMMError) {
        let flags = fcntl(fd, F_GETFL)
        guard flags >= 0, fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK) == 0 else {
            throw .system("Could not change O_NONBLOCK of fd \(fd)")
        }
    }

    /// What the kernel calls the open file: a path, or such as `/memfd:ram (deleted)`.
    public static func path(_ fd: Int32) -> String? {
        linkTarget("/proc/thread-self/fd/\(fd)")
    }

    /// Where a symbolic link leads; nil for what is none.
    public static func linkTarget(_ path: String) -> String? { linkTarget(path, at: AT_FDCWD) }

    private static func linkTarget(_ path: UnsafePointer<CChar>, at directory: Int32) -> String? {
        withUnsafeTemporaryAllocation(byteCount: Int(PATH_MAX), alignment: 1) { buffer in
            guard let start = buffer.baseAddress else { return nil }
            let length = readlinkat(directory, path, start.assumingMemoryBound(to: CChar.self), buffer.count)
            return length > 0 ? String(decoding: buffer.prefix(length), as: UTF8.self) : nil
        }
    }

    /// Waits until a read of `fd` would not block: something has come, or its end, or an error.
    /// - Parameter deadline: as of CLOCK_MONOTONIC in nanoseconds.
    /// - Returns: false when nothing has come until then.
    public static func awaitInput(_ fd: Int32, until deadline: Int64) -> Bool {
        awaitInput(anyOf: [fd], until: deadline) != nil
    }

    /// Waits until a read of one of `fds` would not block. Negative descriptors are not looked at.
    /// - Parameter deadline: as of CLOCK_MONOTONIC in nanoseconds; nil for none.
    /// - Returns: the place of the first of them that is ready; nil when nothing has come until then.
    public static func awaitInput(anyOf fds: [Int32], until deadline: Int64?) -> Int? {
        var states = fds.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        while true {
            // Not rounded to milliseconds: a guest may stand still meanwhile.
            let left = deadline.map { max(0, $0 - cbaton_monotonic_ns()) } ?? -1
            let ready = cbaton_poll(&states, states.count, left)
            if ready > 0 { return states.firstIndex { $0.revents != 0 } }
            if left == 0 { return nil }
        }
    }

    /// Closes all descriptors of this process.
    /// - Parameter kept: those that stay open; negative ones are none.
    package static func closeAll(but kept: [Int32]) {
        var next: UInt32 = 0
        for fd in Set(kept).sorted() where fd >= 0 {
            if UInt32(fd) > next { cbaton_close_range(next, UInt32(fd) - 1) }
            next = UInt32(fd) + 1
        }
        cbaton_close_range(next, ~0)
    }

    /// All descriptors of this process; nil without /proc.
    package static func allOpen() -> [Int32]? {
        var result: [Int32] = []
        return forEachOpen { fd, _ in result.append(fd) } ? result : nil
    }

    /// Calls `body` for each open descriptor of this process, with what tells its path as `path(_:)` does.
    /// - Returns: false when /proc cannot be read.
    package static func forEachOpen(_ body: (_ fd: Int32, _ path: () -> String?) -> Void) -> Bool {
        guard let directory = opendir("/proc/self/fd") else { return false }
        defer { closedir(directory) }
        let place = dirfd(directory)
        while let entry = readdir(directory) {
            guard entry.pointee.d_name.0 != CChar(UInt8(ascii: ".")) else { continue }
            withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                guard let name = bytes.baseAddress, case let number = atoi(name), number != place else { return }
                body(number) { linkTarget(name.assumingMemoryBound(to: CChar.self), at: place) }
            }
        }
        return true
    }

    /// Whether `fd` is open in this process.
    public static func isOpen(_ fd: Int32) -> Bool { fcntl(fd, F_GETFD) >= 0 }

    /// Writes all of `bytes` to a blocking descriptor.
    public static func writeAll(_ fd: Int32, _ bytes: UnsafeRawBufferPointer, to name: String) throws(VMMError) {
        var done = 0
        while done < bytes.count {
            let n = retryingInterrupts { Glibc.write(fd, bytes.baseAddress.map { $0 + done }, bytes.count - done) }
            guard n > 0 else { throw .system("Could not write to \(name)") }
            done += n
        }
    }

    /// Writes all of `bytes` to a blocking descriptor.
    public static func writeAll(_ fd: Int32, _ bytes: [UInt8], to name: String) throws(VMMError) {
        let result: Result<Void, VMMError> = bytes.withUnsafeBytes { buffer in
            do throws(VMMError) { return .success(try writeAll(fd, buffer, to: name)) } catch { return .failure(error) }
        }
        try result.get()
    }

    /// Reads a whole file, up to `limit` bytes.
    /// - Throws: an error when the file is longer than `limit` or cannot be read.
    public static func readAll(_ fd: Int32, limit: Int, from name: String) throws(VMMError) -> [UInt8] {
        var result: [UInt8] = []
        var status = stat()
        if fstat(fd, &status) == 0, status.st_size > 0 {
            guard Int(status.st_size) <= limit else {
                throw VMMError("\(name) is too large (\(status.st_size) bytes, at most \(limit) are accepted)")
            }
            result.reserveCapacity(Int(status.st_size))
        }
        let chunk = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 16, alignment: 16)
        defer { chunk.deallocate() }
        while true {
            let n = retryingInterrupts { Glibc.read(fd, chunk.baseAddress, chunk.count) }
            guard n >= 0 else { throw .system("Could not read \(name)") }
            if n == 0 { return result }
            guard result.count + n <= limit else {
                throw VMMError("\(name) is too large (at most \(limit) bytes are accepted)")
            }
            result.append(contentsOf: UnsafeRawBufferPointer(rebasing: chunk[..<n]))
        }
    }
}
