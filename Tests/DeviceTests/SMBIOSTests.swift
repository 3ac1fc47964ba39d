import BatonRuntime
import Firmware
import Foundation
import TestSupport
import Testing

/// SMBIOS structures, read as a guest reads them.
@Suite struct SMBIOSTests {
    private struct Structure {
        let type: UInt8
        let handle: UInt16
        /// With the head.
        let fields: [UInt8]
        let strings: [String]

        /// The string whose number is at an offset; nil for none.
        func text(_ offset: Int) -> String? {
            let number = Int(fields[offset])
            return number == 0 ? nil : strings[number - 1]
        }
        func number<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type) -> T {
            fields.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
        }
    }

    private func parse(_ bytes: [UInt8]) throws -> [Structure] {
        var structures: [Structure] = []
        var place = 0
        while place < bytes.count {
            let end = place + Int(bytes[place + 1])
            var strings: [String] = []
            var next = end
            while bytes[next] != 0 {
                let text = bytes[next...].prefix { $0 != 0 }
                strings.append(String(decoding: text, as: UTF8.self))
                next = text.endIndex + 1
            }
            next += strings.isEmpty ? 2 : 1
            structures.append(
                Structure(
                    type: bytes[place], handle: UInt16(bytes[place + 2]) | UInt16(bytes[place + 3]) << 8,
                    fields: Array(bytes[place..<end]), strings: strings))
            place = next
        }
        #expect(place == bytes.count)
        return structures
    }

    private var machine: SMBIOSMachine {
        var machine = SMBIOSMachine(version: "virt", memory: [0x8000_0000..<0x8000_0000 + 512 << 20])
        machine.processorFamily = 0x201
        return machine
    }
    private func tables(_ arguments: [String] = [], _ machine: SMBIOSMachine? = nil) throws -> SMBIOSTables {
        try SMBIOSTables(machine ?? self.machine, try SMBIOSOptions(arguments))
    }
    private func structures(_ arguments: [String] = [], _ machine: SMBIOSMachine? = nil) throws -> [Structure] {
        try parse(try tables(arguments, machine).structures)
    }

    @Test func theStandardStructuresAreQEMUs() throws {
        let all = try structures()
        #expect(all.map(\.type) == [1, 3, 4, 16, 17, 19, 32, 127])
        #expect(all.map(\.fields.count) == [27, 22, 48, 23, 40, 31, 11, 4])
        #expect(all.map(\.handle) == [0x100, 0x300, 0x400, 0x1000, 0x1100, 0x1300, 0x2000, 0x7f00])
        #expect(all[0].strings == ["QEMU", "QEMU Virtual Machine", "virt"])
        #expect(all[2].text(4) == "CPU 0" && all[2].number(0x28, UInt16.self) == 0x201)
        #expect(all[2].number(0x14, UInt16.self) == 2000 && all[2].fields[0x18] == 0x41)
        #expect(all[3].number(7, UInt32.self) == 512 << 10 && all[3].number(13, UInt16.self) == 1)
        #expect(all[4].text(16) == "DIMM 0" && all[4].number(12, UInt16.self) == 512)
        #expect(all[5].number(4, UInt32.self) == 0x8000_0000 >> 10)
        #expect(all[5].number(8, UInt32.self) == (0x8000_0000 + 512 << 20 - 1) >> 10)
    }

    @Test func theEntryPointHasTheLength() throws {
        let tables = try tables()
        let anchor = tables.anchor
        #expect(anchor.count == 24 && anchor.starts(with: Array("_SM3_".utf8)) && anchor[6] == 24 && anchor[7] == 3)
        #expect(Int(anchor[12]) | Int(anchor[13]) << 8 == tables.structures.count)
        #expect(try tables.files().map(\.name) == ["etc/smbios/smbios-anchor", "etc/smbios/smbios-tables"])
    }

    @Test func whatIsGivenIsSaid() throws {
        let all = try structures([
            "type=0,vendor=v,version=1,date=01/02/2026,release=3.4,uefi=on",
            "type=1,manufacturer=me,product=,uuid=00112233-4455-6677-8899-aabbccddeeff,sku=s,family=f,serial=n",
            "type=1,manufacturer=you", "type=2,location=here,asset=a", "type=3,sku=c,asset=b",
            "type=4,sock_pfx=S,part=p,max-speed=3000,processor-family=0x34,processor-id=0x1122334455667788",
            "type=8,internal_reference=i,external_reference=e,connector_type=2,port_type=0x10",
            "type=11,value=a,value=b",
            "type=17,loc_pfx=M,bank=k,speed=3200",
        ])
        #expect(all.map(\.type) == [0, 1, 2, 3, 4, 8, 11, 16, 17, 19, 32, 127])
        #expect(all[0].strings == ["v", "1", "01/02/2026"] && all[0].fields[0x13] == 0x1c)
        #expect(Array(all[0].fields[0x14...0x15]) == [3, 4])
        #expect(all[1].text(4) == "you" && all[1].text(5) == nil && all[1].text(7) == "n")
        #expect(
            Array(all[1].fields[8..<24]) == [
                0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
            ])
        #expect(all[1].text(0x19) == "s" && all[1].text(0x1a) == "f")
        #expect(all[2].text(8) == "a" && all[2].text(10) == "here" && all[2].number(11, UInt16.self) == 0x300)
        #expect(all[3].text(8) == "b" && all[3].text(0x15) == "c")
        #expect(all[4].text(4) == "S 0" && all[4].text(0x22) == "p" && all[4].number(0x14, UInt16.self) == 3000)
        #expect(all[4].fields[6] == 0x34 && all[4].number(8, UInt64.self) == 0x1122_3344_5566_7788)
        #expect(all[5].text(4) == "i" && all[5].text(6) == "e" && Array(all[5].fields[7...8]) == [2, 0x10])
        #expect(all[6].fields[4] == 2 && all[6].strings == ["a", "b"])
        #expect(all[8].text(16) == "M 0" && all[8].text(17) == "k" && all[8].number(21, UInt16.self) == 3200)
    }

    @Test func largeMachinesHaveSeveral() throws {
        var large = machine
        large.memory = [0x8000_0000..<0x8000_0000 + 40 << 30]
        (large.sockets, large.cores, large.threads) = (2, 4, 2)
        let all = try structures([], large)
        #expect(all.filter { $0.type == 4 }.map { $0.text(4) } == ["CPU 0", "CPU 1"])
        #expect(all.first { $0.type == 4 }.map { Array($0.fields[0x23...0x25]) } == [4, 4, 8])
        #expect(all.filter { $0.type == 17 }.map { $0.number(12, UInt16.self) } == [16384, 16384, 8192])
        let mapped = try #require(all.first { $0.type == 19 })
        #expect(mapped.number(4, UInt32.self) == 0x8000_0000 >> 10 && mapped.number(15, UInt64.self) == 0)
    }

    @Test func aFileIsTakenAsItIs() throws {
        let directory = try TemporaryDirectory()
        let bytes: [UInt8] = [1, 5, 0, 9, 1] + Array("x\0\0".utf8)
        try directory.write("one", Data(bytes))
        let all = try structures(["file=\(directory.file("one"))"])
        #expect(all.map(\.type) == [1, 3, 4, 16, 17, 19, 32, 127] && all[0].strings == ["x"] && all[0].handle == 0x900)
        for (damage, name) in [
            ([1, 4, 0, 0, 0], "short"), ([1, 200, 0, 0, 0, 0], "long"), ([1, 5, 0, 9, 1, 1, 1], "end"),
        ]
            as [([UInt8], String)]
        {
            try directory.write(name, Data(damage))
            let error = #expect(throws: VMMError.self) { try SMBIOSOptions(["file=\(directory.file(name))"]) }
            #expect(error?.message.contains("is no structure") == true)
        }
        let both = "file=\(directory.file("one"))"
        #expect(refusal(["type=1,serial=1", both]) == "can't load type 1 struct, fields already specified!")
        #expect(refusal([both, "type=1,serial=1"]) == "can't add fields, binary file already loaded!")
    }

    private func refusal(_ arguments: [String]) -> String? {
        do throws(VMMError) {
            _ = try SMBIOSOptions(arguments)
            return nil
        } catch {
            return error.message.components(after: ": ")
        }
    }

    @Test func whatIsWrongIsRefused() {
        #expect(refusal(["serial=1"]) == "Must specify type= or file=")
        #expect(refusal(["type=128"]) == "out of range!")
        #expect(refusal(["type=16"]) == "Don't know how to build fields for SMBIOS type 16")
        #expect(refusal(["type=0,release=1"]) == "Invalid release")
        #expect(refusal(["type=1,uuid=1"]) == "Invalid UUID")
        #expect(refusal(["type=1,colour=red"]) == "Invalid parameter 'colour'")
        #expect(refusal(["type=17,speed=70000"]) != nil)
        #expect(refusal(["type=3,sku=\(String(repeating: "x", count: 5000))"])?.contains("longer than") == true)
    }

    @Test func otherTablesAreTold() throws {
        let digest = try tables().digest
        #expect(try tables().digest == digest)
        #expect(try tables(["type=1,serial=1"]).digest != digest)
    }
}

extension String {
    /// What is behind the first occurrence of a text; all of it when there is none.
    fileprivate func components(after text: String) -> String {
        range(of: text).map { String(self[$0.upperBound...]) } ?? self
    }
}
