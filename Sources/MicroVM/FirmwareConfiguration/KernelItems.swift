import BatonRuntime
import Firmware

/// What SeaBIOS' and qboot's loaders for Linux and UEFI read, as QEMU's hw/i386/x86-common.c makes it.
extension KernelItems {
    private static let setupAddress: UInt32 = 0x1_0000
    private static let commandLineAddress: UInt32 = 0x2_0000
    private static let kernelAddress: UInt32 = 0x10_0000
    /// 11 is QEMU's number among loaders, whose ROM starts the kernel.
    private static let loaderType: UInt8 = 0xb0
    private static let canUseHeap: UInt8 = 0x80
    /// Bytes of an ELF kernel that count as its header.
    private static let elfHeaderSize = 8192

    init(_ image: BzImage, _ commandLine: String, _ initrd: [UInt8], _ memory: RAMLayout) throws(VMMError) {
        self.init()
        let line = try KernelCommandLine.bytes(commandLine, limit: image.commandLineLimit)
        var setup = Array(image.file.bytes[..<image.setupSize])
        setup.store(KernelItems.commandLineAddress, at: BzImage.Field.commandLine)
        setup.store(KernelItems.loaderType, at: BzImage.Field.loaderType)
        setup[BzImage.Field.loadFlags] |= KernelItems.canUseHeap
        let heap = KernelItems.commandLineAddress - KernelItems.setupAddress - 0x200
        setup.store(UInt16(truncatingIfNeeded: heap), at: BzImage.Field.heapEnd)
        if let address = try addInitrd(initrd, limit: image.initrdLimit, memory) {
            setup.store(address, at: BzImage.Field.initrdAddress)
            setup.store(UInt32(initrd.count), at: BzImage.Field.initrdSize)
        }
        add(FwCfgKey.commandLineAddress, KernelItems.commandLineAddress)
        addCommandLine(line)
        add(FwCfgKey.kernelAddress, KernelItems.kernelAddress)
        add(FwCfgKey.kernelSize, UInt32(image.file.count - image.setupSize))
        add(FwCfgKey.kernelData, Array(image.file.bytes[image.setupSize...]))
        add(FwCfgKey.setupAddress, KernelItems.setupAddress)
        add(FwCfgKey.setupSize, UInt32(setup.count))
        add(FwCfgKey.setupData, setup)
        // The file as it is, which UEFI checks the signature of.
        add(try FwCfgFile("etc/boot/kernel", image.file.bytes))
    }

    /// The kernel itself is in memory already.
    init(_ image: PVHImage, _ commandLine: String, _ initrd: [UInt8], _ memory: RAMLayout) throws(VMMError) {
        self.init()
        let line = try KernelCommandLine.bytes(commandLine, limit: 64 << 10)
        let start = image.elf.segments.map(\.range.lowerBound).min() ?? 0
        let end = image.elf.segments.map(\.range.upperBound).max() ?? 0
        guard end <= 1 << 32 else { throw VMMError("the kernel lies above 4 GiB, where firmware cannot start it") }
        add(FwCfgKey.kernelEntry, UInt32(image.entry))
        add(FwCfgKey.kernelAddress, UInt32(start))
        add(FwCfgKey.kernelSize, UInt32(truncatingIfNeeded: end - start))
        addCommandLine(line)
        var header = Array(image.elf.file.bytes.prefix(KernelItems.elfHeaderSize))
        header += [UInt8](repeating: 0, count: KernelItems.elfHeaderSize - header.count)
        add(FwCfgKey.setupSize, UInt32(header.count))
        add(FwCfgKey.setupData, header)
        _ = try addInitrd(initrd, limit: 1 << 32, memory)
    }

    /// At the end of RAM below 4 GiB, less what firmware keeps there for tables.
    private mutating func addInitrd(_ initrd: [UInt8], limit: UInt64, _ memory: RAMLayout) throws(VMMError) -> UInt32? {
        guard !initrd.isEmpty else { return nil }
        let firmwareData: UInt64 = 0x2_8000
        let end = min(limit, memory.low.upperBound - firmwareData)
        let address = UInt32(truncatingIfNeeded: try BootPlan.initrdAddress(initrd.count, below: end, avoiding: []))
        add(FwCfgKey.initrdAddress, address)
        add(FwCfgKey.initrdSize, UInt32(initrd.count))
        add(FwCfgKey.initrdData, initrd)
        return address
    }
}
