import BatonRuntime
import Glibc
import VFIOPCI

/// A VFIO group: the devices that the IOMMU cannot tell apart. Owns its descriptor.
final class VFIOGroup {
    let number: Int
    let fd: Int32
    let container: VFIOContainer

    /// Opens a group, and puts it into one of the containers there are, or
    /// into a new one.
    init(number: Int, containers: [VFIOContainer], ranges: [VFIORange]) throws(VMMError) {
        let path = "/dev/vfio/\(number)"
        let opened = HostAccess.open(path, O_RDWR)
        guard opened >= 0 else {
            throw .system(
                "failed to open \(path)",
                hint: "The devices of the group must be bound to vfio-pci, and the file accessible.")
        }
        let owned = OwnedFD(adopting: opened)
        var status = VFIOArgument(size: 8)
        guard status.call(opened, VFIO.Request.groupGetStatus) == 0 else {
            throw .system("failed to get group \(number) status")
        }
        guard status.value(4, as: UInt32.self) & VFIO.groupIsViable != 0 else {
            throw VMMError(
                "group \(number) is not viable",
                hint: "Please ensure all devices within the iommu_group are bound to their vfio bus driver.")
        }
        let fitting = containers.first { $0.join(opened) }
        if let fitting {
            container = fitting
        } else {
            do throws(VMMError) {
                container = try VFIOContainer(group: opened, number: number, ranges: ranges)
            } catch {
                throw error.prefixed("failed to setup container for group \(number)")
            }
        }
        self.number = number
        fd = owned.release()
    }

    /// Takes over an open group.
    init(inherited fd: Int32, number: Int, container: VFIOContainer) {
        self.fd = fd
        self.number = number
        self.container = container
    }

    deinit { close(fd) }
}
