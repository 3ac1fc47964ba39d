import BatonRuntime
import Glibc
import VFIOPCI

/// `-object iommufd`: an open `/dev/iommu`, in which devices share address
/// spaces. Objects stay as long as the process, and so does the descriptor.
final class VFIOIOMMUFD: VFIOMemoryOwner {
    let id: String
    /// -1 until the first device needs it.
    private(set) var fd: Int32
    /// Whether the kernel lets another process take over what is pinned; nil
    /// until it was asked.
    private(set) var canChangeProcess: Bool?
    private(set) var spaces: [VFIOIOAS] = []

    /// - Parameter fd: open already, or -1.
    init(id: String, fd: Int32) {
        self.id = id
        self.fd = fd
    }

    // MARK: Devices

    /// Makes a device that was just opened one of this iommufd's, and gives it
    /// guest RAM: in an address space that fits, or a new one.
    /// - Returns: the space, and the device's id in the iommufd.
    func attach(_ device: Int32, ranges: [VFIORange]) throws(VMMError) -> (space: VFIOIOAS, device: UInt32) {
        if fd < 0 { fd = try FD.open("/dev/iommu", O_RDWR).release() }
        if canChangeProcess == nil { canChangeProcess = changeProcess() }
        var bind = VFIOArgument(size: 16)
        bind.set(8, UInt32(bitPattern: fd))
        guard bind.call(device, VFIO.Request.deviceBindIOMMUFD) == 0 else {
            throw .system(
                "error bind device fd=\(device) to iommufd=\(fd)",
                hint: "Nobody else may use the device, nor its group by /dev/vfio/GROUP.")
        }
        let number: UInt32 = bind.value(12)
        if let known = spaces.first(where: { $0.attach(device) }) { return (known, number) }
        let space = try VFIOIOAS(iommufd: fd, device: device, ranges: ranges)
        spaces.append(space)
        return (space, number)
    }

    // MARK: Ownership

    /// Asks the kernel to account what is pinned to this process; nothing
    /// happens where it is that already.
    /// - Returns: false, with errno, when it cannot be.
    private func changeProcess() -> Bool {
        var argument = VFIOArgument(size: 8)
        return argument.call(fd, IOMMUFD.Request.ioasChangeProcess) == 0
    }

    private static let notAllFiles = "some memory regions do not support IOMMU_IOAS_CHANGE_PROCESS"

    var blocker: String? {
        if canChangeProcess == false { return "vfio iommufd backend does not support IOMMU_IOAS_CHANGE_PROCESS" }
        return spaces.allSatisfy(\.isOfFiles) ? nil : VFIOIOMMUFD.notAllFiles
    }

    /// Nothing is given up: pages of files stay pinned, whoever has them
    /// mapped. But it is the last moment to learn that they could not be taken.
    func giveUp() throws(VMMError) {
        guard changeProcess() else { throw .system(VFIOIOMMUFD.notAllFiles) }
    }

    func acquire() throws(VMMError) {
        guard changeProcess() else { throw .system("IOMMU_IOAS_CHANGE_PROCESS fd \(fd) failed") }
    }

    func settle() {}

    func takeBack() throws(VMMError) { try acquire() }

    // MARK: Over an update

    private static func part(_ id: String) -> String { "vfio-iommufd/\(id)" }

    func handOver(to cpr: CprController) throws(VMMError) {
        guard fd >= 0 else { return }
        try cpr.fds.resave(VFIOName.iommufd(id), fd)
        var state = StateWriter()
        state.put("change-process", canChangeProcess == true)
        state.put("spaces", spaces.flatMap { [UInt64($0.id), $0.isOfFiles ? 1 : 0] })
        cpr.handOver(VFIOIOMMUFD.part(id), state)
    }

    /// Takes over the object of the process before.
    /// - Returns: nil when that had none of the id, or never used it.
    static func inherited(_ id: String, cpr: CprController?) throws(VMMError) -> VFIOIOMMUFD? {
        guard let cpr, let state = try cpr.inherited?.part(part(id)) else { return nil }
        let canChangeProcess = try state.bool("change-process")
        let numbers = try state.array("spaces", count: 0...256)
        try state.finish()
        var spaces: [VFIOIOAS] = []
        for index in stride(from: 0, to: numbers.count - 1, by: 2) {
            guard let number = UInt32(exactly: numbers[index]) else {
                throw VMMError("part '\(state.section)' has an address space that cannot be")
            }
            spaces.append(VFIOIOAS(inherited: number, isOfFiles: numbers[index + 1] != 0))
        }
        guard let fd = cpr.fds.find(VFIOName.iommufd(id)) else {
            throw VMMError("the CPR state lacks the descriptor '\(VFIOName.iommufd(id))'")
        }
        cpr.fds.delete(VFIOName.iommufd(id))
        let object = VFIOIOMMUFD(id: id, fd: fd)
        object.canChangeProcess = spaces.isEmpty && !canChangeProcess ? nil : canChangeProcess
        object.spaces = spaces
        return object
    }
}

