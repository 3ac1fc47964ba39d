import BatonBase
import BatonMachine
import Glibc

/// Keeps disks open over an update: the open file with its locks is what the next process gets, and not a name that
/// may stand for another file by then.
public enum BlockUpdate {
    /// Takes part in the updates of the VM.
    public static func register(vm: VirtualMachine) {
        vm.handover?.takePart(
            handOver: { [unowned vm] () throws(VMMError) in for backend in vm.blockBackends { backend.handOver() }
            },
            failed: { [unowned vm] in for backend in vm.blockBackends { backend.execFailed() } },
            committed: { [unowned vm] in for backend in vm.blockBackends { backend.committed() } })
    }

    /// Once every disk stands: closes what the new command line has no drive for.
    public static func closeUnclaimed(_ handover: any MachineHandover) {
        for entry in handover.fds.entries where entry.name.hasPrefix(InheritedDisk.prefix) {
            Report.warning("\(entry.name): the command line has no such drive any more; it is closed")
            handover.fds.delete(entry.name, id: entry.id)
            close(entry.fd)
        }
    }
}

/// What a back end finds of the process before.
enum InheritedDisk {
    static let prefix = "blockdev-"
    static func name(_ id: String) -> String { prefix + id }

    /// Takes over the open file of the process before: that of the same id, or, when the drive has another id now,
    /// the one that the path names.
    /// - Returns: nil when that process had no such disk.
    /// - Throws: an error when it does not fit the command line.
    static func claim(
        id: String, filename: String, readOnly: Bool, handover: (any MachineHandover)?
    ) throws(VMMError) -> Int32? {
        guard let handover, handover.isSuccessor else { return nil }
        let entries = handover.fds.entries.filter { $0.name.hasPrefix(prefix) }
        guard
            let entry = entries.first(where: { $0.name == name(id) })
                ?? entries.first(where: { FD.isSameFile($0.fd, as: filename) })
        else { return nil }
        var status = stat()
        guard fstat(entry.fd, &status) == 0, [.regular, .blockDevice].contains(FileKind(mode: status.st_mode)) else {
            throw VMMError("drive '\(id)': the inherited descriptor is not a file or block device")
        }
        // A trial has the file for reading only, whatever its command line says.
        guard handover.isTrial || DescriptorKind.isWritable(entry.fd) != readOnly else {
            throw VMMError(
                "drive '\(id)' is \(readOnly ? "writable" : "read-only") in the CPR state, but "
                    + "\(readOnly ? "read-only" : "writable") on the command line",
                hint: "Give the new VMM the drives of the old one.")
        }
        if !FD.isSameFile(entry.fd, as: filename) {
            Report.warning(
                "drive '\(id)': '\(filename)' is not the file that the guest has open; it keeps the one that it has")
        }
        handover.fds.delete(entry.name, id: entry.id)
        return entry.fd
    }
}
