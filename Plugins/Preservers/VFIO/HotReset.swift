import BatonRuntime
import Glibc
import VFIOPCI

/// A reset of all functions that share a slot or bus
/// (VFIO_DEVICE_PCI_HOT_RESET, linux/vfio.h): only where all of them are ours.
struct VFIOHotReset {
    /// A function that the reset touches.
    private struct Dependent {
        /// The number of its group, or with an iommufd its id there.
        let id: UInt32
        let name: String
    }

    private let asking: VFIOAssignment
    private let devices: [VFIOAssignment]
    private var dependents: [Dependent] = []
    private var flags: UInt32 = 0

    /// - Parameter devices: all there are, in the order of their resets.
    init(_ asking: VFIOAssignment, devices: [VFIOAssignment]) {
        self.asking = asking
        self.devices = devices
    }

    /// - Returns: an error number, 0 for success.
    mutating func run() -> Int32 {
        let result = getInfo()
        guard result == 0 else { return result }
        let groups: [VFIOGroup]
        let others: [VFIOAssignment]
        switch asking.file.attachment {
        case .group:
            guard let found = groupsToReset() else { return EPERM }
            groups = found
            others = devices.filter { other in
                other.file.group != nil && dependents.contains { $0.name == other.device.hostName }
            }
        case .iommufd(let iommufd, _, _):
            guard areOwned() else { return EPERM }
            groups = []
            others = devices.filter { other in
                guard case .iommufd(let its, _, let id) = other.file.attachment else { return false }
                return its === iommufd && dependents.contains { $0.id == id }
            }
        }
        return reset(others.filter { $0.file !== asking.file }, groups)
    }

    private static let most = 4096

    /// Learns which functions there are.
    private mutating func getInfo() -> Int32 {
        var room = 8
        while true {
            var argument = VFIOArgument(size: 12 + 8 * room)
            let result = argument.call(asking.file.fd, VFIO.Request.deviceGetHotResetInfo) == 0 ? 0 : errno
            let count = Int(argument.value(8, as: UInt32.self))
            if result == ENOSPC, count > room, count <= VFIOHotReset.most {
                room = count
                continue
            }
            guard result == 0 else { return result }
            guard count <= room else { return EINVAL }
            flags = argument.value(4)
            dependents = (0..<count).map { index in
                let at = 12 + 8 * index
                let devfn = Int(argument.value(at + 7, as: UInt8.self))
                return Dependent(
                    id: argument.value(at),
                    name: VFIOHostDevice.address(
                        domain: Int(argument.value(at + 4, as: UInt16.self)),
                        bus: Int(argument.value(at + 6, as: UInt8.self)), device: devfn >> 3, function: devfn & 7))
            }
            return 0
        }
    }

    private func groupsToReset() -> [VFIOGroup]? {
        var found: [VFIOGroup] = []
        guard flags & VFIO.HotResetFlag.deviceIDs == 0 else { return nil }
        for dependent in dependents {
            let group = devices.compactMap(\.file.group).first { $0.number == Int(dependent.id) }
            guard let group else {
                refuse("group \(dependent.id)")
                return nil
            }
            if !found.contains(where: { $0 === group }) { found.append(group) }
        }
        return found
    }

    private func areOwned() -> Bool {
        guard flags & VFIO.HotResetFlag.deviceIDs != 0 else { return false }
        if flags & VFIO.HotResetFlag.owned != 0 { return true }
        for dependent in dependents where dependent.id == VFIO.HotResetID.notOwned {
            refuse("device \(dependent.name)")
        }
        return false
    }

    private func refuse(_ what: String) {
        Report.warning(
            "vfio: Cannot reset device \(asking.device.hostName), depends on \(what) which is not owned.")
    }

    private func reset(_ others: [VFIOAssignment], _ groups: [VFIOGroup]) -> Int32 {
        for other in others { other.device.prepareForReset() }
        var argument = VFIOArgument(size: 12 + 4 * groups.count)
        argument.set(8, UInt32(truncatingIfNeeded: groups.count))
        for (index, group) in groups.enumerated() { argument.set(12 + 4 * index, UInt32(bitPattern: group.fd)) }
        let result = argument.call(asking.file.fd, VFIO.Request.deviceHotReset) == 0 ? 0 : errno
        let own = devices.firstIndex { $0.file === asking.file } ?? 0
        for (index, device) in devices.enumerated() where others.contains(where: { $0.file === device.file }) {
            device.device.finishReset(isFirst: result == 0 && index > own)
        }
        return result
    }
}
