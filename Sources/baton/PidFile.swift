import BatonRuntime
import Glibc

/// The file of `-pidfile`: holds the PID, locked for as long as the VMM lives.
final class PidFile {
    private let path: String
    private let fd: Int32

    /// - Throws: an error when another process holds the file.
    init(_ path: String) throws(VMMError) {
        let opened = try FD.open(path, O_RDWR | O_CREAT, mode: 0o644)
        guard lockf(opened.raw, F_TLOCK, 0) == 0 else {
            throw .system("cannot create PID file \(path): Cannot lock pid file")
        }
        guard ftruncate(opened.raw, 0) == 0 else { throw .system("cannot create PID file \(path)") }
        try FD.writeAll(opened.raw, Array("\(getpid())\n".utf8), to: path)
        fd = opened.release()
        self.path = path
    }

    deinit { close(fd) }

    /// Removes the file at the end of the VMM.
    func remove() { unlink(path) }
}
