import BatonRuntime
import CBaton
import Testing

struct SectionContainerTests {
    private func sample() -> SectionContainer {
        var container = SectionContainer(kind: .checkpoint)
        var one = StateWriter()
        one.put("pc", 0x8000_0000 as UInt64)
        one.put("name", "hart")
        one.put("data", bytes: [1, 2, 3])
        one.put("list", [4, 5, 6])
        one.put("flag", true)
        one.put("later", 7 as UInt64, optional: true)
        container.add("cpu0", version: 3, one)
        var two = StateWriter()
        two.put("x", 1 as UInt64)
        container.add("extra", version: 1, optional: true, two)
        return container
    }

    private func error(parsing bytes: [UInt8]) -> String {
        do {
            _ = try SectionContainer(kind: .checkpoint, parsing: bytes, name: "f")
            return "parsed"
        } catch {
            return error.message
        }
    }

    @Test func fieldsComeBackAsWritten() throws {
        let container = try SectionContainer(kind: .checkpoint, parsing: sample().encoded(), name: "f")
        let section = try #require(container.section("cpu0"))
        #expect(section.version == 3)
        let reader = try container.reader(section)
        #expect(try reader.unsigned("pc") == 0x8000_0000)
        #expect(try reader.string("name") == "hart")
        #expect(try reader.bytes("data") == [1, 2, 3])
        #expect(try reader.array("list") == [4, 5, 6])
        #expect(try reader.bool("flag"))
        try reader.finish()  // "later" is optional
        #expect(container.section("extra")?.optional == true)
    }

    @Test func accessorsRefuseWhatDoesNotFit() throws {
        let container = sample()
        let reader = try container.reader(try #require(container.section("cpu0")))
        #expect(throws: VMMError.self) { try reader.unsigned("absent") }
        #expect(throws: VMMError.self) { try reader.unsigned("name") }
        #expect(throws: VMMError.self) { try reader.unsigned("pc", in: 0...10) }
        #expect(throws: VMMError.self) { try reader.bytes("data", count: 4...4) }
        #expect(throws: VMMError.self) { try reader.array("list", count: 0...2) }
        #expect(throws: VMMError.self) { try reader.finish() }
    }

    @Test func anythingElseIsNotAVMStateFile() {
        #expect(error(parsing: []) == "f is not a vmstate file")
        #expect(error(parsing: Array("QEVM and more".utf8)) == "f is not a vmstate file")
        var state = SectionContainer(kind: .cprState)
        state.add("cpr", version: 1, StateWriter())
        #expect(error(parsing: state.encoded()) == "f is not a vmstate file")
    }

    @Test func aFutureFormatIsNamed() {
        var bytes = sample().encoded()
        bytes[8] = 9
        #expect(error(parsing: bytes).contains("damaged header"))
        let crc = bytes[..<24].withUnsafeBytes { cbaton_crc32c(0, $0.baseAddress, $0.count) }
        bytes.replaceSubrange(24..<28, with: littleEndianBytes(crc))
        #expect(error(parsing: bytes) == "f has format version 9, this VMM reads version 1")
    }

    @Test func everyTruncationIsRefused() {
        let bytes = sample().encoded()
        for length in 0..<bytes.count {
            #expect(error(parsing: Array(bytes[..<length])) != "parsed", "cut at \(length)")
        }
        #expect(error(parsing: bytes + [0]).contains("bytes after its last section"))
    }

    @Test func everyChangedByteIsNoticed() {
        let bytes = sample().encoded()
        for index in bytes.indices {
            var changed = bytes
            changed[index] ^= 0x55
            #expect(error(parsing: changed) != "parsed", "byte \(index)")
        }
    }

    private func section(_ count: Int, _ name: (Int) -> String) -> ArraySlice<UInt8> {
        var writer = StateWriter()
        for index in 0..<count { writer.put(name(index), UInt64(index)) }
        return writer.encoded()[...]
    }

    @Test(arguments: [2, 16, 17, 5000])
    func aFieldThatOccursTwiceIsRefused(_ count: Int) throws {
        let good = try StateReader(section: "s", version: 1, payload: section(count) { "field\($0)" })
        for index in (0..<count).reversed() { #expect(try good.unsigned("field\(index)") == UInt64(index)) }
        try good.finish()
        let twice = section(count) { $0 == count - 1 ? "field0" : "field\($0)" }
        let error = #expect(throws: VMMError.self) { try StateReader(section: "s", version: 1, payload: twice) }
        #expect(error?.message == "field 'field0' of section 's' occurs twice")
    }

    @Test func moreSectionsThanAnyMachineHasAreRefused() {
        var container = SectionContainer(kind: .checkpoint)
        for index in 0...(1 << 16) { container.add("s\(index)", version: 1, StateWriter()) }
        #expect(error(parsing: container.encoded()) == "f has 65537 sections, at most 65536 are accepted")
    }
}
