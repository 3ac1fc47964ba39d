import BatonRuntime

/// QEMU's firmware configuration device at I/O ports: items that firmware, and a guest's kernel, read by a selector
/// (docs/specs/fw_cfg.rst of QEMU). No item can be written. With the VM lock held.
///
/// Its offsets are ports from `MemoryMap.firmwareConfigurationPort` on.
public final class FwCfg: MMIODevice, Device {
    public let stateName = "fw_cfg"
    /// Ports.
    public static let size: UInt64 = 12

    /// Where its registers are.
    enum Register {
        /// 2 bytes, written.
        static let selector: UInt64 = 0
        /// 1 byte, read; the selector's first port reads so, too.
        static let data: UInt64 = 1
        /// 8 bytes, big endian, of which the first four are written first. Reads give a signature.
        static let dmaHigh: UInt64 = 4
        static let dmaLow: UInt64 = 8
    }

    /// Files in the directory at most.
    static let fileLimit = 64
    private static let signature = Array("QEMU CFG".utf8)
    /// Of the selector: the item is of x86 alone. The bit below it says that the item is to be written, which has no
    /// meaning any more.
    private static let x86Bit: UInt16 = 0x8000
    private static let keyBits: UInt16 = 0x3fff

    let space: AddressSpace
    private var items: [UInt16: [UInt8]] = [:]
    private(set) var files: [FwCfgFile] = []
    /// Gives the kernel's items; see `setKernel`.
    private var kernelSource: (() -> KernelItems)?
    private var kernelFiles: [FwCfgFile] = []
    private var hasKernel = false

    /// The item that was selected last.
    private(set) var selector: UInt16 = 0
    /// The next byte of it that is read.
    var offset = 0
    private var dmaHigh: UInt32 = 0
    /// The selected item's bytes, once they were asked for.
    private var selected: [UInt8]?

    /// - Parameters:
    ///   - space: what transfers go to.
    ///   - cpuCount: 1 to 65535.
    public init(space: AddressSpace, memory: RAMLayout, cpuCount: Int) {
        self.space = space
        let (hasRegisters, hasDMA): (UInt32, UInt32) = (1, 2)
        items[FwCfgKey.signature] = Array("QEMU".utf8)
        items[FwCfgKey.interface] = littleEndianBytes(hasRegisters | hasDMA)
        items[FwCfgKey.uuid] = [UInt8](repeating: 0, count: 16)
        items[FwCfgKey.ramSize] = littleEndianBytes(memory.size)
        // No graphics: firmware writes to the serial port.
        items[FwCfgKey.noGraphic] = littleEndianBytes(1 as UInt16)
        items[FwCfgKey.bootMenu] = littleEndianBytes(0 as UInt16)
        items[FwCfgKey.cpuCount] = littleEndianBytes(UInt16(truncatingIfNeeded: cpuCount))
        items[FwCfgKey.maxCPUs] = littleEndianBytes(UInt16(truncatingIfNeeded: cpuCount))
        items[FwCfgKey.timerOverride] = littleEndianBytes(1 as UInt32)
    }

    // MARK: Items

    /// Sets an item that is no file.
    public func set(_ key: UInt16, _ bytes: [UInt8]) {
        items[key] = bytes
        selected = nil
    }

    /// Adds a file to the directory. Called while the machine is built, in any order: they are sorted by name.
    /// - Throws: when there is one of this name, or there are too many.
    public func add(_ file: FwCfgFile) throws(VMMError) {
        guard !files.contains(where: { $0.name == file.name }) else {
            throw VMMError("duplicate fw_cfg file name: \(file.name)")
        }
        // One place is left for the kernel's.
        guard files.count < FwCfg.fileLimit - 1 else {
            throw VMMError("there are more than \(FwCfg.fileLimit - 1) fw_cfg files")
        }
        files.append(file)
    }

    /// Says where the kernel for the firmware comes from: its files are read only when the guest asks for them, which
    /// it seldom does after it has started.
    /// - Parameter source: called once. It reports what goes wrong, and gives no items then.
    public func setKernel(_ source: @escaping () -> KernelItems) { kernelSource = source }

    /// The kernel as `BootPlan` has just read it, for a reset.
    public func setKernel(_ kernel: KernelItems) {
        for (key, bytes) in kernel.items { items[key] = bytes }
        kernelFiles = kernel.files
        hasKernel = true
        selected = nil
    }

