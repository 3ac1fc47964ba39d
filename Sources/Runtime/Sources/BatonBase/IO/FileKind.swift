import CBaton
import Glibc

/// What a name in the file system stands for.
public enum FileKind: String, CustomStringConvertible {
    case regular = "a regular file"
    case directory = "a directory"
    case blockDevice = "a block device"
    case characterDevice = "a character device"
    case fifo = "a FIFO"
    case socket = "a socket"
    case symbolicLink = "a symbolic link"
    case other = "of an unknown kind"

    /// - Parameter mode: `st_mode`.
    public init(mode: mode_t) {
        switch mode & S_IFMT {
        case S_IFREG: self = .regular
        case S_IFDIR: self = .directory
        case S_IFBLK: self = .blockDevice
        case S_IFCHR: self = .characterDevice
        case S_IFIFO: self = .fifo
        case S_IFSOCK: self = .socket
        case S_IFLNK: self = .symbolicLink
        default: self = .other
        }
    }

    public var description: String { rawValue }
}

extension FD {
    /// Opens a file that must be of certain kinds, without waiting for anybody: by default a regular file.
    ///
    /// Every path of the command line or a client that is no device of its own is opened with this. To open a FIFO
    /// waits for its other end, and to open or read a device can do anything, so what is there is looked at first,
    /// and again once it is open.
    /// - Parameters:
    ///   - flags: O_RDONLY, O_WRONLY or O_RDWR, with what else open(2) takes.
    ///   - kinds: what may be there.
    ///   - mode: of a file that O_CREAT makes.
    /// - Returns: the file with FD_CLOEXEC. A FIFO or character device has O_NONBLOCK, so that nobody who does not
    ///   read there holds the VMM up; anything else has not.
    /// - Throws: the system's error or what is there instead, prefixed with QEMU's `Could not open 'PATH'`.
    public static func openFile(
        _ path: String, _ flags: Int32, kinds: [FileKind] = [.regular], mode: mode_t = 0o600
    ) throws(VMMError) -> OwnedFD {
        var status = stat()
        if stat(path, &status) == 0 { try check(status, path, kinds) }
        let raw = HostAccess.open(path, flags | O_NONBLOCK | O_NOCTTY, mode: mode)
        guard raw >= 0 else {
            let code = errno
            if code == ENXIO, stat(path, &status) == 0, FileKind(mode: status.st_mode) == .fifo {
                throw VMMError("Could not open '\(path)': it is a FIFO that nobody reads")
            }
            throw .system("Could not open '\(path)'", errno: code)
        }
        let fd = OwnedFD(adopting: raw)
        guard fstat(fd.raw, &status) == 0 else { throw .system("Could not open '\(path)'") }
        try check(status, path, kinds)
        let kind = FileKind(mode: status.st_mode)
        if kind != .fifo && kind != .characterDevice { try setNonBlocking(fd.raw, false) }
        return fd
    }

    /// Checks what can be known, without opening or making it, of a file that is to be opened for writing, or made: for a
    /// trial, which nobody else sees.
    /// - Parameters:
    ///   - kinds: as for `openFile`.
    ///   - mayBeAsked: whether the file may be one that the VM's sandbox has from the start: what this process may not open
    ///     itself another may open for it then, and says nothing.
    /// - Throws: as `openFile` would.
    public static func checkWritable(_ path: String, kinds: [FileKind], mayBeAsked: Bool = false) throws(VMMError) {
        if FDSets.isName(path) { return }
        var status = stat()
        let isThere = stat(path, &status) == 0
        if isThere { try check(status, path, kinds) }
        let code: Int32
        if isThere || errno != ENOENT {
            code = access(path, W_OK)
        } else {
            code = access(directory(of: path), W_OK | X_OK)
        }
        guard code != 0, !(mayBeAsked && errno == EACCES && cbaton_has_no_new_privileges() != 0) else { return }
        throw .system("Could not open '\(path)'")
    }

    private static func check(_ status: stat, _ path: String, _ kinds: [FileKind]) throws(VMMError) {
        let kind = FileKind(mode: status.st_mode)
        guard !kinds.contains(kind) else { return }
        if kind == .directory { throw .system("Could not open '\(path)'", errno: EISDIR) }
        let wanted = kinds.map(\.description).joined(separator: " or ")
        throw VMMError("Could not open '\(path)': it is \(kind), not \(wanted)")
    }

    /// Whether an open file is the one that a path names; for block devices, the same device.
    public static func isSameFile(_ fd: Int32, as path: String) -> Bool {
        var ours = stat()
        var named = stat()
        guard fstat(fd, &ours) == 0, stat(path, &named) == 0 else { return false }
        if FileKind(mode: ours.st_mode) == .blockDevice { return ours.st_rdev == named.st_rdev }
        return ours.st_dev == named.st_dev && ours.st_ino == named.st_ino
    }
}
