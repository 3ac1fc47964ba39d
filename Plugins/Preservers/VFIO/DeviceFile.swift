import BatonRuntime
import Glibc
import VFIOPCI

/// An open device. Owns its descriptor, and keeps what it was opened by.
final class VFIODeviceFile {
    /// How it came to its address space.
    enum Attachment {
        case group(VFIOGroup)
        case iommufd(VFIOIOMMUFD, space: VFIOIOAS, id: UInt32)
    }

    let fd: Int32
    let attachment: Attachment
    /// Resets the device's slot or bus. Set by the owner of all devices.
    var onBusReset: (() -> Int32)?

    /// Opens a device of a group.
    init(name: String, group: VFIOGroup) throws(VMMError) {
        var argument = VFIOArgument(bytes: Array(name.utf8) + [0])
        fd = argument.call(group.fd, VFIO.Request.groupGetDeviceFD)
        attachment = .group(group)
        guard fd >= 0 else {
            throw .system(
                "error getting device from group \(group.number)",
                hint: "Verify all devices in group \(group.number) are bound to vfio-pci and not already in use")
        }
        _ = fcntl(fd, F_SETFD, FD_CLOEXEC)
    }

    /// Attaches a character device that was just opened.
    /// - Parameter file: is the new object's, or closed.
    init(_ file: consuming OwnedFD, iommufd: VFIOIOMMUFD, ranges: [VFIORange]) throws(VMMError) {
        let (space, id) = try iommufd.attach(file.raw, ranges: ranges)
        attachment = .iommufd(iommufd, space: space, id: id)
        fd = file.release()
    }

    init(inherited fd: Int32, attachment: Attachment) {
        self.fd = fd
        self.attachment = attachment
    }

    deinit { if fd >= 0 { close(fd) } }

    var group: VFIOGroup? {
        if case .group(let group) = attachment { group } else { nil }
    }

    /// Who has guest RAM mapped for the device.
    var owner: any VFIOMemoryOwner {
        switch attachment {
        case .group(let group): group.container
        case .iommufd(let iommufd, _, _): iommufd
        }
    }
}

/// The kernel's device, in ioctl, pread and pwrite.
extension VFIODeviceFile: VFIOTransport {
    func ask(_ query: VFIOQuery, _ argument: inout VFIOArgument) -> Int32 {
        let request =
            switch query {
            case .deviceInfo: VFIO.Request.deviceGetInfo
            case .regionInfo: VFIO.Request.deviceGetRegionInfo
            case .irqInfo: VFIO.Request.deviceGetIRQInfo
            }
        return argument.call(fd, request) == 0 ? 0 : errno
    }

    func read(_ region: VFIORegion, at offset: UInt64, into bytes: UnsafeMutableRawBufferPointer) -> Int32 {
        let at = off_t(truncatingIfNeeded: region.offset &+ offset)
        return outcome(retryingInterrupts { pread(fd, bytes.baseAddress, bytes.count, at) }, bytes.count)
    }

    func write(_ region: VFIORegion, at offset: UInt64, from bytes: UnsafeRawBufferPointer) -> Int32 {
        let at = off_t(truncatingIfNeeded: region.offset &+ offset)
        return outcome(retryingInterrupts { pwrite(fd, bytes.baseAddress, bytes.count, at) }, bytes.count)
    }

    private func outcome(_ done: Int, _ count: Int) -> Int32 { done == count ? 0 : done < 0 ? errno : EIO }

    func setEvents(_ index: UInt32, _ events: [Int32]) -> Int32 {
        setInterrupts(index, VFIO.SetIRQs.eventfds | VFIO.SetIRQs.trigger, count: events.count, events)
    }

    func disableInterrupts(_ index: UInt32) -> Int32 {
        setInterrupts(index, VFIO.SetIRQs.noData | VFIO.SetIRQs.trigger, count: 0)
    }

    func unmaskINTx() -> Int32 { setInterrupts(0, VFIO.SetIRQs.noData | VFIO.SetIRQs.unmask, count: 1) }

    private func setInterrupts(_ index: UInt32, _ flags: UInt32, count: Int, _ events: [Int32] = []) -> Int32 {
        var argument = VFIOArgument(size: VFIO.SetIRQs.size + 4 * events.count, flags: flags)
        argument.set(8, index)
        argument.set(16, UInt32(count))
        for (vector, event) in events.enumerated() {
            argument.set(VFIO.SetIRQs.size + 4 * vector, UInt32(bitPattern: event))
        }
        return argument.call(fd, VFIO.Request.deviceSetIRQs) == 0 ? 0 : errno
    }

    func reset() -> Int32 { VFIO.call(fd, VFIO.Request.deviceReset) == 0 ? 0 : errno }

    func resetBus() -> Int32 { onBusReset?() ?? ENOTTY }

    func file(of region: VFIORegion) -> (fd: Int32, offset: UInt64)? { (fd, region.offset) }
    var filesMayShrink: Bool { false }
}
