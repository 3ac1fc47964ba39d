import BatonRuntime
import DeviceTestSupport
import Firmware
import Foundation
import TestSupport
import Testing

/// The flash chips, as a driver of the guest uses them.
@Suite struct CFIFlashTests {
    private let directory: TemporaryDirectory
    private let path: String
    private let space = AddressSpace()
    private let backend: BlockBackend
    private let flash: CFIFlash

    private static let base: UInt64 = 0x2000_0000
    private static let size = 1 << 20
    /// What both chips have in their status.
    private static let ready: UInt64 = 0x0080_0080

    init() throws {
        directory = try TemporaryDirectory()
        path = try directory.write("flash", Data(repeating: 0x5a, count: Self.size))
        backend = try BlockBackend(id: "p", filename: path, readOnly: false)
        flash = try Self.make(space, backend)
        try flash.readContents()
    }

    private static func make(_ space: AddressSpace, _ backend: BlockBackend?) throws -> CFIFlash {
        try CFIFlash(
            name: "flash0", block: TestMachine.block("flash0", size), at: base, backend: backend, space: space)
    }

    private func write(_ word: UInt64, _ offset: UInt64 = 0, width: Int = 4) {
        #expect(space.mmioWrite(Self.base + offset, width: width, value: word))
    }

    /// What a CPU loads.
    private func read(_ offset: UInt64 = 0) throws -> UInt64 {
        if space.deviceAnswersLoads(at: Self.base + offset) {
            return try #require(space.mmioRead(Self.base + offset, width: 4))
        }
        return UInt64(
            try #require(space.dma(Self.base + offset, length: 4, writing: false)).loadUnaligned(as: UInt32.self))
    }

    private func file(_ range: Range<Int>) throws -> [UInt8] {
        Array(try Data(contentsOf: URL(fileURLWithPath: path))[range])
    }

    private func erase(_ offset: UInt64) {
        write(0x0020_0020, offset)
        write(0x00d0_00d0, offset)
    }

    @Test func contentsAreMemoryUntilACommandAsksForMore() throws {
        #expect(!space.deviceAnswersLoads(at: Self.base))
        #expect(try read(0x100) == 0x5a5a_5a5a)
        write(0x0070_0070)
        #expect(try read(0x100) == Self.ready)
        write(0x00ff_00ff)
        #expect(!space.deviceAnswersLoads(at: Self.base))
        #expect(try read(0x100) == 0x5a5a_5a5a)
    }

    @Test func aDriverFindsOutWhatItIs() throws {
        write(0x0090_0090)
        #expect(try read(0) == 0x0089_0089)
        #expect(try read(4) == 0x0018_0018)
        write(0x00ff_00ff)
        write(0x0098_0098, 0x55 * 4)
        func query(_ place: UInt64) throws -> UInt64 {
            let value = try read(place * 4)
            #expect(value >> 16 == value & 0xffff)
            return value & 0xffff
        }
        #expect(try (0x10..<0x13).map(query) == Array("QRY".utf8).map(UInt64.init))
        #expect(try query(0x13) == 1)
        // 2^19 bytes in each chip; buffers of 2 KiB; four blocks of 128 KiB.
        #expect(try query(0x27) == 19)
        #expect(try query(0x2a) == 11)
        #expect(try (0x2d..<0x31).map(query) == [3, 0, 0, 2])
        #expect(try query(0x1000) == 0)
    }

    @Test func aBlockIsErasedAndItsWordsAreProgrammedInMemoryAndInTheFile() throws {
        erase(0x4_0010)
        #expect(try read() == Self.ready)
        write(0x0040_0040, 0x4_0020)
        write(0x1234_5678, 0x4_0020)
        #expect(try read() == Self.ready)
        write(0x00ff_00ff)
        #expect(try read(0x4_0020) == 0x1234_5678)
        #expect(try read(0x3_fffc) == 0x5a5a_5a5a)
        #expect(try read(0x4_0000) == 0xffff_ffff)
        #expect(try read(0x7_fffc) == 0xffff_ffff)
        #expect(try read(0x8_0000) == 0x5a5a_5a5a)
        #expect(try file(0x3_ffff..<0x4_0001) == [0x5a, 0xff])
        #expect(try file(0x4_0020..<0x4_0025) == [0x78, 0x56, 0x34, 0x12, 0xff])
    }

    @Test func bitsAreOnlyCleared() throws {
        write(0x0010_0010, 8)
        write(0x0ff0_0ff0, 8)
        write(0x00ff_00ff)
        #expect(try read(8) == 0x0a50_0a50)
    }

    @Test func aBufferIsWrittenAtOnce() throws {
        erase(0)
        write(0x00e8_00e8, 0x1000)
        #expect(try read() == Self.ready)
        write(0x0002_0002, 0x1000)
        for index in 0..<3 as Range<UInt64> { write(index + 1, 0x1008 + 4 * index) }
        #expect(try file(0x1008..<0x100c) == [0xff, 0xff, 0xff, 0xff])
        write(0x00d0_00d0, 0x1000)
        #expect(try read() == Self.ready)
        write(0x00ff_00ff)
        #expect(try [0x1004, 0x1008, 0x100c, 0x1010, 0x1014].map(read) == [0xffff_ffff, 1, 2, 3, 0xffff_ffff])
        #expect(try file(0x1008..<0x100c) == [1, 0, 0, 0])
    }

    @Test func whatIsOutsideOfTheBufferIsAnErrorAndWritesNothing() throws {
        write(0x00e8_00e8, 0x1000)
        write(0x0001_0001, 0x1000)
        write(0, 0x1000)
        write(0, 0x2000)
        write(0x00d0_00d0, 0x1000)
        #expect(try read() == 0x0090_0090)
        write(0x0050_0050)
        write(0x0070_0070)
        #expect(try read() == Self.ready)
        write(0x00ff_00ff)
        #expect(try [0x1000, 0x2000].map(read) == [0x5a5a_5a5a, 0x5a5a_5a5a])
    }

    @Test func aReadOnlyFileStaysAsItIs() throws {
        let readOnly = try BlockBackend(id: "r", filename: path, readOnly: true)
        let (space, before) = (AddressSpace(), try file(0..<Self.size))
        let flash = try Self.make(space, readOnly)
        try flash.readContents()
        func status() -> UInt64? { space.mmioRead(Self.base, width: 4) }
        flash.mmioWrite(offset: 0, width: 4, value: 0x0020_0020)
        flash.mmioWrite(offset: 0, width: 4, value: 0x00d0_00d0)
        #expect(status() == 0x00a0_00a0)
        flash.mmioWrite(offset: 0, width: 4, value: 0x0040_0040)
        flash.mmioWrite(offset: 0, width: 4, value: 0)
        #expect(status() == 0x00b0_00b0)
        #expect(try file(0..<Self.size) == before)
        #expect(space.dma(Self.base, length: 4, writing: false)?.load(as: UInt32.self) == 0x5a5a_5a5a)
    }

    /// The next start would take it for one of the format, whose header may name any file of the host's.
    @Test func anImageWhoseFormatWasGuessedStaysRaw() throws {
        let guessed = try BlockBackend(id: "g", filename: path, readOnly: false, formatIsKnown: false)
        let space = AddressSpace()
        let flash = try Self.make(space, guessed)
        try flash.readContents()
        func program(_ word: UInt64, _ offset: UInt64) {
            flash.mmioWrite(offset: offset, width: 4, value: 0x0040_0040)
            flash.mmioWrite(offset: offset, width: 4, value: word)
        }
        for word in [0x0020_0020, 0x00d0_00d0] { flash.mmioWrite(offset: 0, width: 4, value: UInt64(word)) }
        let qcow2 = UInt64(littleEndian: 0xfb49_4651)
        program(qcow2, 0)
        #expect(flash.mmioRead(offset: 0, width: 4) == 0x0090_0090)
        #expect(try file(0..<4) == [0xff, 0xff, 0xff, 0xff])
        flash.mmioWrite(offset: 0, width: 4, value: 0x0050_0050)
        program(qcow2, 0x200)
        program(0x1234_5678, 0)
        #expect(flash.mmioRead(offset: 0, width: 4) == Self.ready)
        #expect(try file(0..<4) == [0x78, 0x56, 0x34, 0x12])
        #expect(try file(0x200..<0x204) == Array("QFI".utf8) + [0xfb])
        #expect(space.dma(Self.base, length: 4, writing: false)?.load(as: UInt32.self) == 0x1234_5678)
    }

    /// In the middle of each command; what another VMM then has goes on from there.
    @Test func anUpdateKeepsWhatIsInHand() throws {
        #expect(flash.isAsAtPowerOn == true)
        erase(0)
        write(0x00e8_00e8, 0x1000)
        write(0x0001_0001, 0x1000)
        write(0x1111_1111, 0x1000)
        #expect(flash.isAsAtPowerOn == false)
        let next = AddressSpace()
        let other = try Self.make(next, backend)
        try other.readContents()
        try loadState(savedState(flash), into: other)
        #expect(next.deviceAnswersLoads(at: Self.base))
        other.mmioWrite(offset: 0x1004, width: 4, value: 0x2222_2222)
        other.mmioWrite(offset: 0x1000, width: 4, value: 0x00d0_00d0)
        #expect(try file(0x1000..<0x1008) == [0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22])

        func damaged(_ change: (inout StateWriter) -> Void) -> VMMError? {
            var writer = StateWriter()
            change(&writer)
            return #expect(throws: VMMError.self) { try loadState(writer.encoded(), into: other) }
        }
        let missing = damaged {
            $0.put("command", 0xe8 as UInt64)
            $0.put("step", 3 as UInt64)
            $0.put("errors", 0 as UInt64)
            $0.put("words-left", 0 as UInt64)
        }
        #expect(missing?.message.contains("the flash's buffer is missing") == true, "\(String(describing: missing))")
        let elsewhere = damaged {
            $0.put("command", 0xe8 as UInt64)
            $0.put("step", 2 as UInt64)
            $0.put("errors", 0 as UInt64)
            $0.put("words-left", 0 as UInt64)
            $0.put("buffer-start", 8 as UInt64)
            $0.put("buffer", bytes: [UInt8](repeating: 0, count: 4096))
        }
        #expect(elsewhere?.message.contains("no start of one") == true, "\(String(describing: elsewhere))")
    }

    @Test func aGuestThatWritesAnythingChangesNothingElse() throws {
        var random = Randomness(seed: 20)
        let commands: [UInt64] = [0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xe8, 0xd0, 0xff, 0x01]
        for _ in 0..<20_000 {
            let width = [1, 2, 4].randomElement(using: &random) ?? 4
            let offset = UInt64.random(in: 0..<UInt64(Self.size / width), using: &random) * UInt64(width)
            let any = UInt64.random(in: 0...0xffff_ffff, using: &random) & (1 << UInt64(8 * width) - 1)
            let word = Bool.random(using: &random) ? commands.randomElement(using: &random) ?? 0 : any
            write(word, offset, width: width)
            _ = space.mmioRead(Self.base + offset, width: width)
            _ = savedState(flash)
        }
        flash.reset()
        #expect(flash.isAsAtPowerOn == true)
        let memory = try #require(space.dma(Self.base, length: UInt64(Self.size), writing: false))
        #expect(try file(0..<Self.size) == Array(UnsafeRawBufferPointer(start: memory, count: Self.size)))
    }
}
