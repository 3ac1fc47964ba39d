import BatonRuntime
import Firmware
import Foundation
import MicroVM
import TestSupport
import Testing

@Suite struct ACPITests {
    let directory: TemporaryDirectory
    init() throws { directory = try TemporaryDirectory() }

    /// Boards that differ in all that the tables depend on.
    static let configurations: [ACPIConfiguration] = {
        var small = ACPIConfiguration(apicIDs: [0], interrupts: InterruptLayout(acpi: true, secondIOAPIC: false))
        small.hasPIC = false
        small.hasTimerOverride = false
        small.hasSerial = false
        small.pci = ACPIConfiguration.PCI(highMemory: nil, interruptBase: 12)
        let both = InterruptLayout(acpi: true, secondIOAPIC: true)
        var middle = ACPIConfiguration(apicIDs: [0, 1, 2, 3], interrupts: both)
        middle.hasRTC = true
        middle.virtioSlots = [0, 9, 10, 23]
        var large = ACPIConfiguration(apicIDs: (0..<300).map { UInt32($0) }, interrupts: both)
        large.hasRTC = true
        large.panicPort = MemoryMap.panicPort
        large.virtioSlots = Array(0..<24)
        large.pci = ACPIConfiguration.PCI(
            highMemory: MemoryMap.pciHighMemory(physicalAddressBits: 46, ram: RAMLayout(size: 8 << 30)),
            interruptBase: 16)
        return [small, middle, large]
    }()

    /// The tables as a direct start puts them into memory.
    private func placed(_ configuration: ACPIConfiguration) throws -> (tables: ACPITableSet, ram: TestRAM) {
        let ram = try TestRAM(size: 64 << 20)
        var files = BootFiles()
        files.kernel = try directory.write("kernel", Data(TestKernel.bzImage()))
        let plan = try BootPlan(files: files, memory: ram.layout, tables: ACPITables(configuration))
        try plan.load(into: ram.space)
        let root: UInt64 = ram.load(plan.start.rsi + 0x70)
        return (try ACPITableSet(rsdpAt: root, bytes: ram.bytes), ram)
    }

    @Test(arguments: 0..<3) func theTablesAreFoundFromTheRoot(index: Int) throws {
        let configuration = Self.configurations[index]
        let tables = try placed(configuration).tables.tables
        let names = ["APIC", "DSDT", "FACP"] + (configuration.pci == nil ? [] : ["MCFG"])
        #expect(tables.keys.sorted() == names)
        if let mcfg = tables["MCFG"] {
            #expect(mcfg.count == 60)
            #expect(mcfg.number(44, UInt64.self) == 0xe000_0000)
            #expect(Array(mcfg[52..<56]) == [0, 0, 0, 255])
        }
    }

    @Test(arguments: 0..<3) func firmwareMakesTheSameTables(index: Int) throws {
        let tables = ACPITables(Self.configurations[index])
        let (_, ram) = try placed(Self.configurations[index])
        let files = try tables.firmwareFiles().map { FwCfgFileContents(name: $0.name, bytes: $0.bytes) }
        #expect(files.map(\.name) == ["etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"])
        // At the places of a direct start they must be what that has made.
        let linker = FirmwareLinker(Array(files.prefix(2)), commands: files[2].bytes) { name, align, zone in
            #expect(name == "etc/acpi/rsdp" ? (align, zone) == (16, 2) : (align, zone) == (64, 1))
            return name == "etc/acpi/rsdp" ? 0xe_0000 : 0xe_0040
        }
        #expect(linker.problems.isEmpty)
        #expect(linker.blobs["etc/acpi/rsdp"] == ram.bytes(0xe_0000, 36))
        let blob = try #require(linker.blobs["etc/acpi/tables"])
        #expect(blob == ram.bytes(0xe_0040, blob.count))
        // Elsewhere they hold as well.
        let high = FirmwareLinker(Array(files.prefix(2)), commands: files[2].bytes) { name, _, _ in
            name == "etc/acpi/rsdp" ? 0xf_5000 : 0xbffe_0000
        }
        let set = try ACPITableSet(rsdpAt: 0xf_5000) { address, count in
            let name = address < 0x10_0000 ? "etc/acpi/rsdp" : "etc/acpi/tables"
            let start = Int(address - (high.addresses[name] ?? 0))
            return Array((high.blobs[name] ?? [])[start..<start + count])
        }
        #expect(set.tables["APIC"] != nil)
    }

    @Test func sleepAndResetAreTheEventDevices() throws {
        let fadt = try #require(try placed(Self.configurations[0]).tables.tables["FACP"])
        #expect(fadt[8] == 5)
        #expect(fadt.count == 268)
        // Hardware reduced, reset register, button as a device.
        #expect(fadt.number(112, UInt32.self) & 0x10_0410 == 0x10_0410)
        func register(_ offset: Int) -> UInt64 { fadt.number(offset + 4, UInt64.self) }
        #expect(Array(fadt[116..<120]) == [0, 8, 0, 1])
        #expect(register(116) == 0xfea0_0202)
        #expect(fadt[128] == 0x42)
        #expect(register(244) == 0xfea0_0200)
        #expect(register(256) == 0xfea0_0201)
        // "No RTC" where there is none.
        #expect(fadt.number(109, UInt16.self) & 0x20 != 0 && fadt[108] == 0)
        let clocked = try #require(try placed(Self.configurations[1]).tables.tables["FACP"])
        #expect(clocked.number(109, UInt16.self) & 0x20 == 0 && clocked[108] == 0x32)
    }

