import CBaton
import Glibc

/// A file that is written whole: it appears under its name when all of it is there, and what had the name before
/// stays until then.
///
/// Only a regular file is ever replaced, or a name that is free. A symbolic link is followed: the file behind it is
/// replaced, in its own directory, and the link stays. Anything else (a device, a FIFO, a socket, a directory) is
/// refused by name. Until `commit` the bytes are in a file beside it, which this process alone has made: its name
/// cannot be known beforehand, and nothing that is there already is opened. It goes with this value.
///
/// A file that a client has given (`FDSets`) has no name here: it is written where it is, and the client's to name.
public final class WholeFile {
    private let path: String
    /// What is replaced: `path`, or what that links to.
    private let target: String
    private let temporary: String
    private let file: OwnedFD
    private var isCommitted = false

    /// Where the bytes go. Borrowed.
    public var fd: Int32 { file.raw }

    /// Checks the destination and makes the file beside it.
    /// - Parameters:
    ///   - mode: of the new file, less the umask; that of a file that it replaces does not count.
    /// - Throws: what stands in the way; nothing has been changed.
    public init(_ path: String, mode: mode_t = 0o600) throws(VMMError) {
        guard !path.isEmpty else { throw VMMError("Could not write '': a file's name is needed") }
        self.path = path
        if FDSets.isName(path) {
            (target, temporary, isCommitted) = (path, path, true)
            file = try FD.openFile(path, O_WRONLY | O_TRUNC)
            return
        }
        target = try WholeFile.target(of: path)
        let directory = FD.directory(of: target)
        var made: (name: String, fd: Int32)?
        for _ in 0..<100 where made == nil {
            let name = "\(directory)/.baton-\(try WholeFile.randomName()).tmp"
            let flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC
            let raw = retryingInterrupts { open(name, flags, mode) }
            if raw >= 0 { made = (name, raw) } else if errno != EEXIST { break }
        }
        guard let made else {
            HostAccess.noteRefusal(target)
            throw .system("Could not create '\(path)'")
        }
        temporary = made.name
        file = OwnedFD(adopting: made.fd)
    }

    deinit { if !isCommitted { unlink(temporary) } }

    /// Checks that a path can be written whole, without writing to it.
    /// - Throws: why it cannot.
    public static func check(_ path: String) throws(VMMError) {
        if FDSets.isName(path) { _ = try FD.openFile(path, O_WRONLY) } else { _ = try WholeFile(path) }
    }

    /// Gives the file its name.
    /// - Parameter durable: whether it must outlive a crash of the host. Where a file system cannot keep the new name
    ///   that well, the file itself is still whole.
    /// - Throws: why not; what had the name before is there as it was.
    public func commit(durable: Bool = false) throws(VMMError) {
        if durable, retryingInterrupts({ fsync(fd) }) != 0 { throw .system("Could not write '\(path)'") }
        if isCommitted { return }
        // It may have taken a while, in which something else may have taken the name.
        guard try WholeFile.target(of: path) == target else {
            throw VMMError("Could not write '\(path)': it leads to another file than when it was begun")
        }
        guard rename(temporary, target) == 0 else { throw .system("Could not write '\(path)'") }
        isCommitted = true
        guard durable else { return }
        let directory = retryingInterrupts { open(FD.directory(of: target), O_RDONLY | O_DIRECTORY | O_CLOEXEC) }
        guard directory >= 0 else { return }
        _ = retryingInterrupts { fsync(directory) }
        close(directory)
    }

    /// The name to replace, which is free or a regular file's.
    private static func target(of path: String) throws(VMMError) -> String {
        func refused(_ kind: FileKind) -> VMMError {
            VMMError(
                "Could not write '\(path)': it is \(kind), not a regular file",
                hint: "Name a regular file, which is replaced, or one that is not there yet.")
        }
        var named = stat()
        guard lstat(path, &named) == 0 else {
            if errno == ENOENT { return path }
            throw .system("Could not write '\(path)'")
        }
        guard FileKind(mode: named.st_mode) == .symbolicLink else {
            guard FileKind(mode: named.st_mode) == .regular else { throw refused(FileKind(mode: named.st_mode)) }
            return path
        }
        // Followed by the kernel first: it may forbid that, of a link that somebody else has put into a directory
        // like /tmp (fs.protected_symlinks).
        guard stat(path, &named) == 0, let resolved = realpath(path, nil) else {
            throw .system("Could not write '\(path)', a symbolic link")
        }
        defer { free(resolved) }
        let target = String(cString: resolved)
        var found = stat()
        guard lstat(target, &found) == 0, found.st_dev == named.st_dev, found.st_ino == named.st_ino else {
            throw VMMError("Could not write '\(path)': where the symbolic link leads changes meanwhile")
        }
        guard FileKind(mode: found.st_mode) == .regular else { throw refused(FileKind(mode: found.st_mode)) }
        return target
    }

    private static func randomName() throws(VMMError) -> String {
        var number: UInt64 = 0
        guard cbaton_getrandom(&number, MemoryLayout.size(ofValue: number)) == MemoryLayout.size(ofValue: number)
        else { throw .system("Could not get random bytes") }
        return String(number, radix: 36)
    }
}
