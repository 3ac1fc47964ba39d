import BatonRuntime
import CBaton
import Glibc

/// The file of `-pidfile`: holds the PID of the VMM that has the guest, which has it locked.
///
/// The lock is one of the open file description, as QEMU's is, and that goes along with
/// each update: there is no moment in which another VMM could have the file. A new VMM whose
/// command line names another file makes that, and removes the one before, when it has the guest. If it cannot make that, it
/// keeps the one before.
final class PidFile {
    private static let descriptorName = "pidfile"
    /// nil when the command line names none.
    private var path: String?
    /// The file, locked; -1 as long as there is none.
    private var fd: Int32 = -1
    /// The file of the process before, under another name; -1 when there is none.
    private var former: Int32 = -1

    /// Takes over the file of the process before, or locks one. A process that is no new VMM of an update writes its PID.
    /// - Parameter path: of the command line; nil to see to the file of the process before only.
    /// - Throws: an error when another process holds the file, or it cannot be made.
    init(_ path: String?, _ cpr: CprController) throws(VMMError) {
        self.path = path
        let inherited = cpr.fds.find(PidFile.descriptorName)
        cpr.fds.delete(PidFile.descriptorName)
        if let inherited, let path, FD.isSameFile(inherited, as: path) {
            fd = inherited
        } else {
            // It stays open: the old VMM has it until then.
            former = inherited ?? -1
            if let path {
                if cpr.isSuccessor { try lockIfThere(path) } else { try make(path) }
            }
        }
        cpr.takePart(
            handOver: { [unowned self] () throws(VMMError) in
                if fd >= 0 { try cpr.fds.resave(PidFile.descriptorName, fd) }
            },
            failed: { [unowned self] in
                cpr.fds.delete(PidFile.descriptorName)
                // The old VMM is a child of the process that executed the new one.
                writeOrWarn()
            }, committed: { [unowned self] in committed() })
    }

    /// For a trial: whether that could be.
    static func check(_ path: String?, _ cpr: CprController) throws(VMMError) {
        guard let path else { return }
        if let inherited = cpr.fds.find(descriptorName), FD.isSameFile(inherited, as: path) { return }
        do throws(VMMError) { try FD.checkWritable(path, kinds: [.regular], mayBeAsked: true) } catch {
            throw error.prefixed("cannot create PID file \(path)")
        }
    }

    /// For a new VMM, which is to leave no trace before it has the guest: what can be known of the file before.
    private func lockIfThere(_ path: String) throws(VMMError) {
        if access(path, F_OK) != 0 {
            guard access(FD.directory(of: path), W_OK | X_OK) == 0 else {
                throw .system("cannot create PID file \(path)")
            }
            return
        }
        try lock(path, O_RDWR)
    }

    private func make(_ path: String) throws(VMMError) {
        let wasThere = access(path, F_OK) == 0
        try lock(path, O_RDWR | O_CREAT)
        do throws(VMMError) { try write(path) } catch {
            if !wasThere { _ = HostAccess.remove(path) }
            close(fd)
            fd = -1
            throw error
        }
    }

    private func lock(_ path: String, _ flags: Int32) throws(VMMError) {
        let file: OwnedFD
        do throws(VMMError) { file = try FD.openFile(path, flags, mode: 0o644) } catch {
            throw error.prefixed("cannot create PID file \(path)")
        }
        guard cbaton_lock_range(file.raw, F_WRLCK, 0, 0) == 0 else {
            throw .system("cannot create PID file \(path): Cannot lock pid file")
        }
        fd = file.release()
    }

    private func committed() {
        guard former >= 0 else { return writeOrWarn() }
        let name = FD.path(former).flatMap { FD.isSameFile(former, as: $0) ? $0 : nil }
        do throws(VMMError) {
            try writeOrMake()
        } catch {
            // Whoever has the VM's PID from the file before still finds it there.
            guard let name else { return Report.warning(error.message) }
            if fd >= 0 { close(fd) }
            (path, fd, former) = (name, former, -1)
            Report.warning("\(error.message); the VM's PID stays in \(name)")
            return writeOrWarn()
        }
        if let name { _ = HostAccess.remove(name) }
        close(former)
        former = -1
    }

    private func writeOrWarn() {
        do throws(VMMError) { try writeOrMake() } catch { Report.warning(error.message) }
    }

    private func writeOrMake() throws(VMMError) {
        guard let path else { return }
        if fd < 0 { try make(path) } else { try write(path) }
    }

    /// Over what is there, which needs no room on a disk that is full. Mostly it is there already: a new VMM has the PID of the
    /// old one, and the guest waits.
    private func write(_ path: String) throws(VMMError) {
        let text = Array("\(getpid())\n".utf8)
        guard !holds(text) else { return }
        guard lseek(fd, 0, SEEK_SET) == 0 else { throw .system("cannot create PID file \(path)") }
        try FD.writeAll(fd, text, to: path)
        guard ftruncate(fd, off_t(text.count)) == 0 else { throw .system("cannot create PID file \(path)") }
    }

    private func holds(_ text: [UInt8]) -> Bool {
        var found = [UInt8](repeating: 0, count: text.count + 1)
        return retryingInterrupts { pread(fd, &found, found.count, 0) } == text.count && found.dropLast() == text[...]
    }

    deinit { for file in [fd, former] where file >= 0 { close(file) } }

    /// Removes the file at the end of the VMM, unless another has taken its name.
    func remove() {
        if fd >= 0, let path, FD.isSameFile(fd, as: path) { _ = HostAccess.remove(path) }
    }
}
