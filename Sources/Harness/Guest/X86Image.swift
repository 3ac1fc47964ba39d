/// The file of the x86-64 guest: an ELF file with a PVH note, whose one segment has the tables that long mode needs,
/// and then the program. (Xen's docs/misc/pvh.pandoc; Intel's Software Developer's Manual, volume 3, chapters 3 to 6.)
enum X86Image {
    static let start: UInt64 = 0x10_0000
    /// The start of the program, in 32-bit protected mode.
    static let entry = start + 0x6000
    static let idtPointer = start + 0x5040

    private static let pageTables = start
    private static let idt = start + 0x4000
    private static let gdt = start + 0x5000
    private static let gdtPointer = start + 0x5020
    static let code: UInt8 = 0x08
    static let data: UInt64 = 0x10

    /// The way to long mode: the first instructions of a program. Behind it all is 64-bit code.
    static func enterLongMode(_ code: inout X86Assembler) {
        code.disableInterrupts()
        code.raw(0x0f, 0x01, 0x15)  // lgdt
        code.word(UInt32(gdtPointer))
        code.raw(0x0f, 0x20, 0xe0, 0x0d)  // CR4: PAE, OSFXSR, OSXMMEXCPT
        code.word(0x620)
        code.raw(0x0f, 0x22, 0xe0, 0xb8)  // CR3
        code.word(UInt32(pageTables))
        code.raw(0x0f, 0x22, 0xd8, 0xb9)  // EFER: LME
        code.word(0xc000_0080)
        code.raw(0x0f, 0x32, 0x0d)
        code.word(0x100)
        code.raw(0x0f, 0x30)
        code.raw(0x0f, 0x20, 0xc0, 0x0d)  // CR0: PG, MP
        code.word(0x8000_0002)
        code.raw(0x0f, 0x22, 0xc0, 0xea)  // a far jump, to behind itself
        code.word(UInt32(code.start) + UInt32(code.bytes.count) + 6)
        code.raw(X86Image.code, 0)
    }

    /// - Parameters:
    ///   - program: starts at `entry`.
    ///   - handler: the address of the handler of each vector.
    static func file(_ program: [UInt8], handler: (UInt8) -> UInt64) -> [UInt8] {
        var segment = tables()
        for vector in 0...UInt8.max {
            let address = handler(vector)
            // An interrupt gate: interrupts are off in the handler.
            segment += little(address & 0xffff | UInt64(code) << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48)
            segment += little(address >> 32)
        }
        segment += little(0) + little(0x00af_9b00_0000_ffff) + little(0x00cf_9300_0000_ffff) + little(0)
        segment += pointer(limit: 23, base: gdt) + pointer(limit: 4095, base: idt)
        segment += [UInt8](repeating: 0, count: Int(entry - start) - segment.count)
        return elf(segment + program)
    }

    /// Identity mapping of the first and the fourth GiB, where RAM and devices are.
    private static func tables() -> [UInt8] {
        let (present, large, uncached): (UInt64, UInt64, UInt64) = (3, 0x80, 0x18)
        func page(_ entries: [Int: UInt64]) -> [UInt8] { (0..<512).flatMap { little(entries[$0] ?? 0) } }
        let low = (0..<512).flatMap { little(UInt64($0) << 21 | present | large) }
        let high = (0..<512).flatMap { little(3 << 30 | UInt64($0) << 21 | present | large | uncached) }
        return page([0: pageTables + 0x1000 | present])
            + page([0: pageTables + 0x2000 | present, 3: pageTables + 0x3000 | present]) + low + high
    }

    /// What `lgdt` and `lidt` read, padded to 32 bytes.
    private static func pointer(limit: UInt64, base: UInt64) -> [UInt8] {
        little(limit | base << 16) + little(base >> 48) + little(0) + little(0)
    }

    private static func elf(_ segment: [UInt8]) -> [UInt8] {
        let (place, notePlace): (UInt64, UInt64) = (0x1000, 0xb0)
        // XEN_ELFNOTE_PHYS32_ENTRY.
        let note = little(4 | 4 << 32).prefix(8) + little(18).prefix(4) + Array("Xen\0".utf8) + little(entry).prefix(4)
        var file: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9)
        file += little(2 | 62 << 16 | 1 << 32) + little(entry) + little(64) + little(0)  // ET_EXEC, EM_X86_64
        file += little(64 << 32 | 56 << 48) + little(2)
        func header(_ kind: UInt64, _ flags: UInt64, _ place: UInt64, _ address: UInt64, _ size: Int, _ align: UInt64) {
            file += little(kind | flags << 32) + little(place) + little(address) + little(address)
            file += little(UInt64(size)) + little(UInt64(size)) + little(align)
        }
        header(1, 7, place, start, segment.count, 4096)
        header(4, 4, notePlace, 0, note.count, 4)
        file += note
        file += [UInt8](repeating: 0, count: Int(place) - file.count)
        return file + segment
    }

    private static func little(_ value: UInt64) -> [UInt8] {
        (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }
}
