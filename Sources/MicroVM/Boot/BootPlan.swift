import BatonRuntime
import Firmware
import InstructionSets

/// Where everything goes that a start needs: read, checked and placed, but not yet in guest memory.
///
/// Without firmware a kernel is started directly, and everything that it is told lies below 1 MiB. With firmware the
/// kernel goes to it as items of fw_cfg.
public struct BootPlan {
    /// What the boot CPU starts with.
    public private(set) var start = X86StartState(mode: .reset)
    /// The kernel for firmware; empty without firmware or kernel. They belong to the board's `FwCfg`.
    package private(set) var kernelItems = KernelItems()

    /// Bytes for an address, followed by zeroes.
    struct Placement {
        var address: UInt64
        var bytes: ArraySlice<UInt8>
        var zeroes: UInt64 = 0
        var what: String
        var range: Range<UInt64> { address..<address + UInt64(bytes.count) + zeroes }
    }

    private(set) var placements: [Placement] = []

    /// Where a direct start puts what the kernel is told.
    enum Place {
        static let descriptors: UInt64 = 0x500
        static let startInfo: UInt64 = 0x6000
        static let zeroPage: UInt64 = 0x7000
        static let pageTables: UInt64 = 0x9000
        static let commandLine: Range<UInt64> = 0x2_0000..<0xa_0000
        /// Where firmware would put the root of the tables, too: a kernel that gets no address looks there.
        static let tables: Range<UInt64> = 0xe_0000..<0x10_0000
        /// Where kernels look for a multiprocessor table.
        static let multiprocessor: Range<UInt64> = 0xf_0000..<0x10_0000
    }

    private static let page: UInt64 = 4096
    private static let oneMiB: UInt64 = 0x10_0000

    /// - Parameters:
    ///   - tables: the ACPI tables; nil with `acpi=off`.
    ///   - multiprocessor: what a kernel without ACPI is told instead, when it starts directly.
    ///   - reserved: address ranges without RAM that a kernel is to know as in use: PCI's configuration space.
    /// - Throws: what is wrong with the files, and what to do.
    public init(
        files: BootFiles, memory: RAMLayout, tables: ACPITables?, multiprocessor: MPTable? = nil,
        reserved: [Range<UInt64>] = []
    ) throws(VMMError) {
        guard memory.low.upperBound >= 2 * BootPlan.oneMiB else {
            throw VMMError(
                "\(memory.size) bytes of memory are too few to start anything", hint: "Give the guest more with -m.")
        }
        if files.kernel == nil {
            if files.initrd != nil { throw VMMError("-initrd only allowed with -kernel option") }
            if !files.commandLine.isEmpty { throw VMMError("-append only allowed with -kernel option") }
        }
        let initrd = try files.initrd.map { path throws(VMMError) in try BootPlan.readInitrd(path, memory) } ?? []
        if let path = files.firmware {
            let firmware = try FirmwareImage(path)
            placements = [
                Placement(address: firmware.range.lowerBound, bytes: firmware.bytes[...], what: "the firmware"),
                Placement(
                    address: firmware.lowRange.lowerBound, bytes: firmware.bytes.suffix(firmware.lowRange.count),
                    what: "the firmware"),
            ]
        }
        guard let path = files.kernel else {
            guard files.firmware != nil else {
                throw VMMError(
                    "there is nothing to start from", hint: "Name a kernel with -kernel, or firmware with -bios.")
            }
            return
        }
        try attempt("could not load kernel '\(path)'") { () throws(VMMError) in
            let file = try FileBytes.read(path, limit: memory.size)
            let format = try KernelFormat(file)
            let parts = Parts(
                files: files, memory: memory, initrd: initrd, tables: tables, multiprocessor: multiprocessor,
                reserved: reserved)
            switch (format, files.firmware) {
            case (.bzImage, nil): try self.start(bzImage: BzImage(file, memory: memory.low), parts)
            case (.elf, nil): try self.start(pvh: PVHImage(file, memory: memory), parts)
            case (.bzImage, _):
                let image = try BzImage(file, memory: memory.low)
                kernelItems = try KernelItems(image, files.commandLine, initrd, memory)
            case (.elf, _):
                let image = try PVHImage(file, memory: memory)
                place(image.elf)
                kernelItems = try KernelItems(image, files.commandLine, initrd, memory)
            }
        }
        try refuseOverlaps()
    }

    private struct Parts {
        var files: BootFiles
        var memory: RAMLayout
        var initrd: [UInt8]
        var tables: ACPITables?
        var multiprocessor: MPTable?
        var reserved: [Range<UInt64>]
    }

    // MARK: Direct start

    private mutating func start(bzImage image: BzImage, _ parts: Parts) throws(VMMError) {
        let kernel = image.file.bytes[image.setupSize...]
        placements.append(Placement(address: image.loadAddress, bytes: kernel, what: "the kernel"))
        let parameters = try parameters(
            parts, commandLineLimit: image.commandLineLimit, taken: image.occupied, initrdLimit: image.initrdLimit)
        put(image.zeroPage(parameters), at: Place.zeroPage, "the zero page")
        put(BootTables.identityMap(at: Place.pageTables), at: Place.pageTables, "the page tables")
        // "64-bit Boot Protocol" in Documentation/arch/x86/boot.rst.
        start = X86StartState(mode: .long, rip: image.entry, rsi: Place.zeroPage, cr3: Place.pageTables)
        putDescriptors(long: true)
    }