    /// The MADT's entries by type.
    private func interruptEntries(_ configuration: ACPIConfiguration) throws -> [UInt8: [[UInt8]]] {
        let madt = try #require(try placed(configuration).tables.tables["APIC"])
        var entries: [UInt8: [[UInt8]]] = [:]
        var place = 44
        while place < madt.count {
            let length = Int(madt[place + 1])
            try #require(length >= 2 && place + length <= madt.count)
            entries[madt[place], default: []].append(Array(madt[place..<place + length]))
            place += length
        }
        #expect(madt.number(36, UInt32.self) == 0xfee0_0000)
        #expect(madt.number(40, UInt32.self) == (configuration.hasPIC ? 1 : 0))
        return entries
    }

    @Test func cpusAndInterruptControllersAreListed() throws {
        let small = try interruptEntries(Self.configurations[0])
        #expect(small[0] == [[0, 8, 0, 0, 1, 0, 0, 0]])
        #expect(small[1] == [[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]])
        // PCI's interrupts are level triggered, though they are among ISA's.
        #expect(small[2]?.map { $0[3] } == [12, 13, 14, 15])
        #expect(small[2]?.allSatisfy { $0[8] == 0x0d } == true)
        #expect(small[4]?.count == 1)

        let middle = try interruptEntries(Self.configurations[1])
        #expect(middle[0]?.map { $0[3] } == [0, 1, 2, 3])
        #expect(middle[1]?.map { $0.number(4, UInt32.self) } == [0xfec0_0000, 0xfec1_0000])
        #expect(middle[1]?.map { $0.number(8, UInt32.self) } == [0, 24])
        #expect(middle[2] == [[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]])

        // Ids above 254 do not fit into the old entries.
        let large = try interruptEntries(Self.configurations[2])
        #expect(large[0]?.count == 255)
        #expect(large[9]?.map { $0.number(4, UInt32.self) } == (255..<300).map { UInt32($0) })
        #expect(large[9]?.last?.number(12, UInt32.self) == 299)
        #expect(large[4] == nil)
        #expect(large[10]?.count == 1)
    }

    /// The encoding of one device, byte by byte.
    @Test func aVirtioDeviceInTheDSDT() throws {
        let dsdt = try #require(try placed(Self.configurations[1]).tables.tables["DSDT"])
        #expect(dsdt[8] == 2)
        var device: [UInt8] = [0x5b, 0x82, 0x42, 0x04] + Array("VR10".utf8)
        device += [0x08] + Array("_HID".utf8) + [0x0d] + Array("LNRO0005".utf8) + [0]
        device += [0x08] + Array("_UID".utf8) + [0x0a, 10]
        device += [0x08] + Array("_CCA".utf8) + [0x01]
        device += [0x08] + Array("_CRS".utf8) + [0x11, 0x1a, 0x0a, 0x17]
        device += [0x86, 9, 0, 1] + littleEndianBytes(0xfeb0_1400 as UInt32) + littleEndianBytes(512 as UInt32)
        device += [0x89, 6, 0, 1, 1] + littleEndianBytes(34 as UInt32)
        device += [0x79, 0]
        #expect(dsdt.find(device) != nil)
        #expect(dsdt.find(Array("VR11".utf8)) == nil)
        // PNP0501, and \_S5 of type 5.
        #expect(dsdt.find([0x0c, 0x41, 0xd0, 0x05, 0x01]) != nil)
        #expect(dsdt.find([0x08, 0x5c] + Array("_S5_".utf8) + [0x12, 0x07, 4, 0x0a, 5, 0, 0, 0]) != nil)
    }

    /// What the board does not have is not described.
    @Test func devicesAreThereByOption() throws {
        let identifiers: [(String, [UInt8])] = [
            ("serial", [0x0c, 0x41, 0xd0, 0x05, 0x01]), ("clock", [0x0c, 0x41, 0xd0, 0x0b, 0x00]),
            ("panic", Array("QEMU0001".utf8)), ("PCI", Array("PNP0A08".utf8)), ("virtio", Array("LNRO0005".utf8)),
            ("fw_cfg", Array("QEMU0002".utf8)), ("button", Array("PNP0C0C".utf8)),
        ]
        func devices(_ index: Int) throws -> [String] {
            let dsdt = try #require(try placed(Self.configurations[index]).tables.tables["DSDT"])
            return identifiers.filter { dsdt.find($0.1) != nil }.map(\.0)
        }
        #expect(try devices(0) == ["PCI", "fw_cfg", "button"])
        #expect(try devices(1) == ["serial", "clock", "virtio", "fw_cfg", "button"])
        #expect(try devices(2) == identifiers.map(\.0))
    }

    static let iasl = Products.find("iasl")

    /// ACPICA's compiler reads the tables, and compiles what it has read without an error or warning.
    @Test(.enabled(if: iasl != nil, "needs iasl (acpica-tools)"), arguments: 0..<3)
    func iaslAgrees(index: Int) throws {
        let iasl = try #require(Self.iasl)
        for (name, bytes) in try placed(Self.configurations[index]).tables.tables {
            let file = try directory.write("\(name).dat", Data(bytes))
            let source = "\(directory.path)/\(name).dsl"
            _ = try ChildProcess.run([iasl, "-d", file], by: .seconds(60))
            let text = try String(contentsOfFile: source, encoding: .utf8)
            #expect(!text.contains("ERROR"), "\(name): \(text)")
            let output = try ChildProcess.run([iasl, "-oa", "-p", "\(directory.path)/again", source], by: .seconds(60))
            // What is no AML is only counted in lines.
            #expect(name == "DSDT" ? output.contains("0 Errors, 0 Warnings") : !output.contains("Error "), "\(output)")
            let again = try Data(contentsOf: URL(fileURLWithPath: "\(directory.path)/again.aml"))
            // The compiler puts its own name into the header.
            #expect(again.dropFirst(36) == Data(bytes.dropFirst(36)), "\(name)")
        }
    }
}
