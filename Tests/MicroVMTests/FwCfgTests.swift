import BatonRuntime
import Firmware
import Foundation
import MicroVM
import TestSupport
import Testing

@Suite struct FwCfgTests {
    let ram: TestRAM
    let device: FwCfg

    init() throws {
        ram = try TestRAM(size: 5 << 30, firmware: 64 << 10)
        device = FwCfg(space: ram.space, layout: .ports, memorySize: ram.layout.size, cpuCount: 3)
    }

    // MARK: As firmware does

    private func select(_ key: UInt16) { device.mmioWrite(offset: 0, width: 2, value: UInt64(key)) }

    private func read(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8(device.mmioRead(offset: 1, width: 1)) }
    }

    private func item(_ key: UInt16, _ count: Int) -> [UInt8] {
        select(key)
        return read(count)
    }

    private let request: UInt64 = 0x8000

    /// Does a transfer as Linux does it, by two writes of 4 bytes.
    /// - Returns: what the device has put in place of the control word.
    private func transfer(_ control: UInt32, length: UInt32, to address: UInt64, request: UInt64? = nil) -> UInt32 {
        let place = request ?? self.request
        ram.store(
            littleEndianBytes(control.bigEndian) + littleEndianBytes(length.bigEndian)
                + littleEndianBytes(address.bigEndian), at: place)
        let high = UInt32(truncatingIfNeeded: place >> 32)
        device.mmioWrite(offset: 4, width: 4, value: UInt64(high.byteSwapped))
        device.mmioWrite(offset: 8, width: 4, value: UInt64(UInt32(truncatingIfNeeded: place).byteSwapped))
        return ram.load(place, as: UInt32.self).byteSwapped
    }

    @Test func itemsAreReadByteByByte() {
        #expect(item(FwCfgKey.signature, 6) == Array("QEMU\0\0".utf8))
        #expect(item(FwCfgKey.interface, 4) == [3, 0, 0, 0])
        #expect(item(FwCfgKey.ramSize, 8) == littleEndianBytes(5 << 30 as UInt64))
        #expect(item(FwCfgKey.cpuCount, 2) == [3, 0])
        #expect(item(0x1234, 2) == [0, 0])
        #expect(item(0xffff, 2) == [0, 0])
        // The bit that once meant a write changes nothing.
        #expect(item(FwCfgKey.signature | 0x4000, 4) == Array("QEMU".utf8))
    }

    @Test func theDMARegisterHasASignature() {
        #expect(device.mmioRead(offset: 4, width: 4) == 0x554d_4551)
        #expect(device.mmioRead(offset: 8, width: 4) == 0x4746_4320)
        #expect(device.mmioRead(offset: 4, width: 8) == 0x4746_4320_554d_4551)
        #expect(device.mmioRead(offset: 11, width: 1) == 0x47)
        #expect(!device.accepts(offset: 1, width: 2))
        #expect(!device.accepts(offset: 2, width: 1))
        #expect(!device.accepts(offset: 0, width: 4))
    }

    @Test func filesAreListedByName() throws {
        try device.add(try FwCfgFile("opt/b", Array("second".utf8)))
        try device.add(try FwCfgFile("etc/a", Array("first".utf8)))
        let error = #expect(throws: VMMError.self) { try device.add(try FwCfgFile("opt/b", [])) }
        #expect(error?.message == "duplicate fw_cfg file name: opt/b")
        let list = item(FwCfgKey.directory, 4 + 2 * 64)
        #expect(Array(list[0..<4]) == [0, 0, 0, 2])
        #expect(Array(list[4..<12]) == [0, 0, 0, 5, 0, 0x20, 0, 0])
        #expect(Array(list[12..<18]) == Array("etc/a\0".utf8))
        #expect(Array(list[68..<76]) == [0, 0, 0, 6, 0, 0x21, 0, 0])
        #expect(item(0x20, 5) == Array("first".utf8))
        #expect(item(0x21, 7) == Array("second\0".utf8))
        for index in 0..<61 { try device.add(try FwCfgFile("opt/file\(index)", [])) }
        #expect(throws: VMMError.self) { try device.add(try FwCfgFile("opt/last", [])) }
    }

    @Test func theBoardsFiles() throws {
        let interrupts = InterruptLayout(acpi: true, secondIOAPIC: true)
        let tables = ACPITables(ACPIConfiguration(apicIDs: [0], interrupts: interrupts))
        try device.addBoardFiles(
            memory: ram.layout, tables: tables, bootOrder: ["/a@1/disk@0,0", "/b@2"], panicPort: 0x1505)
        let list = item(FwCfgKey.directory, 4 + 7 * 64)
        let names = (0..<7).map { index in
            String(decoding: list[(4 + 64 * index + 8)...].prefix { $0 != 0 }, as: UTF8.self)
        }
        #expect(
            names == [
                "bootorder", "etc/acpi/rsdp", "etc/acpi/tables", "etc/boot-fail-wait", "etc/e820", "etc/pvpanic-port",
                "etc/table-loader",
            ])
        #expect(item(0x25, 2) == [0x05, 0x15])
        #expect(item(0x20, 19) == Array("/a@1/disk@0,0\n/b@2\0".utf8))
        #expect(item(0x21, 8) == Array("RSD PTR ".utf8))
        // 3 GiB at 0, 2 GiB at 4 GiB.
        let map = item(0x24, 40)
        #expect([0, 8, 20, 28].map { map.number($0, UInt64.self) } == [0, 3 << 30, 4 << 30, 2 << 30])
        #expect([16, 36].map { map.number($0, UInt32.self) } == [1, 1])
    }

    @Test func aTransferReadsAnItem() {
        let select = UInt32(FwCfgKey.signature) << 16 | 0x08
        #expect(transfer(select | 0x02, length: 4, to: 0x9000) == 0)
        #expect(ram.bytes(0x9000, 4) == Array("QEMU".utf8))
        // Behind the end there are zeroes.
        ram.store([0xff, 0xff, 0xff, 0xff], at: 0xa000)
        #expect(transfer(0x02, length: 3, to: 0xa000) == 0)
        #expect(ram.bytes(0xa000, 4) == [0, 0, 0, 0xff])
        #expect(transfer(select | 0x04, length: 2, to: 0) == 0)
        #expect(read(2) == Array("MU".utf8))
        #expect(transfer(select, length: 100, to: 0xa000) == 0)
        #expect(read(1) == Array("Q".utf8))
        // Nothing can be written.
        #expect(transfer(select | 0x10, length: 4, to: 0x9000) == 1)
        #expect(item(FwCfgKey.signature, 4) == Array("QEMU".utf8))
    }

    @Test func aTransferGoesToMemoryOnly() {
        device.set(FwCfgKey.kernelData, [UInt8](repeating: 0x5a, count: 0x3000))
        let select = UInt32(FwCfgKey.kernelData) << 16 | 0x0a
        // Over the end of low RAM, into ROM, nowhere, over the end of the address space.
        #expect(transfer(select, length: 0x3000, to: 0xc000_0000 - 0x1000) == 1)
        #expect(ram.load(0xbfff_ffff, as: UInt8.self) == 0x5a)
        #expect(transfer(select, length: 4, to: 0xffff_0000) == 1)
        #expect(ram.load(0xffff_0000, as: UInt8.self) == 0)
        #expect(transfer(select, length: 4, to: 0xd000_0000) == 1)
        #expect(transfer(select, length: 0x3000, to: UInt64.max - 1) == 1)
        #expect(transfer(select, length: 0x3000, to: 0x1_2000_0000) == 0)
        #expect(ram.load(0x1_2000_2fff, as: UInt8.self) == 0x5a)
        // A request above 4 GiB; one that is not all memory; one in ROM.
        #expect(transfer(select, length: 4, to: 0x9000, request: 0x1_3000_0000) == 0)
        #expect(transfer(select, length: 4, to: 0x9000, request: 0xffff_0000) == 0)
        device.mmioWrite(offset: 8, width: 4, value: UInt64((0xc000_0000 - 4 as UInt32).byteSwapped))
        #expect(ram.load(0xbfff_fffc, as: UInt32.self).byteSwapped == 1)
    }

    /// A transfer of 4 GiB of zeroes would take a second: it is refused.
    @Test func aTransferIsBounded() {
        let select = UInt32(FwCfgKey.signature) << 16 | 0x0a
        #expect(transfer(select, length: UInt32.max, to: 0x10_0000) == 1)
        #expect(ram.load(0x10_0000, as: UInt32.self) == 0)
        #expect(transfer(select, length: 4 + (1 << 20), to: 0x10_0000) == 0)
        #expect(transfer(select & ~2 | 4, length: UInt32.max, to: 0) == 0)
        #expect(transfer(0xffff_0000 | 0x0a, length: 64, to: 0x10_0000) == 0)
    }

    @Test func theKernelIsReadWhenItIsAskedFor() throws {
        var calls = 0
        let directory = try TemporaryDirectory()
        var files = BootFiles()
        files.kernel = try directory.write("kernel", Data(TestKernel.bzImage()))
        files.firmware = try directory.write("bios", Data(count: 64 << 10))
        let plan = try BootPlan(files: files, memory: ram.layout, tables: nil)
        try device.add(try FwCfgFile("opt/a", [1]))
        device.setKernel {
            calls += 1
            return plan.kernelItems
        }
        #expect(item(FwCfgKey.signature, 1) == Array("Q".utf8))
        #expect(calls == 0)
        #expect(item(FwCfgKey.kernelData, 2) == [0x5a, 0x5a])
        #expect(item(FwCfgKey.directory, 4) == [0, 0, 0, 2])
        #expect(Array(item(0x20, 0x206)[0x202...]) == Array("HdrS".utf8))
        #expect(item(0x21, 1) == [1])
        #expect(calls == 1)
    }

    @Test func itsStateGoesToAnotherProcess() throws {
        select(FwCfgKey.signature)
        _ = read(2)
        device.mmioWrite(offset: 4, width: 4, value: UInt64((1 as UInt32).byteSwapped))
        var writer = StateWriter()
        device.save(to: &writer)
        let state = writer.encoded()
        let other = FwCfg(space: ram.space, layout: .ports, memorySize: ram.layout.size, cpuCount: 3)
        try other.load(from: try StateReader(section: "fw_cfg", version: 1, payload: state[...]))
        #expect(other.mmioRead(offset: 1, width: 1) == UInt64(UInt8(ascii: "M")))
        // The half of an address that was written counts.
        ram.store([0, 0, 0, 0x0a, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x90, 0], at: 0x1_0000_8000)
        other.mmioWrite(offset: 8, width: 4, value: UInt64((0x8000 as UInt32).byteSwapped))
        #expect(ram.bytes(0x9000, 4) == Array("QEMU".utf8))

        var damaged = StateWriter()
        damaged.put("selector", 0x1_0000 as UInt64)
        damaged.put("offset", 0 as UInt64)
        damaged.put("dma-high", 0 as UInt64)
        #expect(throws: VMMError.self) {
            try other.load(from: try StateReader(section: "fw_cfg", version: 1, payload: damaged.encoded()[...]))
        }
    }

    @Test func itemsFromTheCommandLine() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.write("file", Data([7, 8]))
        func option(_ text: String) throws -> FwCfgOption {
            try FwCfgOption(try KeyValueOptions(text, impliedKey: "name"))
        }
        #expect(try option("opt/x,string=a").file().bytes == Array("a".utf8))
        #expect(try option("name=opt/x,file=\(path)").file().bytes == [7, 8])
        #expect(try option("opt/x,string=a").warning == nil)
        #expect(try option("etc/x,string=a").warning?.contains("prefixed") == true)
        let long = String(repeating: "n", count: 56)
        for wrong in ["opt/x", "string=a", "opt/x,string=a,file=b", "opt/x,strin=a", "\(long),string=a"] {
            #expect(throws: VMMError.self) { try option(wrong) }
        }
        let missing = #expect(throws: VMMError.self) { try option("opt/x,file=/nowhere").file() }
        #expect(missing?.message.hasPrefix("can't load /nowhere: ") == true)
    }
}
