import BatonRuntime
import Foundation
import TestSupport
import Testing
import Virtio

@Suite struct VirtioBlockTests {
    let machine: TestMachine
    let directory: TemporaryDirectory
    let wire = Wire()
    static let header = TestMachine.ramBase + 0x10_0000
    static let data = TestMachine.ramBase + 0x11_0000
    static let status = TestMachine.ramBase + 0x12_0000
    static let size = 1 << 20

    init() throws {
        machine = try TestMachine()
        directory = try TemporaryDirectory()
        var contents = Data(count: Self.size)
        for index in 0..<Self.size { contents[index] = UInt8(truncatingIfNeeded: index / 512) }
        try directory.write("disk", contents)
    }

    private func makeDriver(
        readOnly: Bool = false, formatIsKnown: Bool = true, isDirect: Bool = false, size: UInt16 = 8
    ) throws -> GuestDriver {
        let slot = VirtioMMIO(slot: 0, line: wire.line)
        var settings = BlockSettings()
        settings.formatIsKnown = formatIsKnown
        settings.cache.isDirect = isDirect
        let backend = try BlockBackend(
            id: "d", filename: directory.file("disk"), readOnly: readOnly, settings: settings)
        let device = VirtioBlock(vm: machine.vm, backend: backend, serial: "serial-0123456789-too-long")
        try slot.plug(device)
        try machine.vm.add(slot)
        try machine.vm.add(device)
        try machine.vm.start()
        let driver = GuestDriver(machine, slot)
        driver.start(features: driver.deviceFeatures & ~(1 << 29), queues: 1, size: size)
        return driver
    }

    /// Sends one request and gives its status and used length.
    @discardableResult
    private func request(
        _ driver: GuestDriver, _ type: UInt32, sector: UInt64, _ buffers: [GuestQueue.Buffer]
    ) -> (status: UInt8, length: UInt32) {
        machine.store(type, at: Self.header)
        machine.store(UInt32(0), at: Self.header + 4)
        machine.store(sector, at: Self.header + 8)
        machine.store(UInt8(0xee), at: Self.status)
        driver.queues[0].submit(
            [.init(address: Self.header, length: 16, writable: false)] + buffers
                + [.init(address: Self.status, length: 1, writable: true)])
        return (machine.load(Self.status), driver.queues[0].reap().first?.length ?? 0)
    }

    private func disk(_ range: Range<Int>) throws -> [UInt8] {
        Array(try Data(contentsOf: URL(fileURLWithPath: directory.file("disk")))[range])
    }

    @Test func tellsItsSizeAndLimits() throws {
        let driver = try makeDriver()
        #expect(driver.read(0x100) == UInt32(Self.size / 512))
        #expect(driver.read(0x104) == 0)
        #expect(driver.read(0x10c) == 254)
        #expect(driver.read(0x114) == 512)
        #expect(driver.slot.mmioRead(offset: 0x122, width: 2) == 1)
    }

