import BatonRuntime
import Firmware
import Foundation
import MicroVM
import TestSupport
import Testing

/// Kernels that start without firmware.
@Suite struct DirectStartTests {
    let directory: TemporaryDirectory
    init() throws { directory = try TemporaryDirectory() }

    private func files(_ kernel: [UInt8], initrd: Int? = nil, _ line: String = "") throws -> BootFiles {
        var files = BootFiles()
        files.kernel = try directory.write("kernel", Data(kernel))
        files.commandLine = line
        if let initrd { files.initrd = try directory.write("initrd", Data(repeating: 0x77, count: initrd)) }
        return files
    }

    private func tables() -> ACPITables {
        ACPITables(
            ACPIConfiguration(apicIDs: [0, 1], interrupts: InterruptLayout(acpi: true, secondIOAPIC: true)))
    }

    @Test func aBzImageStartsInLongModeWithItsZeroPage() throws {
        let ram = try TestRAM(size: 64 << 20)
        let ecam = MemoryMap.pciConfiguration..<MemoryMap.pciConfiguration + MemoryMap.pciConfigurationSize
        let plan = try BootPlan(
            files: try files(TestKernel.bzImage(), initrd: 10_000, "console=ttyS0"), memory: ram.layout,
            tables: tables(), reserved: [ecam])
        try plan.load(into: ram.space)

        let start = plan.start
        #expect(start.mode == .long)
        #expect(start.rip == 0x100_0200)
        #expect(ram.load(0x100_0000, as: UInt64.self) == 0x5a5a_5a5a_5a5a_5a5a)
        #expect(ram.load(0x100_0000 + (64 << 10), as: UInt64.self) == 0)

        let page = ram.bytes(start.rsi, 4096)
        #expect(Array(page[0x202..<0x206]) == Array("HdrS".utf8))
        #expect(page[0x1f1] == 3)
        #expect(page[0x210] == 0xff)
        #expect(page.number(0x214, UInt32.self) == 0x100_0000)
        #expect(page.number(0x260, UInt32.self) == 4 << 20)
        #expect(page.number(0x70, UInt64.self) == 0xe_0000)
        #expect(ram.bytes(0xe_0000, 8) == Array("RSD PTR ".utf8))
        let line = UInt64(page.number(0x228, UInt32.self))
        #expect(ram.bytes(line, 14) == Array("console=ttyS0\0".utf8))
        // The initrd is as high as it can be.
        let initrd = UInt64(page.number(0x218, UInt32.self))
        #expect(page.number(0x21c, UInt32.self) == 10_000)
        #expect(initrd == (64 << 20) - 3 * 4096)
        #expect(ram.bytes(initrd, 10_000) == [UInt8](repeating: 0x77, count: 10_000))

        #expect(page[0x1e8] == 4)
        let map = (0..<4).map { index in
            let place = 0x2d0 + 20 * index
            return [page.number(place, UInt64.self), page.number(place + 8, UInt64.self)]
                + [UInt64(page.number(place + 16, UInt32.self))]
        }
        #expect(
            map == [
                [0, 0xa_0000, 1], [0xa_0000, 0x6_0000, 2], [0x10_0000, (64 << 20) - 0x10_0000, 1],
                [ecam.lowerBound, UInt64(ecam.count), 2],
            ])
    }

    /// Walks the page tables as a CPU does.
    @Test(arguments: [0, 0x7000, 0x100_0200, 0x7fff_f123, 0xfee0_0000, 0xffff_ffff] as [UInt64])
    func theFirst4GiBAreMappedToThemselves(address: UInt64) throws {
        let ram = try TestRAM(size: 64 << 20)
        let plan = try BootPlan(files: try files(TestKernel.bzImage()), memory: ram.layout, tables: nil)
        try plan.load(into: ram.space)
        var table = plan.start.cr3
        for shift in [39, 30, 21] as [UInt64] {
            let entry: UInt64 = ram.load(table + (address >> shift & 511) * 8)
            #expect(entry & 3 == 3)
            guard shift == 21 else {
                table = entry & ~0xfff
                continue
            }
            #expect(entry & 0x80 != 0)
            #expect((entry & ~0x1f_ffff) + (address & 0x1f_ffff) == address)
        }
    }

    @Test func theSegmentsAreTheDescriptorsThatTheSelectorsName() throws {
        let ram = try TestRAM(size: 64 << 20)
        let long = try BootPlan(files: try files(TestKernel.bzImage()), memory: ram.layout, tables: nil)
        try long.load(into: ram.space)
        #expect(long.start.gdtLimit == 31)
        // The selectors of code and data that `X86StartState` names.
        #expect(ram.load(long.start.gdtBase + 0x10) == 0x00af_9b00_0000_ffff as UInt64)
        #expect(ram.load(long.start.gdtBase + 0x18) == 0x00cf_9300_0000_ffff as UInt64)

        let pvh = try BootPlan(files: try files(TestKernel.elf()), memory: ram.layout, tables: nil)
        try pvh.load(into: ram.space)
        #expect(ram.load(pvh.start.gdtBase + 0x10) == 0x00cf_9b00_0000_ffff as UInt64)
    }

    @Test func anELFFileStartsByPVH() throws {
        let ram = try TestRAM(size: 5 << 30)
        let segments = [
            TestKernel.Segment(address: 0x100_0000, content: [1, 2, 3, 4], memorySize: 0x2000),
            TestKernel.Segment(address: 0x200_0000, content: [5], memorySize: 1),
        ]
        ram.store([UInt8](repeating: 0xff, count: 0x2000), at: 0x100_0000)
        let plan = try BootPlan(
            files: try files(TestKernel.elf(segments), initrd: 5000, "quiet"), memory: ram.layout, tables: tables())
        try plan.load(into: ram.space)
        #expect(plan.start.mode == .protected)
        #expect(plan.start.rip == 0x100_0002)
        #expect(ram.load(0x100_0000, as: UInt64.self) == 0x0403_0201)
        #expect(ram.load(0x100_1ff8, as: UInt64.self) == 0)
        #expect(ram.load(0x200_0000, as: UInt8.self) == 5)

        let info = ram.bytes(plan.start.rbx, 56)
        #expect(info.number(0, UInt32.self) == 0x336e_c578)
        #expect(info.number(4, UInt32.self) == 1)
        #expect(info.number(12, UInt32.self) == 1)
        let module = ram.bytes(info.number(16, UInt64.self), 32)
        let initrd = module.number(0, UInt64.self)
        #expect(module.number(8, UInt64.self) == 5000)
        #expect(initrd == 0xc000_0000 - 8192)
        #expect(ram.load(initrd, as: UInt16.self) == 0x7777)
        #expect(ram.bytes(info.number(24, UInt64.self), 6) == Array("quiet\0".utf8))
        #expect(ram.bytes(info.number(32, UInt64.self), 8) == Array("RSD PTR ".utf8))
        let map = info.number(40, UInt64.self)
        #expect(info.number(48, UInt32.self) == 4)
        #expect(ram.load(map + 24 * 3, as: UInt64.self) == 1 << 32)
        #expect(ram.load(map + 24 * 3 + 8, as: UInt64.self) == 2 << 30)
        #expect(ram.load(map + 24 * 3 + 16, as: UInt32.self) == 1)
    }

    @Test func aSmallGuestGetsTheKernelLower() throws {
        let ram = try TestRAM(size: 16 << 20)
        let plan = try BootPlan(files: try files(TestKernel.bzImage()), memory: ram.layout, tables: nil)
        #expect(plan.start.rip == 0x20_0200)
    }

    @Test func aKernelThatCannotBeMovedUnpacksWhereItWants() throws {
        var kernel = TestKernel.bzImage()
        kernel[0x234] = 0
        let ram = try TestRAM(size: 32 << 20)
        // Above the kernel's own memory there is no room: the initrd goes between.
        let plan = try BootPlan(files: try files(kernel, initrd: 13 << 20), memory: ram.layout, tables: nil)
        try plan.load(into: ram.space)
        #expect(plan.start.rip == 0x10_0200)
        let initrd = ram.load(plan.start.rsi + 0x218, as: UInt32.self)
        #expect(initrd == 0x100_0000 - (13 << 20))
    }

    @Test func theInitrdStaysBelowTheKernelsLimit() throws {
        var kernel = TestKernel.bzImage()
        kernel.set(0x3d as UInt16, at: 0x236)
        kernel.set(0x1ff_ffff as UInt32, at: 0x22c)
        let ram = try TestRAM(size: 64 << 20)
        let plan = try BootPlan(files: try files(kernel, initrd: 4096), memory: ram.layout, tables: nil)
        try plan.load(into: ram.space)
        #expect(ram.load(plan.start.rsi + 0x218, as: UInt32.self) == 0x1ff_f000)
    }

    /// Without ACPI a kernel finds CPUs and interrupts by the table of the multiprocessor specification.
    @Test func withoutACPIThereIsAMultiprocessorTable() throws {
        let ram = try TestRAM(size: 64 << 20)
        let table = MPTable(apicIDs: [0, 1, 300], levelInterrupts: [5, 12], hasTimerOverride: true)
        let plan = try BootPlan(
            files: try files(TestKernel.bzImage()), memory: ram.layout, tables: nil, multiprocessor: table)
        try plan.load(into: ram.space)
        #expect(ram.load(plan.start.rsi + 0x70, as: UInt64.self) == 0)
        let pointer = ram.bytes(0xf_0000, 16)
        #expect(Array(pointer.prefix(4)) == Array("_MP_".utf8))
        #expect(pointer.reduce(0, &+) == 0)
        let address = UInt64(pointer.number(4, UInt32.self))
        let bytes = ram.bytes(address, Int(ram.load(address + 4, as: UInt16.self)))
        #expect(Array(bytes.prefix(4)) == Array("PCMP".utf8))
        #expect(bytes.reduce(0, &+) == 0)
        #expect(bytes.number(36, UInt32.self) == 0xfee0_0000)
        var entries: [[UInt8]] = []
        var place = 44
        while place < bytes.count {
            let size = bytes[place] == 0 ? 20 : 8
            entries.append(Array(bytes[place..<min(place + size, bytes.count)]))
            place += size
        }
        #expect(entries.count == Int(bytes.number(34, UInt16.self)))
        #expect(entries.filter { $0[0] == 0 }.map { [$0[1], $0[3]] } == [[0, 3], [1, 1]])
        #expect(entries.filter { $0[0] == 2 }.map { $0.number(4, UInt32.self) } == [0xfec0_0000])
        let lines = entries.filter { $0[0] == 3 }
        // The timer's line takes the place of the second PIC's.
        #expect(lines.map { $0[7] } == [2, 1] + Array(3..<16))
        #expect(lines.filter { $0[2] == 0x0d }.map { $0[5] } == [5, 12])
    }

    @Test func wordsForTheKernelsOwnSearch() {
        let interrupts = InterruptLayout(acpi: false, secondIOAPIC: true)
        #expect(interrupts.virtioSlots == 8)
        #expect(
            KernelCommandLine.virtioWords(slots: [7, 0], interruptBase: interrupts.virtioBase)
                == " virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=512@0xfeb00000:5")
    }

    /// A kernel of Debian's as it comes, where this machine has one.
    @Test(.enabled(if: DebianKernel.path != nil, "needs a Debian kernel for amd64 in /boot"))
    func aRealKernelIsAccepted() throws {
        let ram = try TestRAM(size: 512 << 20)
        var files = BootFiles()
        files.kernel = DebianKernel.path
        let plan = try BootPlan(files: files, memory: ram.layout, tables: tables())
        try plan.load(into: ram.space)
        #expect(plan.start.mode == .long)
        #expect(ram.load(plan.start.rsi + 0x202, as: UInt32.self) == 0x5372_6448)
    }
}

enum DebianKernel {
    /// From the environment, or installed.
    static let path: String? = {
        if let path = ProcessInfo.processInfo.environment["BATON_AMD64_KERNEL"] { return path }
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/boot")) ?? []
        return names.sorted().last { $0.hasPrefix("vmlinuz") && $0.hasSuffix("amd64") }.map { "/boot/\($0)" }
    }()
}