    private func loadKernel() {
        if !hasKernel, let kernelSource { setKernel(kernelSource()) }
    }

    /// The files by name: the first has the selector `FwCfgKey.files`, the next the next one.
    private var directory: [FwCfgFile] {
        let added = kernelFiles.filter { file in !files.contains { $0.name == file.name } }
        return (files + added).sorted { Array($0.name.utf8).lexicographicallyPrecedes(Array($1.name.utf8)) }
    }

    private func directoryBytes() -> [UInt8] {
        var bytes = littleEndianBytes(UInt32(directory.count).byteSwapped)
        for (index, file) in directory.enumerated() {
            // Size, selector, reserved, name; numbers are big endian.
            bytes += littleEndianBytes(UInt32(truncatingIfNeeded: file.bytes.count).byteSwapped)
            bytes += littleEndianBytes((FwCfgKey.files + UInt16(index)).byteSwapped) + [0, 0]
            bytes += Array(file.name.utf8)
            bytes += [UInt8](repeating: 0, count: FwCfgFile.nameLimit + 1 - file.name.utf8.count)
        }
        return bytes
    }

    /// The selected item's bytes; none when there is no such item.
    var content: [UInt8] {
        if let selected { return selected }
        let key = selector & (FwCfg.x86Bit | FwCfg.keyBits)
        if key >= FwCfgKey.kernelAddress, key < FwCfg.x86Bit { loadKernel() }
        let bytes: [UInt8]
        switch key {
        case FwCfgKey.directory: bytes = directoryBytes()
        case FwCfgKey.files..<FwCfg.x86Bit:
            let (index, files) = (Int(key - FwCfgKey.files), directory)
            bytes = index < files.count ? files[index].bytes : []
        default: bytes = items[key] ?? []
        }
        selected = bytes
        return bytes
    }

    func select(_ key: UInt16) {
        selector = key
        offset = 0
        selected = nil
    }

    // MARK: Registers

    public func accepts(offset: UInt64, width: Int) -> Bool {
        switch offset {
        case Register.selector: width <= 2
        case Register.data: width == 1
        default: offset >= Register.dmaHigh
        }
    }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        switch (offset, width) {
        case (Register.selector, 1), (Register.data, 1):
            let bytes = content
            guard self.offset < bytes.count else { return 0 }
            self.offset += 1
            return UInt64(bytes[self.offset - 1])
        case (Register.dmaHigh..., _):
            let start = Int(offset - Register.dmaHigh)
            return FwCfg.signature[start..<min(start + width, 8)].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        default:
            Log.guestError("fw_cfg: read of \(width) bytes at \(Hex(offset))")
            return 0
        }
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        switch (offset, width) {
        case (Register.selector, 2): select(UInt16(truncatingIfNeeded: value))
        case (Register.dmaHigh, 4): dmaHigh = UInt32(truncatingIfNeeded: value).byteSwapped
        case (Register.dmaLow, 4):
            let low = UInt32(truncatingIfNeeded: value).byteSwapped
            let address = UInt64(dmaHigh) << 32 | UInt64(low)
            dmaHigh = 0
            transfer(at: address)
        case (Register.dmaHigh, 8):
            dmaHigh = 0
            transfer(at: value.byteSwapped)
        default: Log.guestError("fw_cfg: write of \(Hex(value)) (\(width) bytes) at \(Hex(offset))")
        }
    }

    // MARK: Device

    public func reset() {
        select(0)
        dmaHigh = 0
    }

    public func save(to writer: inout StateWriter) {
        writer.put("selector", UInt64(selector))
        writer.put("offset", UInt64(offset))
        writer.put("dma-high", UInt64(dmaHigh))
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let newSelector = UInt16(try reader.unsigned("selector", in: 0...0xffff))
        // It may lie beyond the end of the item: the guest reads zeroes.
        let newOffset = Int(try reader.unsigned("offset", in: 0...0xffff_ffff))
        let high = UInt32(try reader.unsigned("dma-high", in: 0...0xffff_ffff))
        try reader.finish()
        return { [self] in
            select(newSelector)
            offset = newOffset
            dmaHigh = high
        }
    }
}
