import Glibc

/// Sets of descriptors that clients have given with `add-fd`: `/dev/fdset/N` opens one of the set N that has the access
/// which is wanted, wherever the VMM takes a path. So a client that can open a file itself need not have the VM's sandbox
/// let it.
///
/// With the VM lock held. A set is its VMM's and does not go over an update; what was opened of it does, as any file.
public enum FDSets {
    /// Descriptors that all sets have at a time.
    static let limit = 1024
    private static let prefix = "/dev/fdset/"

    public struct Entry {
        /// The number by which a client knows it. Owned.
        public let fd: Int32
        /// What a client wants to remember of it.
        public let opaque: String?
    }

    /// By their numbers.
    public private(set) nonisolated(unsafe) static var all: [Int: [Entry]] = [:]

    /// Adds a descriptor to a set, or makes a set of it, which gets the lowest number that is free.
    /// - Returns: the set's number.
    /// - Throws: an error when there are too many; `fd` is closed then.
    public static func add(_ fd: consuming OwnedFD, to set: Int?, opaque: String?) throws(VMMError) -> Int {
        guard all.values.reduce(0, { $0 + $1.count }) < limit else {
            throw VMMError("there are \(limit) file descriptors in sets already", hint: "Use remove-fd.")
        }
        if let set, set < 0 { throw VMMError("Parameter 'fdset-id' expects a non-negative value") }
        let number = set ?? (0...limit).first { all[$0] == nil } ?? limit
        all[number, default: []].append(Entry(fd: fd.release(), opaque: opaque))
        return number
    }

    /// Closes a descriptor of a set, or all of it; one without any is no more.
    /// - Throws: QEMU's error when there is none of that number.
    public static func remove(_ set: Int, fd: Int32?) throws(VMMError) {
        let gone = all[set]?.filter { fd == nil || $0.fd == fd } ?? []
        guard !gone.isEmpty else {
            let what = fd.map { "fdset-id:\(set), fd:\($0)" } ?? "fdset-id:\(set)"
            throw VMMError("File descriptor named '\(what)' not found")
        }
        for entry in gone { close(entry.fd) }
        let left = all[set]?.filter { entry in !gone.contains { $0.fd == entry.fd } } ?? []
        all[set] = left.isEmpty ? nil : left
    }

    /// Whether a path is one of a set's.
    public static func isName(_ path: String) -> Bool { path.hasPrefix(prefix) }

    /// Opens what a path of a set's means.
    /// - Parameter flags: as of open(2).
    /// - Returns: a descriptor with FD_CLOEXEC, or -1 and errno.
    /// - Source: QEMU's `monitor_fdset_dup_fd_add`, `qemu_dup_flags`.
    static func open(_ path: String, _ flags: Int32) -> Int32 {
        guard let number = Int(path.dropFirst(prefix.count)), let set = all[number] else {
            errno = ENOENT
            return -1
        }
        guard let entry = set.first(where: { fcntl($0.fd, F_GETFL) & O_ACCMODE == flags & O_ACCMODE }) else {
            errno = EACCES
            return -1
        }
        let fd = fcntl(entry.fd, F_DUPFD_CLOEXEC, 3)
        if fd >= 0, flags & O_TRUNC != 0, ftruncate(fd, 0) != 0 {
            let code = errno
            close(fd)
            errno = code
            return -1
        }
        return fd
    }
}
