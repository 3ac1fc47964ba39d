import BatonRuntime
import CBaton
import Glibc

/// The file of `-pidfile`: holds the PID of the VMM that has the guest, which has it locked.
///
/// The lock is one of the open file description, as QEMU's is, and that goes along with
/// each update: there is no moment in which another VMM could have the file.
final class PidFile {
    private static let descriptorName = "pidfile"
    private let path: String
    private let fd: Int32

    /// Takes over the file of the process before, or locks it and writes the PID of this one.
    /// - Throws: an error when another process holds the file.
    init(_ path: String, _ cpr: CprController) throws(VMMError) {
        self.path = path
        let inherited = cpr.fds.find(PidFile.descriptorName)
        cpr.fds.delete(PidFile.descriptorName)
        if let inherited, FD.isSameFile(inherited, as: path) {
            fd = inherited
        } else {
            // The new command line has another.
            if let inherited { close(inherited) }
            do throws(VMMError) {
                fd = try FD.openFile(path, O_RDWR | O_CREAT, mode: 0o644).release()
            } catch {
                throw error.prefixed("cannot create PID file \(path)")
            }
            guard cbaton_lock_range(fd, F_WRLCK, 0, 0) == 0 else {
                throw .system("cannot create PID file \(path): Cannot lock pid file")
            }
            try write()
        }
        cpr.takePart(
            handOver: { [fd] () throws(VMMError) in try cpr.fds.resave(PidFile.descriptorName, fd) },
            failed: { [self] in
                cpr.fds.delete(PidFile.descriptorName)
                // The old VMM is a child of the process that executed the new one.
                writeOrWarn()
            }, committed: { [self] in writeOrWarn() })
    }

    private func writeOrWarn() {
        do throws(VMMError) { try write() } catch { Report.warning(error.message) }
    }

    private func write() throws(VMMError) {
        guard lseek(fd, 0, SEEK_SET) == 0, ftruncate(fd, 0) == 0 else {
            throw .system("cannot create PID file \(path)")
        }
        try FD.writeAll(fd, Array("\(getpid())\n".utf8), to: path)
    }

    deinit { close(fd) }

    /// Removes the file at the end of the VMM, unless another has taken its name.
    func remove() { if FD.isSameFile(fd, as: path) { _ = HostAccess.remove(path) } }
}
