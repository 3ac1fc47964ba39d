import BatonRuntime
import Glibc
import VFIOPCI

/// A VFIO container: an IOMMU context with guest RAM mapped at its
/// guest-physical addresses. Owns its descriptor.
final class VFIOContainer: VFIOMemoryOwner {
    let fd: Int32
    /// The number of the group that it was made for, which names it over an
    /// update, whatever other groups are in it.
    let number: Int
    let ranges: [VFIORange]
    private(set) var hasUpdateVaddr = false
    private(set) var hasUnmapAll = false
    /// Those of `ranges` whose addresses in this process the kernel lacks.
    private var lacking: [VFIORange] = []
    private var hasAddresses: Bool { lacking.isEmpty }
    /// It was taken over, and the addresses of this process are still to be set.
    private var isTakingOver = false

    /// Makes a container for a group, which becomes its first, and maps guest RAM.
    init(group: Int32, number: Int, ranges: [VFIORange]) throws(VMMError) {
        let path = "/dev/vfio/vfio"
        let opened = HostAccess.open(path, O_RDWR)
        guard opened >= 0 else {
            throw .system(
                "failed to open \(path)", hint: "The kernel module vfio must be loaded, and the file accessible.")
        }
        fd = opened
        self.number = number
        self.ranges = ranges
        let version = VFIO.call(fd, VFIO.Request.getAPIVersion)
        guard version == VFIO.apiVersion else {
            throw VMMError("supported vfio version: \(VFIO.apiVersion), reported version: \(version)")
        }
        let models = [VFIO.Extension.type1v2, VFIO.Extension.type1]
        guard let model = models.first(where: { VFIO.call(fd, VFIO.Request.checkExtension, $0) > 0 }) else {
            throw VMMError("No available IOMMU models", hint: "The kernel module vfio_iommu_type1 must be loaded.")
        }
        guard attach(group) else { throw .system("Failed to set group container") }
        guard VFIO.call(fd, VFIO.Request.setIOMMU, model) == 0 else {
            throw .system("Failed to set iommu for container")
        }
        askExtensions()
        for range in ranges { try map(range) }
    }

    /// Takes over the container of the process before, which has guest RAM
    /// mapped and its addresses given up. Nothing is asked of it here.
    init(inherited fd: Int32, number: Int, ranges: [VFIORange], hasUpdateVaddr: Bool, hasUnmapAll: Bool) {
        self.fd = fd
        self.number = number
        self.ranges = ranges
        self.hasUpdateVaddr = hasUpdateVaddr
        self.hasUnmapAll = hasUnmapAll
        lacking = ranges
        isTakingOver = true
    }

    deinit { close(fd) }

    /// - Returns: false, with errno, when the group cannot be of this container.
    private func attach(_ group: Int32) -> Bool {
        var argument = VFIOArgument(bytes: littleEndianBytes(fd))
        return argument.call(group, VFIO.Request.groupSetContainer) == 0
    }

    /// Takes in a further group.
    /// - Returns: false, with errno, when the group cannot be of this container.
    func join(_ group: Int32) -> Bool {
        guard attach(group) else { return false }
        askExtensions()
        return true
    }

    /// The kernel answers for what is in the container: VFIO_UPDATE_VADDR is there only once the IOMMU
    /// model is set, and is gone again with a group of a mediated device (vfio_iommu_type1.c,
    /// `vfio_iommu_type1_check_extension`).
    private func askExtensions() {
        hasUpdateVaddr = VFIO.call(fd, VFIO.Request.checkExtension, VFIO.Extension.updateVaddr) > 0
        hasUnmapAll = VFIO.call(fd, VFIO.Request.checkExtension, VFIO.Extension.unmapAll) > 0
    }

    /// Why it could not be handed to another process.
    var blocker: String? {
        if !hasUpdateVaddr { return "VFIO container does not support VFIO_UPDATE_VADDR" }
        if !hasUnmapAll { return "VFIO container does not support VFIO_UNMAP_ALL" }
        // With -only-cpr-capable this is asked before the guest is this process'.
        return hasAddresses || isTakingOver ? nil : "VFIO container lacks the addresses of guest memory"
    }

    // MARK: Mappings

    private func request(_ range: VFIORange, flags: UInt32) -> Int32 {
        var argument = VFIOArgument(size: 32, flags: flags)
        argument.set(8, UInt64(UInt(bitPattern: range.host)))
        argument.set(16, range.start)
        argument.set(24, range.size)
        return argument.call(fd, VFIO.Request.mapDMA)
    }

    private func map(_ range: VFIORange) throws(VMMError) {
        let flags = VFIO.MapFlag.read | (range.readOnly ? 0 : VFIO.MapFlag.write)
        guard request(range, flags: flags) == 0 else { throw range.failure() }
    }

    func giveUp() throws(VMMError) { try giveUpAddresses() }

    /// Guest RAM is mapped read-only yet, which the kernel does not take.
    func acquire() {}

    func settle() throws(VMMError) { if !hasAddresses { try setAddresses() } }

    func takeBack() throws(VMMError) {
        guard !hasAddresses else { return }
        // The new VMM may have set its own, which are void with it.
        try giveUpAddresses(unlessDone: true)
        try setAddresses()
    }

    /// The addresses of guest RAM in this process are void from here on; the
    /// device's DMA goes on.
    /// - Parameter unlessDone: another process may have done that, which the
    ///   kernel says with EINVAL.
    private func giveUpAddresses(unlessDone: Bool = false) throws(VMMError) {
        guard hasAddresses || unlessDone else { return }
        var argument = VFIOArgument(size: 24, flags: VFIO.UnmapFlag.vaddr | VFIO.UnmapFlag.all)
        guard argument.call(fd, VFIO.Request.unmapDMA) == 0 || (unlessDone && errno == EINVAL) else {
            throw .system("vfio_dma_unmap_vaddr_all")
        }
        lacking = ranges
    }

    /// Tells the kernel where guest RAM is in this process, which has to be
    /// able to write it.
    /// - Throws: why a range's was refused; the others are set all the same.
    private func setAddresses() throws(VMMError) {
        isTakingOver = false
        var failure: VMMError?
        lacking.removeAll { range in
            if request(range, flags: VFIO.MapFlag.vaddr) == 0 { return true }
            let what = "vfio_dma_map_vaddr of RAM block '\(range.name)' at \(Hex(range.start))"
            failure = failure ?? .system(what)
            return false
        }
        if let failure { throw failure }
    }
}
