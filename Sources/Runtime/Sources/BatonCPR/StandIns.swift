import BatonBase
import CBaton
import Glibc

/// What a trial gets in place of the guest's descriptors: others of the same
/// kind, with which nothing can be done to the guest or to anybody that it
/// speaks with. They are made for the trial, and closed after it.
struct StandIns {
    private var owned: [Int32] = []
    /// Where sockets are bound that others stand in for, by these others.
    private(set) var addresses: [Int32: [UInt8]] = [:]

    /// The same file, open for reading only: memory that cannot be mapped for
    /// writing.
    mutating func readOnly(_ fd: Int32, name: String) throws(VMMError) -> Int32 {
        guard let copy = reopened(fd) else {
            throw .system(
                "cannot open '\(name)' for reading only, as a trial gets it",
                hint: "This needs /proc, and the right to read the file. Without a trial: \"preflight\": false")
        }
        return copy
    }

    /// What stands in for a descriptor:
    ///
    /// | for | stands |
    /// |---|---|
    /// | a connected or other socket | one of the same type that is connected to nobody |
    /// | a listening socket | one that listens where nobody knows |
    /// | a regular file, memfd, block device or directory | the same, open for reading only |
    /// | an eventfd, or an end of a pipe | a new one |
    /// | anything else: an interface, a device, a terminal | /dev/null |
    mutating func standIn(_ fd: Int32) throws(VMMError) -> Int32 {
        var status = stat()
        guard fstat(fd, &status) == 0 else { throw .system("cannot make a stand-in for fd \(fd)") }
        switch status.st_mode & S_IFMT {
        case S_IFSOCK:
            guard let type = DescriptorKind.option(fd, SO_TYPE) else { return try null() }
            if DescriptorKind.option(fd, SO_ACCEPTCONN) != 0 { return try listener(for: fd, type: type) }
            return try connection(type: type)
        case S_IFREG, S_IFBLK, S_IFDIR:
            if let copy = reopened(fd) { return copy }
            // What this process may not read itself.
            return try null()
        case S_IFIFO: return try pipeEnd(isWriter: DescriptorKind.isWritable(fd))
        default:
            guard cbaton_link_begins(fd, "anon_inode:[eventfd]") != 0 else { return try null() }
            return try own(cbaton_eventfd())
        }
    }

    private mutating func own(_ fd: Int32) throws(VMMError) -> Int32 {
        guard fd >= 0 else { throw .system("cannot make a stand-in for a descriptor") }
        owned.append(fd)
        return fd
    }

    private mutating func reopened(_ fd: Int32) -> Int32? {
        let copy = retryingInterrupts { open("/proc/self/fd/\(fd)", O_RDONLY | O_NONBLOCK | O_CLOEXEC) }
        guard copy >= 0 else { return nil }
        owned.append(copy)
        return copy
    }

    private mutating func null() throws(VMMError) -> Int32 { try own(open("/dev/null", O_RDONLY | O_CLOEXEC)) }

    private mutating func connection(type: Int32) throws(VMMError) -> Int32 {
        var pair: [Int32] = [0, 0]
        let flags = Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        guard socketpair(AF_UNIX, type | flags, 0, &pair) == 0 else {
            throw .system("cannot make a stand-in for a connection")
        }
        owned += pair
        return pair[0]
    }

    /// Of the UNIX domain in any case, so that it cannot be reached from outside.
    private mutating func listener(for original: Int32, type: Int32) throws(VMMError) -> Int32 {
        let fd = try own(socket(AF_UNIX, type | Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0))
        // Without a path the kernel chooses a name.
        var address = sockaddr()
        address.sa_family = sa_family_t(AF_UNIX)
        guard bind(fd, &address, socklen_t(MemoryLayout<sa_family_t>.size)) == 0, listen(fd, 1) == 0 else {
            throw .system("cannot make a stand-in for a listening socket")
        }
        addresses[fd] = DescriptorKind.boundAddress(of: original) ?? []
        return fd
    }

    private mutating func pipeEnd(isWriter: Bool) throws(VMMError) -> Int32 {
        let pipe = try Pipe()
        owned += [pipe.reader, pipe.writer]
        return isWriter ? pipe.writer : pipe.reader
    }

    mutating func close() {
        for fd in owned { Glibc.close(fd) }
        owned = []
    }
}
