import BatonRuntime
import Firmware

/// What kind of kernel a file is.
enum KernelFormat: Equatable {
    case bzImage
    case elf

    /// Looks at a file's first bytes.
    /// - Throws: what the file is instead, and what to do.
    init(_ file: FileBytes) throws(VMMError) {
        if file.count == 0 { throw VMMError("the file is empty") }
        if file.has(ELFImage.magic, at: 0) {
            try KernelFormat.checkMachine(file)
            self = .elf
            return
        }
        if file.has(Array("HdrS".utf8), at: 0x202) {
            self = .bzImage
            return
        }
        for (offset, magic, what) in KernelFormat.foreignImages where file.has(magic, at: offset) {
            throw VMMError("the file is \(what), not a kernel for x86-64", hint: KernelFormat.hint)
        }
        for (magic, program) in KernelFormat.compressions where file.has(magic, at: 0) {
            throw VMMError(
                "the file is compressed with \(program), and no kernel",
                hint: "Unpack it first, or use the distribution's bzImage (/boot/vmlinuz-*).")
        }
        if file.has(Array("MZ".utf8), at: 0) {
            throw VMMError(
                "the file is an EFI program without the setup header of Linux for x86: cut short, or for another machine",
                hint: KernelFormat.hint)
        }
        throw VMMError("the file is neither a bzImage nor an ELF file", hint: KernelFormat.hint)
    }

    static let hint = "The board starts a bzImage for x86-64, as distributions have it, or an ELF file with a PVH note."

    /// Kernels for other machines, by their headers (Documentation/arch/riscv/boot-image-header.rst,
    /// arm64/booting.rst; arch/arm/boot/compressed/head.S).
    private static let foreignImages: [(Int, [UInt8], String)] = [
        (4, Array("zimg".utf8), "a kernel for EFI that unpacks itself (zboot)"),
        (56, Array("RSC\u{5}".utf8), "a RISC-V kernel"), (56, Array("ARM\u{64}".utf8), "an arm64 kernel"),
        (36, [0x18, 0x28, 0x6f, 0x01], "an arm kernel (zImage)"),
        (0, [0x27, 0x05, 0x19, 0x56], "a U-Boot image (uImage)"),
        (0, [0xd0, 0x0d, 0xfe, 0xed], "a device tree or a FIT image"),
    ]

    private static let compressions: [([UInt8], String)] = [
        ([0x1f, 0x8b], "gzip"), ([0x28, 0xb5, 0x2f, 0xfd], "zstd"), ([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], "xz"),
        ([0x42, 0x5a, 0x68], "bzip2"), ([0x02, 0x21, 0x4c, 0x18], "lz4"), ([0x04, 0x22, 0x4d, 0x18], "lz4"),
    ]

    /// ELF's numbers (e_machine) of machines for which there are kernels.
    private static let machines: [UInt16: String] = [
        2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "s390", 40: "arm", 43: "SPARC64", 50: "IA-64",
        183: "arm64", 243: "RISC-V", 258: "LoongArch",
    ]

    private static func checkMachine(_ file: FileBytes) throws(VMMError) {
        guard try file.field(5, UInt8.self, of: "the ELF file") == 1 else {
            throw VMMError("the ELF file is big endian, not for x86-64", hint: hint)
        }
        let machine = try file.field(18, UInt16.self, of: "the ELF file")
        guard machine == ELFImage.x86 || machine == ELFImage.x86_64 else {
            let name = machines[machine].map { "\($0) (machine \(machine))" } ?? "machine \(machine)"
            throw VMMError("the ELF file is for \(name), not for x86-64 (\(ELFImage.x86_64))", hint: hint)
        }
    }
}
