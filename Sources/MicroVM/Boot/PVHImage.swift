import BatonRuntime
import Firmware

/// A kernel that starts by the PVH protocol, as Linux' unpacked `vmlinux` does with CONFIG_PVH (docs/misc/pvh.pandoc
/// of Xen).
struct PVHImage {
    let elf: ELFImage
    /// A physical address below 4 GiB.
    let entry: UInt64

    /// XEN_ELFNOTE_PHYS32_ENTRY.
    private static let entryNote: UInt32 = 18

    /// - Parameter memory: guest RAM.
    init(_ file: FileBytes, memory: RAMLayout) throws(VMMError) {
        elf = try ELFImage(file) { memory.contains($0, length: $1) }
        guard let note = try elf.note("Xen", type: PVHImage.entryNote) else {
            throw VMMError(
                "Error loading uncompressed kernel without PVH ELF Note",
                hint: "Build the kernel with CONFIG_PVH=y, or use its bzImage.")
        }
        let address: UInt64
        switch note.count {
        case 4: address = UInt64(try file.field(note.lowerBound, UInt32.self, of: "the PVH note"))
        case 8: address = try file.field(note.lowerBound, UInt64.self, of: "the PVH note")
        default: throw VMMError("the PVH note has \(note.count) bytes instead of 4 or 8")
        }
        guard address < 1 << 32, elf.segments.contains(where: { $0.range.contains(address) }) else {
            throw VMMError("the PVH note's entry \(Hex(address)) is in no segment of the kernel")
        }
        entry = address
    }

    /// What the kernel is told (`struct hvm_start_info`, version 1, in xen/include/public/arch-x86/hvm/start_info.h):
    /// the start info, the list of modules and the memory map, one behind the other.
    /// - Parameter address: where it will be.
    static func startInfo(at address: UInt64, _ parameters: LinuxParameters) -> [UInt8] {
        let infoSize: UInt64 = 56
        let moduleSize: UInt64 = parameters.initrd == nil ? 0 : 32
        let moduleList = address + infoSize
        let magic: UInt32 = 0x336e_c578
        let version: UInt32 = 1
        let flags: UInt32 = 0

        var bytes = littleEndianBytes(magic) + littleEndianBytes(version) + littleEndianBytes(flags)
        bytes += littleEndianBytes(UInt32(parameters.initrd == nil ? 0 : 1))
        bytes += littleEndianBytes(parameters.initrd == nil ? 0 : moduleList)
        bytes += littleEndianBytes(parameters.commandLine) + littleEndianBytes(parameters.rsdp ?? 0)
        bytes += littleEndianBytes(moduleList + moduleSize)
        bytes += littleEndianBytes(UInt32(parameters.memoryMap.count)) + littleEndianBytes(0 as UInt32)
        if let initrd = parameters.initrd {
            // Address, size, command line, reserved.
            bytes += littleEndianBytes(initrd.lowerBound)
            bytes += littleEndianBytes(initrd.upperBound - initrd.lowerBound) + [UInt8](repeating: 0, count: 16)
        }
        for entry in parameters.memoryMap { bytes += entry.bytes + littleEndianBytes(0 as UInt32) }
        return bytes
    }
}
