import BatonBase
import Glibc

/// Kernel, initrd, firmware and device tree, which the machine reads again at each reset of the guest. They are held open from
/// the VMM's start: a package or an administrator who replaces or removes one of them changes nothing for a guest that runs,
/// as in QEMU, which has them in memory. A new VMM opens them under its own names; what is gone there it takes from the
/// process before. Main thread only, with the VM lock held.
public enum StartFiles {
    private nonisolated(unsafe) static var fds: [String: Int32] = [:]
    private nonisolated(unsafe) static var serial: UInt64 = 0
    private static let prefix = "start-file-"

    /// An open regular file of that name, for reading at offsets of the reader's own (pread(2)). Borrowed.
    /// - Returns: nil for a path that is not held.
    public static func find(_ path: String) -> Int32? { fds[path] }

    /// Opens files, and takes part in updates. Called once, before the machine is made. What cannot be opened, and is not a
    /// regular file, is left to whoever reads it.
    public static func hold(_ paths: [String], handover: (any MachineHandover)?) {
        serial = PreservedFDs.newSerial()
        for path in paths where fds[path] == nil {
            if let file = try? FD.openFile(path, O_RDONLY) {
                fds[path] = file.release()
            } else if let handover, handover.isSuccessor || handover.isTrial, !path.isEmpty {
                guard let fd = handover.fds.find(prefix + path) else {
                    Report.warning("'\(path)' cannot be opened: the guest's next reset will fail")
                    continue
                }
                fds[path] = fd
            }
        }
        guard let handover else { return }
        handover.takePart(
            handOver: { [weak handover] () throws(VMMError) in
                for (path, fd) in fds { handover?.fds.replace(prefix + path, fd, serial: serial) }
            },
            failed: {},
            committed: { [weak handover] in if let handover { closeOthers(handover.fds) } })
    }

    /// The process before may have had others, or the same ones open too.
    private static func closeOthers(_ store: PreservedFDs) {
        let held = Set(fds.values)
        for entry in store.entries where entry.name.hasPrefix(prefix) {
            store.delete(entry.name, id: entry.id)
            if !held.contains(entry.fd) { close(entry.fd) }
        }
    }
}
