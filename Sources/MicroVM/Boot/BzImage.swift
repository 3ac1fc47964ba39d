import BatonRuntime
import Firmware

/// Linux' own kernel file, which unpacks itself ("The Linux/x86 Boot Protocol", Documentation/arch/x86/boot.rst).
struct BzImage {
    let file: FileBytes
    /// Bytes of the real-mode part at the file's beginning.
    let setupSize: Int
    /// Where the rest of the file goes.
    let loadAddress: UInt64
    /// Memory that the kernel takes before it has looked at the memory map.
    let occupied: [Range<UInt64>]
    /// The first address that the initrd must not reach.
    let initrdLimit: UInt64
    /// Bytes of the longest command line, without the zero at its end.
    let commandLineLimit: Int

    /// The 64-bit entry.
    var entry: UInt64 { loadAddress + BzImage.entryOffset }

    private static let entryOffset: UInt64 = 0x200
    private static let oneMiB: UInt64 = 0x10_0000
    private static let what = "the kernel's header"

    /// The setup header's fields (offsets in the file and in the zero page).
    enum Field {
        static let setupSectors = 0x1f1
        static let header = 0x1f1
        static let systemSize = 0x1f4
        static let jumpLength = 0x201
        static let magic = 0x202
        static let version = 0x206
        static let loaderType = 0x210
        static let loadFlags = 0x211
        static let code32Start = 0x214
        static let initrdAddress = 0x218
        static let initrdSize = 0x21c
        static let heapEnd = 0x224
        static let commandLine = 0x228
        static let initrdMaximum = 0x22c
        static let alignment = 0x230
        static let isRelocatable = 0x234
        static let extendedLoadFlags = 0x236
        static let commandLineSize = 0x238
        static let setupData = 0x250
        static let preferredAddress = 0x258
        static let initSize = 0x260
    }

    /// Checks a file and places it.
    /// - Parameter memory: RAM from 0 on.
    init(_ file: FileBytes, memory: Range<UInt64>) throws(VMMError) {
        self.file = file
        func field<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type) throws(VMMError) -> T {
            try file.field(offset, type, of: BzImage.what)
        }
        let version = try field(Field.version, UInt16.self)
        guard version >= 0x20c else {
            throw VMMError(
                "the kernel's boot protocol is \(version >> 8).\(version & 0xff); at least 2.12 is needed",
                hint: "Use a kernel of Linux 3.8 or later.")
        }
        let extendedFlags = try field(Field.extendedLoadFlags, UInt16.self)
        guard extendedFlags & 1 != 0 else {
            throw VMMError("the kernel is for 32-bit x86: it has no 64-bit entry", hint: KernelFormat.hint)
        }
        guard try field(Field.loadFlags, UInt8.self) & 1 != 0 else {
            throw VMMError("the kernel wants to be loaded low (a zImage), which no 64-bit kernel does")
        }
        let sectors = Int(try field(Field.setupSectors, UInt8.self))
        setupSize = ((sectors == 0 ? 4 : sectors) + 1) * 512
        guard setupSize < file.count else { throw VMMError("invalid kernel header") }
        let payload = UInt64(file.count - setupSize)
        // What follows, such as a signature, does not count in the size of the header.
        let wanted = UInt64(try field(Field.systemSize, UInt32.self)) * 16
        guard payload + 15 >= wanted, payload > BzImage.entryOffset else {
            throw VMMError(
                "the kernel is truncated: of \(max(wanted, BzImage.entryOffset)) bytes there are \(payload)",
                hint: "Copy the file again.")
        }

