import Glibc

/// The file of a unix socket that this process has made, to be removed with it.
public struct SocketFile {
    private let path: String
    private let device: dev_t
    private let inode: ino_t

    /// - Returns: nil when the address is not a unix socket's, or has no file.
    public init?(_ address: SocketAddress) {
        guard case .unix(let path) = address else { return nil }
        var status = stat()
        guard lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK else { return nil }
        (self.path, device, inode) = (path, status.st_dev, status.st_ino)
    }

    /// Whether clients can still find the socket by it: another may have taken
    /// its place, or nothing.
    public var isInPlace: Bool {
        var status = stat()
        return lstat(path, &status) == 0 && status.st_dev == device && status.st_ino == inode
    }

    /// Removes it, if no process has the socket any more: one that has taken over the guest may go on with it.
    /// Follows the closing of the socket here.
    public func removeIfUnused() {
        if isInPlace { _ = SocketAddress.unix(path: path).removeStaleFile() }
    }

    /// Removes it, unless another process has put its own there since.
    public func remove() {
        if isInPlace { _ = HostAccess.remove(path) }
    }
}