    private mutating func start(pvh image: PVHImage, _ parts: Parts) throws(VMMError) {
        place(image.elf)
        let parameters = try parameters(
            parts, commandLineLimit: Place.commandLine.count - 1, taken: image.elf.segments.map(\.range),
            initrdLimit: 1 << 32)
        put(PVHImage.startInfo(at: Place.startInfo, parameters), at: Place.startInfo, "the start info")
        // docs/misc/pvh.pandoc of Xen.
        start = X86StartState(mode: .protected, rip: image.entry, rbx: Place.startInfo)
        putDescriptors(long: false)
    }

    /// Places the command line, the initrd and the tables.
    private mutating func parameters(
        _ parts: Parts, commandLineLimit: Int, taken: [Range<UInt64>], initrdLimit: UInt64
    ) throws(VMMError) -> LinuxParameters {
        let limit = min(commandLineLimit, Place.commandLine.count - 1)
        let line = try KernelCommandLine.bytes(parts.files.commandLine, limit: limit)
        put(line, at: Place.commandLine.lowerBound, "the command line")
        let map = E820.forKernel(parts.memory, reserved: parts.reserved)
        guard map.count <= LinuxParameters.memoryMapLimit else {
            throw VMMError("the memory map has \(map.count) entries, more than \(LinuxParameters.memoryMapLimit)")
        }
        var parameters = LinuxParameters(commandLine: Place.commandLine.lowerBound, memoryMap: map)
        if let tables = parts.tables {
            let placed = tables.placed(at: Place.tables.lowerBound)
            guard placed.bytes.count <= Place.tables.count else {
                throw VMMError("the ACPI tables (\(placed.bytes.count) bytes) do not fit below 1 MiB")
            }
            put(placed.bytes, at: Place.tables.lowerBound, "the ACPI tables")
            parameters.rsdp = placed.rsdp
        } else if let table = parts.multiprocessor {
            let start = Place.multiprocessor.lowerBound
            put(table.bytes(at: start), at: start, "the multiprocessor table")
        }
        if !parts.initrd.isEmpty {
            let end = min(initrdLimit, parts.memory.low.upperBound)
            let address = try BootPlan.initrdAddress(parts.initrd.count, below: end, avoiding: taken)
            put(parts.initrd, at: address, "the initrd")
            parameters.initrd = address..<address + UInt64(parts.initrd.count)
        }
        return parameters
    }

    private mutating func putDescriptors(long: Bool) {
        let bytes = BootTables.descriptors(long: long)
        put(bytes, at: Place.descriptors, "the segment descriptors")
        (start.gdtBase, start.gdtLimit) = (Place.descriptors, UInt16(bytes.count - 1))
    }

    private mutating func place(_ elf: ELFImage) {
        for segment in elf.segments {
            placements.append(
                Placement(
                    address: segment.address, bytes: elf.file.bytes[segment.content],
                    zeroes: segment.memorySize - UInt64(segment.content.count), what: "the kernel"))
        }
    }

    private mutating func put(_ bytes: [UInt8], at address: UInt64, _ what: String) {
        placements.append(Placement(address: address, bytes: bytes[...], what: what))
    }

    // MARK: Places

    /// The highest free place.
    /// - Parameters:
    ///   - end: the first address that it must not reach.
    ///   - taken: where it must not be.
    static func initrdAddress(_ size: Int, below end: UInt64, avoiding taken: [Range<UInt64>]) throws(VMMError)
        -> UInt64
    {
        let size = UInt64(size)
        var top = end
        for range in taken.sorted(by: { $0.upperBound > $1.upperBound }) where range.upperBound > oneMiB {
            // Between this range and the one above it.
            if range.upperBound <= top, size <= top - range.upperBound {
                let address = (top - size).alignedDown(page)
                if address >= range.upperBound { return address }
            }
            top = min(top, range.lowerBound)
        }
        if top >= oneMiB, size <= top - oneMiB { return (top - size).alignedDown(page) }
        throw VMMError(
            "initrd is too large, cannot support.(max: \(end), need \(size)): there is no room for it beside the kernel",
            hint: "Give the guest more memory with -m.")
    }

    private static func readInitrd(_ path: String, _ memory: RAMLayout) throws(VMMError) -> [UInt8] {
        try attempt("error reading initrd \(path)") { () throws(VMMError) in
            let file = try FileBytes.read(path, limit: memory.low.upperBound)
            guard file.count > 0 else { throw VMMError("the file is empty") }
            return file.bytes
        }
    }

    private func refuseOverlaps() throws(VMMError) {
        let sorted = placements.sorted { $0.address < $1.address }
        for (one, next) in zip(sorted, sorted.dropFirst()) where next.address < one.range.upperBound {
            throw VMMError(
                "\(one.what) (\(Hex(one.address)) to \(Hex(one.range.upperBound))) and \(next.what) "
                    + "(\(Hex(next.address)) to \(Hex(next.range.upperBound))) overlap")
        }
    }

    // MARK: Guest memory

    /// Stores everything in guest memory. With firmware, memory must be mapped where `FirmwareImage` says.
    public func load(into space: AddressSpace) throws(VMMError) {
        for placement in placements {
            var failure: VMMError?
            placement.bytes.withUnsafeBytes {
                do throws(VMMError) {
                    try space.write($0, at: placement.address, what: placement.what)
                } catch {
                    failure = error
                }
            }
            if let failure { throw failure }
            guard placement.zeroes > 0 else { continue }
            let start = placement.range.upperBound - placement.zeroes
            guard let host = space.dma(start, length: placement.zeroes, writing: true) else {
                throw VMMError("\(placement.what) (\(Hex(start))) does not fit into guest memory")
            }
            host.initializeMemory(as: UInt8.self, repeating: 0, count: Int(placement.zeroes))
            space.didWrite(start, length: placement.zeroes)
        }
    }
}
