import BatonBase
import BatonMachine

/// A disk whose requests another process carries out, which has the image open: what `-drive` or `-blockdev` makes of a
/// format that the VMM does not know. A device is connected to it by a chardev.
public struct ServedDisk {
    /// The `id=` of `-drive` or `node-name=` of `-blockdev`.
    public let id: String
    /// The image, as on the command line.
    public let filename: String
    /// `qcow2`, `vmdk` and so on.
    public let format: String
    public let readOnly: Bool
    /// The socket at which the process serves the disk.
    public let chardev: String

    public init(id: String, filename: String, format: String, readOnly: Bool, chardev: String) {
        (self.id, self.filename, self.format) = (id, filename, format)
        (self.readOnly, self.chardev) = (readOnly, chardev)
    }
}

/// The disks of a machine that other processes serve.
private final class ServedDisks: MachineParts {
    var inOrder: [ServedDisk] = []
}

extension VirtualMachine {
    /// In the order of creation.
    public var servedDisks: [ServedDisk] { parts(ServedDisks.self).inOrder }

    public func servedDisk(_ id: String) -> ServedDisk? { servedDisks.first { $0.id == id } }

    /// - Throws: QEMU's error when the id is taken.
    public func add(_ disk: ServedDisk) throws(VMMError) {
        try requireFreeDisk(disk.id)
        parts(ServedDisks.self).inOrder.append(disk)
    }

    /// - Throws: QEMU's error when a disk has the id.
    public func requireFreeDisk(_ id: String) throws(VMMError) {
        guard blockBackend(id) == nil, servedDisk(id) == nil else {
            throw VMMError("Duplicate nodes with node-name='\(id)'")
        }
    }
}
