import BatonBase
import CBaton
import Glibc

/// What a trial gets in place of the guest's descriptors: others of the same
/// kind, with which nothing can be done to the guest or to anybody that it
/// speaks with.
///
/// They take the numbers of the originals, and are for a thread that has a table
/// of descriptors of its own (`cbaton_run_apart`): nobody else's are replaced.
struct StandIns {
    /// Where sockets are bound that others stand in for, by these others.
    private(set) var addresses: [Int32: [UInt8]] = [:]

    /// Puts the same file, open for reading only, in a descriptor's place: memory
    /// that cannot be mapped for writing.
    mutating func makeReadOnly(_ fd: Int32, name: String) throws(VMMError) {
        guard let copy = reopened(fd) else {
            throw .system(
                "cannot open '\(name)' for reading only, as a trial gets it",
                hint: "This needs /proc, and the right to read the file. Without a trial: \"preflight\": false")
        }
        try put(copy, in: fd)
    }

    /// Puts what stands in for a descriptor in its place:
    ///
    /// | for | stands |
    /// |---|---|
    /// | a connected or other socket | one of the same type that is connected to nobody |
    /// | a listening socket | one that listens where nobody knows |
    /// | a regular file, memfd, block device or directory | the same, open for reading only |
    /// | an eventfd, or an end of a pipe | a new one |
    /// | anything else: an interface, a device, a terminal | /dev/null |
    mutating func replace(_ fd: Int32) throws(VMMError) {
        var status = stat()
        guard fstat(fd, &status) == 0 else { throw .system("cannot make a stand-in for fd \(fd)") }
        try put(try standIn(fd, kind: status.st_mode & S_IFMT), in: fd)
    }

    private mutating func standIn(_ fd: Int32, kind: mode_t) throws(VMMError) -> Int32 {
        switch kind {
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
            return try valid(cbaton_eventfd())
        }
    }

    private func valid(_ fd: Int32) throws(VMMError) -> Int32 {
        guard fd >= 0 else { throw .system("cannot make a stand-in for a descriptor") }
        return fd
    }

    /// The number is the trial's from then on, to be inherited.
    private func put(_ standIn: Int32, in fd: Int32) throws(VMMError) {
        _ = try valid(dup2(standIn, fd))
        close(standIn)
    }

    private func reopened(_ fd: Int32) -> Int32? {
        let copy = retryingInterrupts { open("/proc/thread-self/fd/\(fd)", O_RDONLY | O_NONBLOCK | O_CLOEXEC) }
        return copy < 0 ? nil : copy
    }

    private func null() throws(VMMError) -> Int32 { try valid(open("/dev/null", O_RDONLY | O_CLOEXEC)) }

    /// The other end stays open as long as the table, and nobody has it.
    private func connection(type: Int32) throws(VMMError) -> Int32 {
        var pair: [Int32] = [0, 0]
        let flags = Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        guard socketpair(AF_UNIX, type | flags, 0, &pair) == 0 else {
            throw .system("cannot make a stand-in for a connection")
        }
        return pair[0]
    }

    /// Of the UNIX domain in any case, so that it cannot be reached from outside.
    private mutating func listener(for original: Int32, type: Int32) throws(VMMError) -> Int32 {
        let fd = try valid(socket(AF_UNIX, type | Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0))
        // Without a path the kernel chooses a name.
        var address = sockaddr()
        address.sa_family = sa_family_t(AF_UNIX)
        guard bind(fd, &address, socklen_t(MemoryLayout<sa_family_t>.size)) == 0, listen(fd, 1) == 0 else {
            throw .system("cannot make a stand-in for a listening socket")
        }
        addresses[original] = DescriptorKind.boundAddress(of: original) ?? []
        return fd
    }

    private func pipeEnd(isWriter: Bool) throws(VMMError) -> Int32 {
        let pipe = try Pipe()
        return isWriter ? pipe.writer : pipe.reader
    }
}
