import BatonRuntime
import CBaton
import Glibc

/// The parts of a device's BARs that are mapped, and where the guest reaches
/// them without the VMM. Owns the mappings.
final class VFIODeviceMemory {
    private struct Area {
        let bar: PCIBar
        let offset: UInt64
        let size: UInt64
        let host: UnsafeMutableRawPointer
        let readOnly: Bool
        /// Where it is in the address space now.
        var placedAt: UInt64?

        var wanted: UInt64? { bar.address.map { $0 &+ offset } }
    }

    private var areas: [Area] = []
    private let isGuarded: Bool
    /// Off while the VMM has to see the guest's accesses.
    var isDirect = true

    /// - Parameter filesMayShrink: whether another process can shorten what is mapped.
    init(filesMayShrink: Bool) { isGuarded = filesMayShrink }

    /// Maps a part of a region, which begins at `start` of `file`.
    /// - Returns: false, with errno, when the kernel does not let it.
    func map(
        _ file: Int32, from start: UInt64, _ region: VFIORegion, bar: PCIBar, offset: UInt64, size: UInt64
    ) -> Bool {
        let access =
            (region.allows(VFIO.RegionFlag.read) ? PROT_READ : 0)
            | (region.allows(VFIO.RegionFlag.write) ? PROT_WRITE : 0)
        // The guest's loads would end the VMM.
        guard access & PROT_READ != 0, let length = Int(exactly: size) else { return true }
        let at = off_t(truncatingIfNeeded: start &+ offset)
        guard let host = mmap(nil, length, access, MAP_SHARED, file, at), host != MAP_FAILED else { return false }
        guard !isGuarded || cbaton_guard_add(host, length, CBATON_GUARD_DEVICE) == 0 else {
            munmap(host, length)
            return false
        }
        areas.append(
            Area(bar: bar, offset: offset, size: size, host: host, readOnly: access & PROT_WRITE == 0, placedAt: nil))
        return true
    }

    /// Takes what has moved, or everything, out of the address space.
    func takeAway(from space: AddressSpace, movedOnly: Bool) {
        for index in areas.indices {
            guard let start = areas[index].placedAt, !movedOnly || !isDirect || start != areas[index].wanted
            else { continue }
            space.unmapMemory(at: start)
            areas[index].placedAt = nil
        }
    }

    func place(in space: AddressSpace) {
        guard isDirect else { return }
        for index in areas.indices where areas[index].placedAt == nil {
            guard let start = areas[index].wanted else { continue }
            space.mapMemory(areas[index].host, at: start, size: areas[index].size, readOnly: areas[index].readOnly)
            areas[index].placedAt = start
        }
    }

    deinit {
        for area in areas {
            if isGuarded { cbaton_guard_remove(area.host) }
            munmap(area.host, Int(area.size))
        }
    }
}
