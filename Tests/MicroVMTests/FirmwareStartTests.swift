import BatonRuntime
import Firmware
import Foundation
import MicroVM
import TestSupport
import Testing

/// Starts with `-bios`.
@Suite struct FirmwareStartTests {
    let directory: TemporaryDirectory
    init() throws { directory = try TemporaryDirectory() }

    private func firmware(_ size: Int) throws -> String {
        var bytes = Data(repeating: 0x11, count: size)
        bytes[size - 16] = 0xea
        return try directory.write("bios", bytes)
    }

    @Test func firmwareLiesBelow4GiBAndBelow1MiB() throws {
        let ram = try TestRAM(size: 16 << 20, firmware: 256 << 10)
        var files = BootFiles()
        files.firmware = try firmware(256 << 10)
        #expect(try FirmwareImage(files.firmware ?? "").range == 0xfffc_0000..<0x1_0000_0000)
        let plan = try BootPlan(files: files, memory: ram.layout, tables: nil)
        try plan.load(into: ram.space)
        #expect(plan.start.mode == .reset)
        #expect(ram.load(0xffff_fff0, as: UInt8.self) == 0xea)
        #expect(ram.load(0xf_fff0, as: UInt8.self) == 0xea)
        #expect(ram.load(0xe_0000, as: UInt8.self) == 0x11)
        #expect(ram.load(0xd_ffff, as: UInt8.self) == 0)
    }

    @Test(arguments: [0, 1000, 65537, 17 << 20])
    func firmwareOfOddSizesIsRefused(size: Int) throws {
        var files = BootFiles()
        files.firmware = try directory.write("bios", Data(count: size))
        let error = #expect(throws: VMMError.self) {
            try BootPlan(files: files, memory: RAMLayout(size: 64 << 20), tables: nil)
        }
        #expect(error?.message.hasPrefix("could not load PC BIOS '") == true)
    }

    private func items(_ plan: BootPlan) -> [UInt16: [UInt8]] {
        Dictionary(uniqueKeysWithValues: plan.kernelItems.items.map { ($0.key, $0.bytes) })
    }

    @Test func firmwareGetsTheKernelInParts() throws {
        var files = BootFiles()
        files.firmware = try firmware(64 << 10)
        files.kernel = try directory.write("kernel", Data(TestKernel.bzImage()))
        files.initrd = try directory.write("initrd", Data(repeating: 0x77, count: 5000))
        files.commandLine = "quiet"
        let plan = try BootPlan(files: files, memory: RAMLayout(size: 64 << 20), tables: nil)
        #expect(plan.start.mode == .reset)
        let items = items(plan)
        #expect(items[FwCfgKey.commandLineData] == Array("quiet\0".utf8))
        #expect(items[FwCfgKey.kernelData] == [UInt8](repeating: 0x5a, count: 64 << 10))
        #expect(items[FwCfgKey.initrdData]?.count == 5000)
        let setup = try #require(items[FwCfgKey.setupData])
        #expect(setup.count == TestKernel.setupSize)
        #expect(setup[0x210] == 0xb0)
        #expect(setup[0x211] == 0x81)
        #expect(setup.number(0x228, UInt32.self) == 0x2_0000)
        let initrd = try #require(items[FwCfgKey.initrdAddress]).number(0, UInt32.self)
        #expect(setup.number(0x218, UInt32.self) == initrd)
        #expect(initrd % 4096 == 0 && initrd < 64 << 20 && initrd > 60 << 20)
        #expect(plan.kernelItems.files.map(\.name) == ["etc/boot/kernel"])
        #expect(plan.kernelItems.files.first?.bytes == TestKernel.bzImage())
    }

    @Test func firmwareGetsTheEntryOfAnELFKernelThatIsInMemory() throws {
        let ram = try TestRAM(size: 64 << 20, firmware: 64 << 10)
        var files = BootFiles()
        files.firmware = try firmware(64 << 10)
        files.kernel = try directory.write("kernel", Data(TestKernel.elf()))
        let plan = try BootPlan(files: files, memory: ram.layout, tables: nil)
        try plan.load(into: ram.space)
        let items = items(plan)
        #expect(items[FwCfgKey.kernelEntry] == littleEndianBytes(0x100_0002 as UInt32))
        #expect(items[FwCfgKey.kernelAddress] == littleEndianBytes(0x100_0000 as UInt32))
        #expect(items[FwCfgKey.kernelSize] == littleEndianBytes(0x2000 as UInt32))
        #expect(items[FwCfgKey.setupData]?.count == 8192)
        #expect(ram.load(0x100_0000, as: UInt32.self) == 0x0403_0201)
    }
}
