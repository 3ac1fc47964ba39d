/// Kernels that no machine would run, with headers as real ones have them.
enum SampleKernels {
    /// The header of a RISC-V Linux `Image` (Documentation/arch/riscv/boot-image-header.rst).
    static func linuxImage() -> [UInt8] {
        var image = [UInt8](repeating: 0, count: 256)
        image.store(little: 0x20_0000 as UInt64, at: 8)
        image.store(little: 0x1000 as UInt64, at: 16)
        image.store(little: 0x0543_5352 as UInt32, at: 56)
        return image
    }

    /// One segment, and for x86 a note that says where PVH enters.
    static func elf(machine: UInt16, address: UInt64, note: UInt64? = nil) -> [UInt8] {
        let is64Bit = machine != 3
        let headers = note == nil ? 1 : 2
        let (fileHeader, header) = is64Bit ? (64, 56) : (52, 32)
        let content: [UInt8] = [1, 2, 3, 4]
        let notes: [UInt8] =
            note.map {
                little(4 as UInt32, is64Bit ? 8 : 4 as UInt32, 18 as UInt32) + Array("Xen\0".utf8)
                    + (is64Bit ? little($0) : little(UInt32($0)))
            } ?? []
        let place = fileHeader + headers * header
        func word(_ value: UInt64) -> [UInt8] { is64Bit ? little(value) : little(UInt32(truncatingIfNeeded: value)) }
        func program(_ type: UInt32, _ offset: Int, _ size: Int, _ memory: UInt64) -> [UInt8] {
            let addresses = word(address) + word(address) + word(UInt64(size)) + word(memory)
            return is64Bit
                ? little(type, 7 as UInt32) + word(UInt64(offset)) + addresses + word(4)
                : little(type) + word(UInt64(offset)) + addresses + little(7 as UInt32, 4 as UInt32)
        }
        var file: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, is64Bit ? 2 : 1, 1, 1, 0] + [UInt8](repeating: 0, count: 8)
        file += little(2 as UInt16, machine) + little(1 as UInt32) + word(address) + word(UInt64(fileHeader)) + word(0)
        file += little(0 as UInt32)
        for value in [fileHeader, header, headers, 0, 0, 0] { file += little(UInt16(value)) }
        file += program(1, place, content.count, 0x100)
        if note != nil { file += program(4, place + content.count, notes.count, UInt64(notes.count)) }
        return file + content + notes
    }

    /// A bzImage as of Linux 6 (Documentation/arch/x86/boot.rst).
    static func bzImage() -> [UInt8] {
        var image = [UInt8](repeating: 0, count: 4 * 512) + [UInt8](repeating: 0x5a, count: 512)
        image[0x1f1] = 3
        image.store(little: 32 as UInt32, at: 0x1f4)
        image.store(little: 0xaa55 as UInt16, at: 0x1fe)
        image[0x200] = 0xeb
        image[0x201] = 0x6a
        image.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
        image.store(little: 0x20f as UInt16, at: 0x206)
        image[0x211] = 1
        image.store(little: 0x10_0000 as UInt32, at: 0x214)
        image.store(little: 0x7fff_ffff as UInt32, at: 0x22c)
        image.store(little: 0x20_0000 as UInt32, at: 0x230)
        image[0x234] = 1
        image[0x235] = 21
        image.store(little: 0x7f as UInt16, at: 0x236)
        image.store(little: 2047 as UInt32, at: 0x238)
        image.store(little: 0x100_0000 as UInt64, at: 0x258)
        image.store(little: 4 << 20 as UInt32, at: 0x260)
        return image
    }
}
