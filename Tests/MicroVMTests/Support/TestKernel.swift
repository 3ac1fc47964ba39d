import BatonRuntime

/// Kernels that no machine would run, with headers as real ones have them.
enum TestKernel {
    static let setupSize = 4 * 512

    /// A bzImage as of Linux 6, of which the payload's bytes are 0x5a.
    static func bzImage(payload: Int = 64 << 10, initSize: UInt32 = 4 << 20) -> [UInt8] {
        var image = [UInt8](repeating: 0, count: setupSize) + [UInt8](repeating: 0x5a, count: payload)
        image[0x1f1] = 3
        image.set(UInt32(payload / 16), at: 0x1f4)
        image.set(0xaa55 as UInt16, at: 0x1fe)
        // A jump over the header, whose second byte is its length.
        image[0x200] = 0xeb
        image[0x201] = 0x6a
        image.replaceSubrange(0x202..<0x206, with: Array("HdrS".utf8))
        image.set(0x20f as UInt16, at: 0x206)
        image[0x211] = 1
        image.set(0x10_0000 as UInt32, at: 0x214)
        image.set(0x7fff_ffff as UInt32, at: 0x22c)
        image.set(0x20_0000 as UInt32, at: 0x230)
        image[0x234] = 1
        image[0x235] = 21
        image.set(0x7f as UInt16, at: 0x236)
        image.set(2047 as UInt32, at: 0x238)
        image.set(0x100_0000 as UInt64, at: 0x258)
        image.set(initSize, at: 0x260)
        return image
    }

    struct Segment {
        var address: UInt64
        var content: [UInt8]
        var memorySize: UInt64
    }

    /// An ELF file for x86-64 with segments and one note, of 8 bytes, that says where PVH enters.
    static func elf(
        _ segments: [Segment] = [Segment(address: 0x100_0000, content: [1, 2, 3, 4], memorySize: 0x2000)],
        entry: UInt64 = 0x100_0002, noteType: UInt32 = 18, machine: UInt16 = 62
    ) -> [UInt8] {
        var file: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0] + [UInt8](repeating: 0, count: 8)
        file += littleEndianBytes(2 as UInt16) + littleEndianBytes(machine) + littleEndianBytes(1 as UInt32)
        file += littleEndianBytes(0xffff_ffff_8100_0000 as UInt64) + littleEndianBytes(64 as UInt64)
        file += littleEndianBytes(0 as UInt64) + littleEndianBytes(0 as UInt32)
        for value in [64, 56, segments.count + 1, 0, 0, 0] { file += littleEndianBytes(UInt16(value)) }

        // One that is none of ours comes first.
        let other = note("GNU", 3, [9, 9, 9, 9, 9])
        let notes = other + note("Xen", noteType, littleEndianBytes(entry))
        var place = file.count + 56 * (segments.count + 1)
        file += header(type: 4, offset: place, address: 0, fileSize: notes.count, memorySize: UInt64(notes.count))
        place += notes.count
        for segment in segments {
            file += header(
                type: 1, offset: place, address: segment.address, fileSize: segment.content.count,
                memorySize: segment.memorySize)
            place += segment.content.count
        }
        return file + notes + segments.flatMap(\.content)
    }

    private static func note(_ name: String, _ type: UInt32, _ content: [UInt8]) -> [UInt8] {
        let numbers = [UInt32(name.utf8.count + 1), UInt32(content.count), type]
        func padded(_ bytes: [UInt8]) -> [UInt8] { bytes + [UInt8](repeating: 0, count: (4 - bytes.count % 4) % 4) }
        return numbers.flatMap { littleEndianBytes($0) } + padded(Array(name.utf8) + [0]) + padded(content)
    }

    private static func header(
        type: UInt32, offset: Int, address: UInt64, fileSize: Int, memorySize: UInt64
    ) -> [UInt8] {
        littleEndianBytes(type) + littleEndianBytes(7 as UInt32) + littleEndianBytes(UInt64(offset))
            + littleEndianBytes(0xffff_ffff_8000_0000 as UInt64) + littleEndianBytes(address)
            + littleEndianBytes(UInt64(fileSize)) + littleEndianBytes(memorySize) + littleEndianBytes(4 as UInt64)
    }
}
