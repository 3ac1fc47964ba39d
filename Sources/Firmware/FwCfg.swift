import BatonRuntime

/// QEMU's firmware configuration device: items that firmware, and a guest's kernel, read by a selector
/// (docs/specs/fw_cfg.rst of QEMU). No item can be written. With the VM lock held.
package final class FwCfg: MMIODevice, Device {
    package let stateName = "fw_cfg"

    /// Where its registers are, and in which order of bytes ("Hardware Interface" there).
    package enum Layout {
        /// x86's I/O ports.
        case ports
        /// Memory, as on Arm and RISC-V.
        case memory

        /// Bytes, or ports.
        package var size: UInt64 { self == .ports ? 12 : 24 }
        /// 2 bytes, written: little endian at a port, big endian in memory.
        var selector: UInt64 { self == .ports ? 0 : 8 }
        /// Read: 1 byte at a port, where the selector's first one reads so, too; up to 8 bytes in memory.
        var data: UInt64 { self == .ports ? 1 : 0 }
        /// 8 bytes, big endian, of which the first four are written first. Reads give a signature.
        var dma: UInt64 { self == .ports ? 4 : 16 }
    }

    /// Files in the directory at most.
    static let fileLimit = 64
    private static let signature = Array("QEMU CFG".utf8)
    /// Of the selector: the item is of x86 alone. The bit below it says that the item is to be written, which has no
    /// meaning any more.
    private static let x86Bit: UInt16 = 0x8000
    private static let keyBits: UInt16 = 0x3fff

    let space: AddressSpace
    private let layout: Layout
    private var items: [UInt16: [UInt8]] = [:]
    private(set) var files: [FwCfgFile] = []
    /// Of SMBIOS tables; see `hidesSMBIOS`.
    private var smbios: [FwCfgFile] = []
    /// The guest comes from a VMM without such tables: the other files keep their selectors until the next reset.
    package var hidesSMBIOS = false {
        didSet { selected = nil }
    }
    /// Gives the kernel's items; see `setKernel`.
    private var kernelSource: (() throws(VMMError) -> KernelItems)?
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
    ///   - memorySize: bytes of guest RAM.
    ///   - cpuCount: 1 to 65535.
    package init(space: AddressSpace, layout: Layout, memorySize: UInt64, cpuCount: Int) {
        self.space = space
        self.layout = layout
        let (hasRegisters, hasDMA): (UInt32, UInt32) = (1, 2)
        items[FwCfgKey.signature] = Array("QEMU".utf8)
        items[FwCfgKey.interface] = littleEndianBytes(hasRegisters | hasDMA)
        items[FwCfgKey.uuid] = [UInt8](repeating: 0, count: 16)
        items[FwCfgKey.ramSize] = littleEndianBytes(memorySize)
        // No graphics: firmware writes to the serial port.
        items[FwCfgKey.noGraphic] = littleEndianBytes(1 as UInt16)
        items[FwCfgKey.bootMenu] = littleEndianBytes(0 as UInt16)
        items[FwCfgKey.cpuCount] = littleEndianBytes(UInt16(truncatingIfNeeded: cpuCount))
        items[FwCfgKey.maxCPUs] = littleEndianBytes(UInt16(truncatingIfNeeded: cpuCount))
    }

    // MARK: Items

    /// Sets an item that is no file.
    package func set(_ key: UInt16, _ bytes: [UInt8]) {
        items[key] = bytes
        selected = nil
    }

    /// Adds a file to the directory. Called while the machine is built, in any order: they are sorted by name.
    /// - Throws: when there is one of this name, or there are too many.
    package func add(_ file: FwCfgFile) throws(VMMError) {
        guard !files.contains(where: { $0.name == file.name }) else {
            throw VMMError("duplicate fw_cfg file name: \(file.name)")
        }
        // One place is left for the kernel's.
        guard files.count < FwCfg.fileLimit - 1 else {
            throw VMMError("there are more than \(FwCfg.fileLimit - 1) fw_cfg files")
        }
        files.append(file)
    }

    /// Adds the files of SMBIOS tables, as `add` does. Once.
    package func add(_ tables: SMBIOSTables) throws(VMMError) { smbios = try tables.files() }

    /// Sets what `-boot menu=` and `splash-time=` say.
    /// - Parameter wait: milliseconds in which somebody may ask for the menu; nil for what firmware likes.
    /// - Returns: the same as a text, empty for a machine without a word about it.
    package func setBootMenu(_ isOn: Bool, wait: UInt16?) throws(VMMError) -> String {
        set(FwCfgKey.bootMenu, littleEndianBytes(isOn ? 1 : 0 as UInt16))
        if let wait { try add(try FwCfgFile("etc/boot-menu-wait", littleEndianBytes(wait))) }
        return [isOn ? "menu=on" : nil, wait.map { "splash-time=\($0)" }].compactMap { $0 }.joined(separator: ",")
    }

    /// Adds what `-fw_cfg` gives.
    /// - Parameter arguments: one for each.
    /// - Returns: the names.
    package func add(arguments: [String]) throws(VMMError) -> [String] {
        var names: [String] = []
        for text in arguments {
            let option = try FwCfgOption(try KeyValueOptions(text, impliedKey: "name"))
            if let warning = option.warning { Report.warning(warning) }
            try add(try option.file())
            names.append(option.name)
        }
        return names
    }

    /// Says where the kernel for the firmware comes from: its files are read only when the guest asks for them, which
    /// it seldom does after it has started.
    /// - Parameter source: called once. What it throws is reported, and there are no items then.
    package func setKernel(_ source: @escaping () throws(VMMError) -> KernelItems) { kernelSource = source }

    /// The kernel as `BootPlan` has just read it, for a reset.
    package func setKernel(_ kernel: KernelItems) {
        for (key, bytes) in kernel.items { items[key] = bytes }
        kernelFiles = kernel.files
        hasKernel = true
        selected = nil
    }

    private func loadKernel() {
        guard !hasKernel, let kernelSource else { return }
        do throws(VMMError) {
            setKernel(try kernelSource())
        } catch {
            Report.error(error)
            setKernel(KernelItems())
        }
    }

    /// The files by name: the first has the selector `FwCfgKey.files`, the next the next one.
    private var directory: [FwCfgFile] {
        let added = kernelFiles.filter { file in !files.contains { $0.name == file.name } }
        return (files + (hidesSMBIOS ? [] : smbios) + added).sorted {
            Array($0.name.utf8).lexicographicallyPrecedes(Array($1.name.utf8))
        }
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

    package func accepts(offset: UInt64, width: Int) -> Bool {
        if offset == layout.selector { return width <= 2 }
        if offset == layout.data { return width == 1 || layout == .memory }
        return offset >= layout.dma
    }

    package func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        if offset >= layout.dma {
            let start = Int(offset - layout.dma)
            return FwCfg.signature[start..<min(start + width, 8)].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        guard offset == layout.data || layout == .ports && width == 1 else {
            Log.guestError("fw_cfg: read of \(width) bytes at \(Hex(offset))")
            return 0
        }
        // The next bytes, the first of them lowest in memory.
        let bytes = content
        var value: UInt64 = 0
        for place in 0..<width where self.offset < bytes.count {
            value |= UInt64(bytes[self.offset]) << UInt64(8 * place)
            self.offset += 1
        }
        return value
    }

    package func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        switch (offset, width) {
        case (layout.selector, 2):
            let key = UInt16(truncatingIfNeeded: value)
            select(layout == .ports ? key : key.byteSwapped)
        case (layout.dma, 4): dmaHigh = UInt32(truncatingIfNeeded: value).byteSwapped
        case (layout.dma + 4, 4):
            let low = UInt32(truncatingIfNeeded: value).byteSwapped
            let address = UInt64(dmaHigh) << 32 | UInt64(low)
            dmaHigh = 0
            transfer(at: address)
        case (layout.dma, 8):
            dmaHigh = 0
            transfer(at: value.byteSwapped)
        default: Log.guestError("fw_cfg: write of \(Hex(value)) (\(width) bytes) at \(Hex(offset))")
        }
    }

    // MARK: Device

    package func reset() {
        hidesSMBIOS = false
        select(0)
        dmaHigh = 0
    }

    /// Boards had no such device once: a guest that has not used it since its reset can be theirs.
    package var isAsAtPowerOn: Bool? { selector == 0 && offset == 0 && dmaHigh == 0 }

    package func save(to writer: inout StateWriter) {
        writer.put("selector", UInt64(selector))
        writer.put("offset", UInt64(offset))
        writer.put("dma-high", UInt64(dmaHigh))
    }

    package func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
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
