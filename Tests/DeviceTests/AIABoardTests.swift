import BatonRuntime
import RISCV
import Testing
import VirtBoard

/// The interrupt controllers of `-machine aia=aplic-imsic` on the board.
@Suite struct AIABoardTests {
    let board: TestBoard
    var space: AddressSpace { board.vm.addressSpace }

    init() throws {
        board = try TestBoard(hartCount: 2, aia: .aplicIMSIC)
        board.vm.resetDevices()
    }

    private func file(_ hart: Int) throws -> IMSICFile {
        try #require(board.harts[hart].aia).supervisorFile
    }

    private func open(_ hart: Int) throws -> IMSICFile {
        let file = try file(hart)
        file.restore(pending: [0, 0, 0, 0], enabled: [~1, ~0, ~0, ~0], delivers: true, threshold: 0)
        return file
    }

    @Test func aStoreToAHartsPageIsItsMessage() throws {
        let file = try open(1)
        #expect(space.mmioWrite(0x2800_1000, width: 4, value: 200))
        #expect(file.top == 200)
        #expect(try self.file(0).top == 0)
        #expect(board.harts[1].isPending(.supervisorExternal))
        #expect(space.mmioWrite(0x2800_1004, width: 4, value: 0x0300_0000), "big endian")
        #expect(file.top == 3)
        for (offset, width, value) in [(0, 8, 2), (0, 2, 2), (8, 4, 2), (0xffc, 4, 2), (0, 4, 0), (0, 4, 256)] {
            #expect(
                space.mmioWrite(0x2800_1000 + UInt64(offset), width: width, value: UInt64(value)) == (width == 4))
        }
        #expect(file.top == 3)
        #expect(space.mmioRead(0x2800_1000, width: 4) == 0)
        #expect(space.mmioRead(0x2800_2000, width: 4) == nil, "no third hart")
    }

    @Test func theSerialPortsInterruptBecomesAMessage() throws {
        let file = try open(0)
        let aplic: UInt64 = 0xd00_0000
        for (offset, value) in [(40, 6), (0x3028, 77), (0x1edc, 10), (0, 0x100)] as [(UInt64, UInt64)] {
            #expect(space.mmioWrite(aplic + offset, width: 4, value: value))
        }
        #expect(file.top == 0)
        // The transmitter is empty.
        #expect(space.mmioWrite(0x1000_0001, width: 1, value: 2))
        #expect(file.top == 77)
    }

    @Test func aMessageToTheAPLICIsPassedOn() throws {
        let file = try open(0)
        let aplic: UInt64 = 0xd00_0000
        for (offset, value) in [(200, 4), (0x30c8, 9), (0x1edc, 50), (0, 0x100)] as [(UInt64, UInt64)] {
            #expect(space.mmioWrite(aplic + offset, width: 4, value: value))
        }
        #expect(space.storeMessage(50, at: aplic + 0x2000))
        #expect(file.top == 9)
    }

    @Test func aCircleOfMessagesEnds() throws {
        // The root's own registers as the place of the machine level's files.
        let aplic: UInt64 = 0xc00_0000
        for (offset, value) in [
            (0x1bc0, aplic >> 12 + 2), (0x1bc4, 4 << 12), (200, 4), (0x30c8, 50), (0x1edc, 50), (0, 0x100),
            (0x1cdc, 50),
        ] as [(UInt64, UInt64)] {
            #expect(space.mmioWrite(aplic + offset, width: 4, value: value))
        }
        #expect(space.mmioRead(aplic + 0x1c04, width: 4) != nil)
    }

    @Test func filesGoThroughACheckpoint() throws {
        let file = try open(1)
        file.receive(5)
        let states = board.vm.devices.map(savedState)
        board.vm.resetDevices()
        #expect(file.top == 0 && !board.harts[1].isPending(.supervisorExternal))
        for (device, state) in zip(board.vm.devices, states) where device.stateName != "loader" {
            try loadState(state, into: device)
        }
        #expect(file.top == 5 && board.harts[1].isPending(.supervisorExternal))
        for (device, state) in zip(board.vm.devices, states) where device.stateName.hasPrefix("imsic") {
            #expect(savedState(device) == state)
            for length in stride(from: 0, to: state.count, by: 3) {
                #expect(throws: VMMError.self) { try loadState(Array(state[..<length]), into: device) }
            }
        }
    }

    @Test func theWiredBoardHasNoFiles() throws {
        let wired = try TestBoard(hartCount: 2, aia: .aplic)
        wired.vm.resetDevices()
        #expect(wired.harts[0].aia == nil)
        #expect(wired.vm.addressSpace.mmioRead(0x2800_0000, width: 4) == nil)
        let aplic: UInt64 = 0xd00_0000
        for (offset, value) in [(40, 6), (0x3028, 1 << 18 | 1), (0x1edc, 10), (0x4020, 1), (0, 0x100)]
            as [(UInt64, UInt64)]
        {
            #expect(wired.vm.addressSpace.mmioWrite(aplic + offset, width: 4, value: value))
        }
        #expect(wired.vm.addressSpace.mmioWrite(0x1000_0001, width: 1, value: 2))
        #expect(wired.harts.map { $0.isPending(.supervisorExternal) } == [false, true])
    }
}
