import BatonRuntime
import Foundation
import MicroVM
import TestSupport
import Testing

/// Files that lie, are damaged or are for other machines.
@Suite struct HostileKernelTests {
    let directory: TemporaryDirectory
    init() throws { directory = try TemporaryDirectory() }

    private func failure(
        _ kernel: [UInt8], initrd: Int? = nil, memory: UInt64 = 64 << 20, _ line: String = ""
    ) throws -> String {
        var files = BootFiles()
        files.kernel = try directory.write("kernel", Data(kernel))
        if let initrd { files.initrd = try directory.write("initrd", Data(count: initrd)) }
        files.commandLine = line
        let error = #expect(throws: VMMError.self) {
            try BootPlan(files: files, memory: RAMLayout(size: memory), tables: nil)
        }
        return error?.message ?? ""
    }

    /// A file whose bytes at an offset are of interest only.
    private func image(_ magic: [UInt8], at offset: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 4096)
        bytes.replaceSubrange(offset..<offset + magic.count, with: magic)
        return bytes
    }

    @Test func kernelsForOthersAreRefusedByName() throws {
        #expect(try failure(image(Array("RSC\u{5}".utf8), at: 56)).contains("a RISC-V kernel"))
        #expect(try failure(image(Array("ARMd".utf8), at: 56)).contains("an arm64 kernel"))
        #expect(try failure(image([0x1f, 0x8b, 8], at: 0)).contains("compressed with gzip"))
        #expect(try failure(image(Array("MZ".utf8), at: 0)).contains("EFI program"))
        #expect(try failure(image([1, 2, 3], at: 0)).contains("neither a bzImage nor an ELF file"))
        #expect(try failure([]).contains("the file is empty"))
        #expect(try failure(TestKernel.elf(machine: 243)).contains("RISC-V (machine 243), not for x86-64"))
        #expect(try failure(TestKernel.elf(machine: 183)).contains("arm64"))
    }

    /// One field of a good header changed.
    @Test func headersThatLieAreRefused() throws {
        func changed(_ change: (inout [UInt8]) -> Void) throws -> String {
            var kernel = TestKernel.bzImage()
            change(&kernel)
            return try failure(kernel)
        }
        #expect(try changed { $0.set(0x20b as UInt16, at: 0x206) }.contains("boot protocol is 2.11"))
        #expect(try changed { $0.set(0x7e as UInt16, at: 0x236) }.contains("32-bit x86"))
        #expect(try changed { $0[0x211] = 0 }.contains("zImage"))
        #expect(try changed { $0[0x1f1] = 0xff }.contains("invalid kernel header"))
        #expect(try changed { $0.set(0x10_0000 as UInt32, at: 0x1f4) }.contains("truncated"))
        #expect(try changed { $0.set(0 as UInt32, at: 0x230) }.contains("alignment"))
        #expect(try changed { $0.set(3 as UInt32, at: 0x230) }.contains("alignment"))
        #expect(try changed { $0.set(UInt32.max, at: 0x260) }.contains("there is memory up to 0x4000000"))
        #expect(
            try changed {
                $0[0x234] = 0
                $0.set(UInt64.max, at: 0x258)
            }.contains("there is memory up to"))
        #expect(try changed { $0.removeLast($0.count - 0x210) }.contains("header is truncated"))
        #expect(try changed { $0.removeLast($0.count - 0x250) }.contains("invalid kernel header"))
        // A wish that cannot be had is none: the kernel goes elsewhere.
        var kernel = TestKernel.bzImage()
        kernel.set(UInt64.max, at: 0x258)
        var files = BootFiles()
        files.kernel = try directory.write("kernel", Data(kernel))
        #expect(try BootPlan(files: files, memory: RAMLayout(size: 64 << 20), tables: nil).start.rip == 0x20_0200)
    }

    @Test func elfFilesThatLieAreRefused() throws {
        typealias Segment = TestKernel.Segment
        func elf(_ address: UInt64, _ size: UInt64) -> [UInt8] {
            TestKernel.elf([Segment(address: address, content: [1, 2, 3, 4], memorySize: size)], entry: address)
        }
        #expect(try failure(TestKernel.elf(noteType: 1)).contains("without PVH ELF Note"))
        #expect(try failure(TestKernel.elf(entry: 0x300_0000)).contains("is in no segment"))
        #expect(try failure(TestKernel.elf(entry: 1 << 33)).contains("is in no segment"))
        #expect(try failure(elf(0x100_0000, 2)).contains("larger in the file than in memory"))
        #expect(try failure(elf(0x100_0000, 1 << 30)).contains("does not fit into guest memory"))
        #expect(try failure(elf(0x100_0000, UInt64.max)).contains("does not fit into guest memory"))
        #expect(try failure(elf(UInt64.max - 1, 4)).contains("does not fit into guest memory"))
        #expect(try failure(elf(0x6000, 64)).contains("overlap"))
        #expect(try failure(elf(0x1_ff00, 0x200)).contains("the command line"))
        let one = Segment(address: 0x100_0000, content: [1], memorySize: 0x1001)
        let other = Segment(address: 0x100_1000, content: [1], memorySize: 1)
        #expect(try failure(TestKernel.elf([other, one])).contains("overlap at 0x1001000"))
        var cut = TestKernel.elf()
        cut.removeLast(3)
        #expect(try failure(cut).contains("truncated"))
        cut.set(0xffff as UInt16, at: 56)
        #expect(try failure(cut).contains("65535 program headers"))
        cut.set(UInt64.max, at: 32)
        cut.set(1 as UInt16, at: 56)
        #expect(try failure(cut).contains("truncated"))
    }

    @Test func whatDoesNotFitIsRefused() throws {
        let kernel = TestKernel.bzImage()
        #expect(try failure(kernel, memory: 1 << 20).contains("too few"))
        #expect(try failure(kernel, memory: 5 << 20).contains("there is memory up to"))
        #expect(try failure(kernel, initrd: 45 << 20).contains("initrd is too large, cannot support."))
        #expect(try failure(kernel, initrd: 70 << 20).contains("too large"))
        #expect(try failure(kernel, initrd: 0).contains("the file is empty"))
        #expect(try failure(kernel, String(repeating: "x", count: 2048)).contains("2048 bytes"))
        #expect(try failure(kernel, "a\0b").contains("zero byte"))
    }

    @Test func filesThatAreNotThereAreRefused() throws {
        var files = BootFiles()
        let memory = RAMLayout(size: 64 << 20)
        func message() -> String {
            let error = #expect(throws: VMMError.self) { try BootPlan(files: files, memory: memory, tables: nil) }
            return error?.message ?? ""
        }
        #expect(message() == "there is nothing to start from")
        files.commandLine = "x"
        #expect(message() == "-append only allowed with -kernel option")
        files.initrd = "/nowhere/initrd"
        #expect(message() == "-initrd only allowed with -kernel option")
        files.kernel = "/nowhere/kernel"
        #expect(message().hasPrefix("error reading initrd /nowhere/initrd: "))
        files.initrd = nil
        #expect(message().hasPrefix("could not load kernel '/nowhere/kernel': Could not open"))
        files.kernel = "/dev/zero"
        #expect(message().hasPrefix("could not load kernel '/dev/zero': "))
    }

    /// Random damage to headers never does more than to be refused.
    @Test func randomDamage() throws {
        var random = SeededGenerator(state: 11)
        let ram = try TestRAM(size: 32 << 20)
        var files = BootFiles()
        var accepted = 0
        for original in [TestKernel.bzImage(payload: 4096), TestKernel.elf()] {
            for _ in 0..<400 {
                var kernel = original
                let isELF = original.count < 4096
                for _ in 0..<Int.random(in: 1...4, using: &random) {
                    let place = Int.random(in: isELF ? 4..<kernel.count : 0x1f1..<0x270, using: &random)
                    let values: [UInt8] = [0, 0xff, 0x7f, 0x80, UInt8.random(in: 0...255, using: &random)]
                    kernel[place] = values.randomElement(using: &random) ?? 0
                }
                if Int.random(in: 0..<4, using: &random) == 0 {
                    kernel.removeLast(Int.random(in: 0...kernel.count, using: &random))
                }
                files.kernel = try directory.write("kernel", Data(kernel))
                guard let plan = try? BootPlan(files: files, memory: ram.layout, tables: nil) else { continue }
                try plan.load(into: ram.space)
                accepted += 1
            }
        }
        #expect(accepted > 20)
    }
}
