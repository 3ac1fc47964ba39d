import Foundation

/// Builds guests, for riscv64 unless they say otherwise, with the clang and lld of the Swift toolchain.
public enum GuestBuilder {
    /// The toolchain's directory; nil when it has no clang or lld.
    public static let toolchain: String? = {
        guard let swift = Products.find("swift") else { return nil }
        let directory = URL(fileURLWithPath: swift).resolvingSymlinksInPath().deletingLastPathComponent().path
        let tools = ["clang", "ld.lld", "llvm-objcopy"]
        let complete = tools.allSatisfy { FileManager.default.isExecutableFile(atPath: "\(directory)/\($0)") }
        return complete ? directory : nil
    }()
    public static var isAvailable: Bool { toolchain != nil }

    /// Loads everything at the start of RAM, `_start` first, and gives
    /// `stack_top` 64 KiB above the end.
    public static let defaultLinkerScript = """
        OUTPUT_ARCH(riscv)
        ENTRY(_start)
        SECTIONS {
          . = 0x80000000;
          .text : { *(.text.start) *(.text*) }
          .rodata : { *(.rodata*) *(.srodata*) }
          . = ALIGN(4096);
          .data : { *(.data*) *(.sdata*) }
          .bss : { *(.sbss*) *(.bss*) *(COMMON) }
          . = ALIGN(16);
          stack_top = . + 0x10000;
          /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame*) *(.riscv.attributes) }
        }
        """

    /// Builds an ELF file, or finds it in the cache under `.build/guests`.
    /// - Parameters:
    ///   - sources: file names ending in `.S`, `.c` or `.h`, with their text.
    ///   - flags: given to clang after the defaults.
    ///   - binary: makes a flat file instead.
    /// - Returns: the path.
    public static func build(
        _ name: String, sources: [String: String], flags: [String] = [],
        linkerScript: String = defaultLinkerScript, march: String = "rv64gc", mabi: String = "lp64d",
        binary: Bool = false
    ) throws -> String {
        guard let toolchain else { throw TestError("the Swift toolchain has no clang and lld") }
        let ordered = sources.sorted { $0.key < $1.key }
        let key =
            ordered.map { "\($0.key)\0\($0.value)" }.joined(separator: "\0")
            + "\0\(flags)\0\(linkerScript)\0\(march)\0\(mabi)\0\(binary)\0\(toolchain)"
        let target = try Products.cache("guests") + "/\(name)-\(hash(key))\(binary ? ".bin" : ".elf")"
        if FileManager.default.fileExists(atPath: target) { return target }

        let work = try TemporaryDirectory()
        var objects: [String] = []
        for (file, text) in ordered { try work.write(file, text) }
        for (file, _) in ordered where !file.hasSuffix(".h") {
            objects.append(work.file(file + ".o"))
            try ChildProcess.run(
                [
                    "\(toolchain)/clang", "--target=riscv64-unknown-elf", "-march=\(march)", "-mabi=\(mabi)",
                    "-mcmodel=medany", "-ffreestanding", "-fno-builtin", "-nostdlib", "-O2", "-I\(work.path)",
                ] + flags + ["-c", work.file(file), "-o", work.file(file + ".o")])
        }
        try work.write("link.ld", linkerScript)
        try ChildProcess.run(
            ["\(toolchain)/ld.lld", "-T", work.file("link.ld"), "-o", work.file("guest.elf")] + objects)
        var result = work.file("guest.elf")
        if binary {
            try ChildProcess.run(["\(toolchain)/llvm-objcopy", "-O", "binary", result, work.file("guest.bin")])
            result = work.file("guest.bin")
        }
        // Another test may build the same: the last rename wins.
        let staged = target + ".\(UUID().uuidString)"
        try FileManager.default.copyItem(atPath: result, toPath: staged)
        guard rename(staged, target) == 0 else { throw TestError.system("rename \(staged)") }
        return target
    }

    /// Builds a guest of Tests/Guests that is one file, with the headers beside
    /// it and those of all guests, as a flat file for any address.
    /// - Parameter file: `vfio/vfio.c`.
    public static func flat(_ file: String, flags: [String] = []) throws -> String {
        let guests = "\(Products.repository)/Tests/Guests"
        func text(_ path: String) throws -> String { try String(contentsOfFile: path, encoding: .utf8) }
        let source = URL(fileURLWithPath: "\(guests)/\(file)")
        var sources = [source.lastPathComponent: try text(source.path)]
        for directory in [guests, source.deletingLastPathComponent().path] {
            for name in try FileManager.default.contentsOfDirectory(atPath: directory) where name.hasSuffix(".h") {
                sources[name] = try text("\(directory)/\(name)")
            }
        }
        return try build(
            ([source.deletingPathExtension().lastPathComponent] + flags).joined(), sources: sources,
            flags: ["-fpie"] + flags, linkerScript: try text("\(guests)/flat.ld"), binary: true)
    }

    /// Builds a guest of Tests/Guests/microvm, for x86-64: an ELF file with a PVH note.
    /// - Parameter name: of the source, without its end.
    public static func microvm(_ name: String, to path: String) throws {
        guard let toolchain else { throw TestError("the Swift toolchain has no clang and lld") }
        let directory = "\(Products.repository)/Tests/Guests/microvm"
        try ChildProcess.run([
            "\(toolchain)/clang", "--target=x86_64-unknown-linux-gnu", "-march=x86-64", "-ffreestanding",
            "-fno-builtin", "-fno-stack-protector", "-nostdlib", "-nostdinc", "-O2", "-Wall", "-Wextra", "-Werror",
            "-mgeneral-regs-only", "-mno-red-zone", "-fno-pic", "-fuse-ld=lld", "-static", "-Wl,-no-pie",
            "-Wl,--build-id=none",
            "-Wl,-T,\(directory)/microvm.ld", "-o", path, "\(directory)/\(name).c",
        ])
    }

    /// FNV-1a, 64 bits.
    private static func hash(_ text: String) -> String {
        let value = text.utf8.reduce(UInt64(0xcbf2_9ce4_8422_2325)) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
        return String(value, radix: 16)
    }
}