/// An address space of an iommufd, with guest RAM mapped.
final class VFIOIOAS {
    /// The kernel's.
    let id: UInt32
    /// Whether all of it is mapped by file and not by address, so that another
    /// process can have it.
    let isOfFiles: Bool

    /// Allocates one, attaches a device and then, as that may narrow down what
    /// addresses there are, maps guest RAM.
    /// - Throws: why not; there is no such space then.
    fileprivate init(iommufd: Int32, device: Int32, ranges: [VFIORange]) throws(VMMError) {
        var argument = VFIOArgument(size: 12)
        guard argument.call(iommufd, IOMMUFD.Request.ioasAlloc) == 0 else {
            throw .system("Failed to allocate ioas")
        }
        let number: UInt32 = argument.value(8)
        do throws(VMMError) {
            guard VFIOIOAS.attach(device, to: number) else {
                throw .system("[iommufd=\(iommufd)] error attach device (\(device)) to id=\(number)")
            }
            var isOfFiles = true
            do throws(VMMError) {
                for range in ranges {
                    let byFile = try VFIOIOAS.map(range, space: number, iommufd: iommufd)
                    isOfFiles = isOfFiles && byFile
                }
            } catch {
                VFIOIOAS.empty(number, iommufd: iommufd, device: device)
                throw error
            }
            id = number
            self.isOfFiles = isOfFiles
        } catch {
            var argument = VFIOArgument(size: 8)
            argument.set(4, number)
            if argument.call(iommufd, IOMMUFD.Request.destroy) != 0 {
                Report.warning(VMMError.system("Failed to free id: \(number)").message)
            }
            throw error
        }
    }

    fileprivate init(inherited id: UInt32, isOfFiles: Bool) {
        self.id = id
        self.isOfFiles = isOfFiles
    }

    /// - Returns: false, with errno, when the device cannot be of this space.
    fileprivate func attach(_ device: Int32) -> Bool { VFIOIOAS.attach(device, to: id) }

    private static func attach(_ device: Int32, to space: UInt32) -> Bool {
        var argument = VFIOArgument(size: 12)
        argument.set(8, space)
        return argument.call(device, VFIO.Request.deviceAttachPT) == 0
    }

    /// - Returns: whether it is mapped by file.
    private static func map(_ range: VFIORange, space: UInt32, iommufd: Int32) throws(VMMError) -> Bool {
        let flags =
            IOMMUFD.MapFlag.fixedIOVA | IOMMUFD.MapFlag.readable | (range.readOnly ? 0 : IOMMUFD.MapFlag.writeable)
        func request(_ number: UInt, file: Int32, start: UInt64) -> Bool {
            var argument = VFIOArgument(size: 40, flags: flags)
            argument.set(8, space)
            argument.set(12, UInt32(bitPattern: file))
            argument.set(16, start)
            argument.set(24, range.size)
            argument.set(32, range.start)
            return argument.call(iommufd, number) == 0
        }
        if range.file >= 0 {
            if request(IOMMUFD.Request.ioasMapFile, file: range.file, start: range.fileOffset) { return true }
            // A kernel before 6.13, or a file that is not of memory.
            guard [ENOTTY, EINVAL, EOPNOTSUPP].contains(errno) else { throw range.failure() }
        }
        guard request(IOMMUFD.Request.ioasMap, file: 0, start: UInt64(UInt(bitPattern: range.host))) else {
            throw range.failure()
        }
        return false
    }

    private static func empty(_ space: UInt32, iommufd: Int32, device: Int32) {
        var detach = VFIOArgument(size: 8)
        var unmap = VFIOArgument(size: 24)
        unmap.set(4, space)
        unmap.set(16, UInt64.max)
        if detach.call(device, VFIO.Request.deviceDetachPT) != 0
            || unmap.call(iommufd, IOMMUFD.Request.ioasUnmap) != 0 && errno != ENOENT
        {
            Report.warning(VMMError.system("Failed to empty ioas \(space)").message)
        }
    }
}

/// By this symbol the loader finds the module for `-object iommufd`, before any of its code runs.
@_cdecl("baton_module_provides_object_iommufd")
public func batonModuleProvidesIOMMUFD() {}

/// The type of `-object iommufd`.
final class VFIOIOMMUFDType: ObjectType {
    let name = "iommufd"
    let summary = "/dev/iommu, for devices with iommufd=ID; fd= gives it open"
    let properties = [DeviceProperty("fd", "str", "an open /dev/iommu, by its number or name")]
    private let preserver: VFIOPreserver

    init(_ preserver: VFIOPreserver) { self.preserver = preserver }

    func make(id: String, _ options: KeyValueOptions, vm: VirtualMachine) throws(VMMError) {
        let given = try options.string("fd")
        try options.finish()
        if let known = try VFIOIOMMUFD.inherited(id, cpr: vm.cpr) { return preserver.add(known) }
        var fd: Int32 = -1
        if let given {
            do throws(VMMError) {
                fd = try vm.namedFDs.take(given)
            } catch {
                throw error.prefixed("Could not parse remote object fd \(given)")
            }
        }
        preserver.add(VFIOIOMMUFD(id: id, fd: fd))
    }
}