    /// A file that ends within a sector, and may be read past the page cache.
    @Test(arguments: [false, true]) func theLastSectorEndsWithZeroes(isDirect: Bool) throws {
        #expect(truncate(directory.file("disk"), off_t(Self.size - 412)) == 0)
        let driver = try makeDriver(isDirect: isDirect)
        #expect(driver.read(0x100) == UInt32(Self.size / 512))
        let last = UInt64(Self.size / 512 - 1)
        func readFourSectors() throws -> [UInt8] {
            for place in 0..<UInt64(256) { machine.store(UInt64(0xeeee_eeee_eeee_eeee), at: Self.data + place * 8) }
            let result = request(
                driver, 0, sector: last - 3, [.init(address: Self.data, length: 2048, writable: true)])
            #expect(result.status == 0 && result.length == 2049)
            return machine.bytes(Self.data, 2048)
        }
        let whole = (0..<2048).map { UInt8(truncatingIfNeeded: Int(last) - 3 + $0 / 512) }
        #expect(try readFourSectors() == whole[..<1636] + [UInt8](repeating: 0, count: 412))
        // The file is as long as the disk once the sector is written.
        for place in 0..<UInt64(512) { machine.store(UInt8(truncatingIfNeeded: last), at: Self.data + place) }
        #expect(
            request(driver, 1, sector: last, [.init(address: Self.data, length: 512, writable: false)]).status == 0)
        #expect(try disk(0..<Self.size).count == Self.size)
        #expect(try readFourSectors() == whole)
        // A file that is made shorter later has lost something.
        #expect(truncate(directory.file("disk"), off_t(Self.size - 1)) == 0)
        #expect(
            request(driver, 0, sector: last, [.init(address: Self.data, length: 512, writable: true)]).status == 1)
    }

    @Test func readsIntoScatteredBuffers() throws {
        let driver = try makeDriver()
        let result = request(
            driver, 0, sector: 3,
            [
                .init(address: Self.data, length: 100, writable: true),
                .init(address: Self.data + 4096, length: 924, writable: true),
            ])
        #expect(result.status == 0 && result.length == 1025)
        #expect(machine.bytes(Self.data, 100) == Array(repeating: 3, count: 100))
        #expect(machine.bytes(Self.data + 4096, 924) == (100..<1024).map { $0 < 512 ? 3 : 4 })
        #expect(wire.level)
    }

    /// What the guest writes, in buffers that are cut where the format's magic is.
    private func writeMagic(
        _ driver: GuestDriver, _ magic: [UInt8], at offset: Int, sector: UInt64, count: Int
    ) -> UInt8 {
        var bytes = [UInt8](repeating: 0x5a, count: count * 512)
        bytes.replaceSubrange(offset..<offset + magic.count, with: magic)
        for (index, byte) in bytes.enumerated() { machine.store(byte, at: Self.data + UInt64(index)) }
        let cut = UInt32(offset + 2)
        return request(
            driver, 1, sector: sector,
            [
                .init(address: Self.data, length: cut, writable: false),
                .init(address: Self.data + UInt64(cut), length: UInt32(bytes.count) - cut, writable: false),
            ]
        ).status
    }

    @Test func anImageThatWasGuessedToBeRawCannotBeMadeToLookOtherwise() throws {
        let driver = try makeDriver(formatIsKnown: false)
        let before = try disk(0..<Self.size)
        let last = UInt64(Self.size / 512 - 1)
        let qcow: [UInt8] = [0x51, 0x46, 0x49, 0xfb]
        #expect(writeMagic(driver, qcow, at: 0, sector: 0, count: 1) == 1)
        #expect(writeMagic(driver, qcow, at: 0, sector: 0, count: 8) == 1)
        #expect(writeMagic(driver, [0x7f, 0x10, 0xda, 0xbe], at: 0x40, sector: 0, count: 2) == 1)
        #expect(writeMagic(driver, Array("conectix".utf8), at: 0, sector: last, count: 1) == 1)
        #expect(writeMagic(driver, Array("koly".utf8), at: 1024, sector: last - 2, count: 3) == 1)
        #expect(try disk(0..<Self.size) == before, "nothing of a refused request is written")
        // Anything else goes there, and magic anywhere else.
        #expect(writeMagic(driver, [1, 2, 3, 4], at: 0, sector: 0, count: 4) == 0)
        #expect(try disk(0..<8) == [1, 2, 3, 4, 0x5a, 0x5a, 0x5a, 0x5a])
        #expect(writeMagic(driver, qcow, at: 512, sector: 0, count: 3) == 0)
        #expect(try disk(510..<518) == [0x5a, 0x5a] + qcow + [0x5a, 0x5a])
        #expect(try disk(1536..<1538) == [0x5a, 0x5a] && disk(2048..<2050) == [4, 4])
        #expect(writeMagic(driver, qcow, at: 0, sector: last, count: 1) == 0)
        #expect(try disk(Self.size - 512..<Self.size - 507) == qcow + [0x5a])
        #expect(writeMagic(driver, qcow, at: 512, sector: last - 1, count: 2) == 0)
    }

    @Test func whatTheCommandLineCallsRawTakesAnything() throws {
        let driver = try makeDriver()
        #expect(writeMagic(driver, [0x51, 0x46, 0x49, 0xfb], at: 0, sector: 0, count: 1) == 0)
        #expect(try disk(0..<5) == [0x51, 0x46, 0x49, 0xfb, 0x5a])
    }

    @Test func readsWithStatusInTheDatasLastSegment() throws {
        let driver = try makeDriver()
        machine.store(UInt32(0), at: Self.header)
        machine.store(UInt64(5), at: Self.header + 8)
        machine.store(UInt8(0xee), at: Self.data + 512)
        driver.queues[0].submit([
            .init(address: Self.header, length: 16, writable: false),
            .init(address: Self.data, length: 513, writable: true),
        ])
        #expect(machine.bytes(Self.data, 513) == Array(repeating: 5, count: 512) + [0])
    }

    @Test func writesAndFlushes() throws {
        let driver = try makeDriver()
        machine.store(bytes: Array(repeating: 0xab, count: 512), at: Self.data)
        #expect(request(driver, 1, sector: 7, [.init(address: Self.data, length: 512, writable: false)]).status == 0)
        #expect(request(driver, 4, sector: 0, []).status == 0)
        #expect(try disk(7 * 512..<8 * 512) == Array(repeating: 0xab, count: 512))
        #expect(try disk(8 * 512..<8 * 512 + 1) == [8])
    }

    @Test func writesWithTheHeaderAndDataInOneSegment() throws {
        let driver = try makeDriver()
        machine.store(UInt32(1), at: Self.header)
        machine.store(UInt64(9), at: Self.header + 8)
        machine.store(bytes: Array(repeating: 0xcd, count: 512), at: Self.header + 16)
        driver.queues[0].submit([
            .init(address: Self.header, length: 7, writable: false),
            .init(address: Self.header + 7, length: 521, writable: false),
            .init(address: Self.status, length: 1, writable: true),
        ])
        #expect(machine.load(Self.status, as: UInt8.self) == 0)
        #expect(try disk(9 * 512..<10 * 512) == Array(repeating: 0xcd, count: 512))
    }

    @Test func refusesSectorsBeyondTheEnd() throws {
        let driver = try makeDriver()
        let last = UInt64(Self.size / 512)
        for (sector, length) in [
            (last, UInt32(512)), (last - 1, 1024), (UInt64.max, 512), (UInt64.max / 512, 512), (1 << 55, 512),
        ] {
            #expect(
                request(driver, 0, sector: sector, [.init(address: Self.data, length: length, writable: true)]).status
                    == 1)
            #expect(
                request(driver, 1, sector: sector, [.init(address: Self.data, length: length, writable: false)]).status
                    == 1)
        }
        #expect(request(driver, 0, sector: 0, [.init(address: Self.data, length: 100, writable: true)]).status == 1)
        #expect(!driver.needsReset)
    }

    @Test func givesItsSerialNumber() throws {
        let driver = try makeDriver()
        let result = request(driver, 8, sector: 0, [.init(address: Self.data, length: 20, writable: true)])
        #expect(result.status == 0 && result.length == 21)
        #expect(machine.bytes(Self.data, 20) == Array("serial-0123456789-to".utf8))
    }

    @Test func discardsAndZeroesRanges() throws {
        let driver = try makeDriver()
        machine.store(UInt64(16), at: Self.data)
        machine.store(UInt32(8), at: Self.data + 8)
        machine.store(UInt32(0), at: Self.data + 12)
        let range = [GuestQueue.Buffer(address: Self.data, length: 16, writable: false)]
        #expect(request(driver, 11, sector: 0, range).status == 0)
        #expect(try disk(16 * 512..<24 * 512).allSatisfy { $0 == 0 })
        machine.store(UInt64(32), at: Self.data)
        machine.store(UInt32(1), at: Self.data + 12)
        #expect(request(driver, 13, sector: 0, range).status == 0)
        #expect(try disk(32 * 512..<40 * 512).allSatisfy { $0 == 0 })
        #expect(try disk(40 * 512..<40 * 512 + 1) == [40])

        // A flag that discards do not have, too many sectors, past the end.
        #expect(request(driver, 11, sector: 0, range).status == 2)
        machine.store(UInt32(0), at: Self.data + 12)
        machine.store(UInt32.max, at: Self.data + 8)
        #expect(request(driver, 11, sector: 0, range).status == 2)
        machine.store(UInt64.max, at: Self.data)
        machine.store(UInt32(1), at: Self.data + 8)
        #expect(request(driver, 13, sector: 0, range).status == 1)
        #expect(request(driver, 13, sector: 0, []).status == 2)
        #expect(!driver.needsReset)
    }

    @Test func aReadOnlyDiskCannotBeWritten() throws {
        let driver = try makeDriver(readOnly: true)
        #expect(driver.deviceFeatures & 1 << 5 != 0)
        #expect(driver.deviceFeatures & (1 << 13 | 1 << 14) == 0)
        #expect(request(driver, 1, sector: 0, [.init(address: Self.data, length: 512, writable: false)]).status == 1)
        #expect(request(driver, 0, sector: 1, [.init(address: Self.data, length: 512, writable: true)]).status == 0)
        #expect(try disk(0..<1) == [0])
    }

    @Test func answersUnknownRequestsAsUnsupported() throws {
        let driver = try makeDriver()
        #expect(request(driver, 2, sector: 0, []).status == 2)
        #expect(request(driver, 0xffff_ffff, sector: 0, []).status == 2)
    }

    @Test(arguments: [[16, -15], [15, -1], [16], [-512]])
    func failsOnChainsThatAreNoRequests(_ lengths: [Int]) throws {
        let driver = try makeDriver()
        machine.store(UInt32(0), at: Self.header)
        let buffers = lengths.map { length in
            GuestQueue.Buffer(
                address: length > 0 ? Self.header : Self.data, length: UInt32(abs(length)), writable: length < 0)
        }
        driver.queues[0].submit(buffers)
        // A header, a status byte: that is a request, of zero bytes or not.
        #expect(driver.needsReset == (lengths != [16, -15]))
    }

    @Test func theSameStateComesBackFromACheckpoint() throws {
        let driver = try makeDriver()
        request(driver, 0, sector: 1, [.init(address: Self.data, length: 512, writable: true)])
        machine.vm.stop()
        let states = machine.vm.devices.map(savedState)

        let other = try TestMachine()
        let slot = VirtioMMIO(slot: 0, line: Wire().line)
        let backend = try BlockBackend(id: "d", filename: directory.file("disk"), readOnly: false)
        let device = VirtioBlock(vm: other.vm, backend: backend, serial: "")
        try slot.plug(device)
        try loadState(states[0], into: slot)
        try loadState(states[1], into: device)
        #expect(savedState(slot) == states[0])
        #expect(savedState(device) == states[1])
        #expect(other.bytes(TestMachine.ramBase, 0x9000).allSatisfy { $0 == 0 }, "guest memory is not touched")
    }
}