        let alignment = UInt64(try field(Field.alignment, UInt32.self))
        let isRelocatable = try field(Field.isRelocatable, UInt8.self) != 0
        guard alignment.nonzeroBitCount == 1, alignment <= 1 << 30 else {
            throw VMMError("the kernel's header asks for an alignment of \(alignment) bytes")
        }
        let preferred = try field(Field.preferredAddress, UInt64.self)
        let initSize = max(UInt64(try field(Field.initSize, UInt32.self)), payload)
        func fits(_ address: UInt64, _ size: UInt64) -> Bool {
            address >= BzImage.oneMiB && address <= memory.upperBound && size <= memory.upperBound - address
        }
        if isRelocatable {
            // It unpacks itself where it is loaded, or moves to the next aligned address.
            let candidates = [preferred.alignedUp(alignment), BzImage.oneMiB.alignedUp(alignment)].compactMap { $0 }
            guard let address = candidates.first(where: { fits($0, initSize) }) else {
                throw BzImage.noRoom(initSize, candidates.min() ?? preferred, memory)
            }
            loadAddress = address
            occupied = [address..<address + initSize]
        } else {
            guard fits(BzImage.oneMiB, payload), fits(preferred, initSize) else {
                throw BzImage.noRoom(initSize, preferred, memory)
            }
            loadAddress = BzImage.oneMiB
            occupied = [BzImage.oneMiB..<BzImage.oneMiB + payload, preferred..<preferred + initSize]
        }

        // With this flag the limit in the header is there for old loaders only.
        let canBeAnywhere = extendedFlags & 2 != 0
        initrdLimit = canBeAnywhere ? 1 << 32 : UInt64(try field(Field.initrdMaximum, UInt32.self)) + 1
        commandLineLimit = Int(try field(Field.commandLineSize, UInt32.self))
    }

    private static func noRoom(_ size: UInt64, _ address: UInt64, _ memory: Range<UInt64>) -> VMMError {
        VMMError(
            "the kernel needs \(size) bytes from \(Hex(address)) on, and there is memory up to "
                + "\(Hex(memory.upperBound))",
            hint: "Give the guest more memory with -m.")
    }
}

/// What the kernel is told, beside its own header.
struct LinuxParameters {
    /// Where the command line is, which ends with a zero.
    var commandLine: UInt64
    /// Nil when there is none.
    var initrd: Range<UInt64>?
    var memoryMap: [E820Entry]
    /// Nil when there are no ACPI tables.
    var rsdp: UInt64?

    /// Entries of the memory map in the zero page.
    static let memoryMapLimit = 128
}

extension BzImage {
    /// The "zero page": the header and what it is told (Documentation/arch/x86/zero-page.rst).
    func zeroPage(_ parameters: LinuxParameters) -> [UInt8] {
        // Bytes of the header's room in the zero page, and where things are beside it.
        let headerEnd = 0x290
        let rsdp = 0x070
        let mapCount = 0x1e8
        let map = 0x2d0
        var page = [UInt8](repeating: 0, count: 4096)
        let end = min(Field.magic + Int(file.bytes[Field.jumpLength]), headerEnd, setupSize)
        page.replaceSubrange(Field.header..<end, with: file.bytes[Field.header..<end])

        // No number is assigned to this loader.
        page.store(0xff as UInt8, at: Field.loaderType)
        page.store(UInt32(truncatingIfNeeded: loadAddress), at: Field.code32Start)
        page.store(UInt32(truncatingIfNeeded: parameters.commandLine), at: Field.commandLine)
        if let initrd = parameters.initrd {
            page.store(UInt32(truncatingIfNeeded: initrd.lowerBound), at: Field.initrdAddress)
            page.store(UInt32(truncatingIfNeeded: initrd.upperBound - initrd.lowerBound), at: Field.initrdSize)
        }
        // A pointer from a file leads nowhere.
        page.store(0 as UInt64, at: Field.setupData)
        page.store(parameters.rsdp ?? 0, at: rsdp)
        let entries = parameters.memoryMap.prefix(LinuxParameters.memoryMapLimit)
        page.store(UInt8(entries.count), at: mapCount)
        for (index, entry) in entries.enumerated() {
            page.replaceSubrange(map + 20 * index..<map + 20 * (index + 1), with: entry.bytes)
        }
        return page
    }
}
