import BatonRuntime
import Glibc

/// The file of `-pidfile`: holds the PID, locked for as long as the VMM lives.
final class PidFile {
    private let path: String
    private let fd: Int32

    /// - Throws: an error when another process holds the file.
    init(_ path: String) throws(VMMError) {
        do throws(VMMError) {
            fd = try FD.openFile(path, O_RDWR | O_CREAT, mode: 0o644).release()
        } catch {
            throw error.prefixed("cannot create PID file \(path)")
        }
        self.path = path
        try write()
    }

    /// Locks the file and writes the PID of this process, which may have
    /// become another: when an update fails, the old VMM is a child of the process
    /// that executed the new one.
    func write() throws(VMMError) {
        guard lseek(fd, 0, SEEK_SET) == 0, lockf(fd, F_TLOCK, 0) == 0 else {
            throw .system("cannot create PID file \(path): Cannot lock pid file")
        }
        guard ftruncate(fd, 0) == 0 else { throw .system("cannot create PID file \(path)") }
        try FD.writeAll(fd, Array("\(getpid())\n".utf8), to: path)
    }

    deinit { close(fd) }

    /// Removes the file at the end of the VMM, unless another has taken its name.
    func remove() { if FD.isSameFile(fd, as: path) { unlink(path) } }
}
