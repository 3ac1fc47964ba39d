import BatonRuntime
import PCI
import Testing

@Suite struct PCIBarTests {
    let pci: PCITestBus
    let probe: ProbeFunction

    init() throws {
        pci = try PCITestBus()
        probe = ProbeFunction(pci.machine)
        try pci.plug(probe, 5)
        pci.machine.vm.resetDevices()
    }

    private func place(_ low: UInt64, io: UInt64 = 0x100, high: UInt64 = PCITestBus.high) {
        pci.write(5, 0x10, low)
        pci.write(5, 0x14, io)
        pci.write(5, 0x18, high & 0xffff_ffff)
        pci.write(5, 0x1c, high >> 32)
        pci.enable(5)
    }

    @Test func allOnesTellTheSize() {
        for (register, expected) in [
            (0x10, 0xffff_c000), (0x14, 0xffff_ffc1), (0x18, 0xffff_000c), (0x1c, 0xffff_ffff),
        ] {
            pci.write(5, register, 0xffff_ffff)
            #expect(pci.read(5, register) == UInt64(expected))
        }
        pci.enable(5)
        #expect(probe.low.address == nil && probe.high.address == nil && probe.io.address == nil)
        #expect(probe.moves.isEmpty)
    }

    @Test func aBarIsThereWhileItsSpaceIsEnabled() {
        place(PCITestBus.window + 0x8000)
        let start = PCITestBus.window + 0x8000
        #expect(pci.space.mmioRead(start + 8, width: 4) == 8)
        #expect(pci.space.mmioWrite(start + 16, width: 4, value: 77))
        #expect(probe.registers.writes.map(\.0) == [16] && probe.registers.writes.map(\.1) == [77])
        #expect(pci.space.mmioRead(start + 0x1000, width: 4) == 0xffff_ffff, "nothing in this part")
        #expect(pci.space.mmioRead(PCITestBus.ioBase + 0x104, width: 4) == 4)
        pci.write(5, 4, 1, 2)
        #expect(pci.space.mmioRead(start + 8, width: 4) == 0xffff_ffff)
        #expect(pci.space.mmioRead(PCITestBus.ioBase + 0x104, width: 4) == 4, "I/O is still enabled")
        pci.write(5, 4, 0, 2)
        #expect(pci.space.mmioRead(PCITestBus.ioBase + 0x104, width: 4) == 0xffff_ffff)
        #expect(probe.moves.map(\.0) == [0, 1, 2, 0, 2, 1])
        #expect(probe.moves.map(\.1) == [start, PCITestBus.ioBase + 0x100, PCITestBus.high, nil, nil, nil])
    }

    @Test func aBarMovesWhileItIsEnabled() {
        place(PCITestBus.window)
        pci.write(5, 0x10, PCITestBus.window + 0x4000)
        #expect(pci.space.mmioRead(PCITestBus.window + 8, width: 4) == 0xffff_ffff)
        #expect(pci.space.mmioRead(PCITestBus.window + 0x4008, width: 4) == 8)
        #expect(probe.low.address == PCITestBus.window + 0x4000)
    }

    @Test func theExpansionROMHasASwitchOfItsOwn() throws {
        let identity = PCIIdentity(vendor: 1, device: 2, classCode: 0x0880)
        let function = PCIFunction(vm: pci.machine.vm, model: "rom", id: nil, identity: identity)
        let rom = PCIBar(index: PCIBar.rom, space: .memory32, size: 0x1000)
        let registers = Registers()
        rom.add(registers: registers, size: 0x1000)
        function.add(rom)
        try pci.plug(function, 7)
        pci.write(7, 0x30, 0xffff_ffff)
        #expect(pci.read(7, 0x30) == 0xffff_f001)
        pci.write(7, 0x30, PCITestBus.window)
        pci.enable(7)
        #expect(rom.address == nil, "off")
        pci.write(7, 0x30, PCITestBus.window | 1)
        #expect(rom.address == PCITestBus.window && pci.space.mmioRead(PCITestBus.window + 8, width: 4) == 8)
        pci.write(7, 4, 0, 2)
        #expect(rom.address == nil, "no memory space")
        pci.enable(7)
        let state = savedState(function)
        function.reset()
        #expect(rom.address == nil && pci.read(7, 0x30) == 0)
        try loadState(state, into: function)
        #expect(rom.address == PCITestBus.window)
    }

    private static let wild: [UInt64] = [
        0, 0x1000, 0x8000_0000, 0xffff_c000, PCITestBus.window - 0x4000, PCITestBus.window + PCITestBus.windowSize,
        0x2800_0000, PCITestBus.ecam,
    ]

    @Test(arguments: wild)
    func aBarOutsideOfTheWindowsIsNowhere(_ address: UInt64) {
        pci.machine.store(0x1122_3344 as UInt32, at: TestMachine.ramBase)
        place(address, io: 0xfff0, high: address << 16 | 0xffff_0000_0000_0000)
        #expect(probe.low.address == nil && probe.high.address == nil)
        #expect(pci.machine.load(TestMachine.ramBase, as: UInt32.self) == 0x1122_3344)
        #expect(pci.space.mmioRead(PCITestBus.ecam, width: 4) == 0x0008_1b36)
    }

    @Test func theLaterOfTwoThatOverlapIsNotThereUntilTheOtherHasGone() throws {
        let second = ProbeFunction(pci.machine, model: "second")
        try pci.plug(second, 6)
        place(PCITestBus.window)
        pci.write(6, 0x10, PCITestBus.window)
        pci.write(6, 4, 2, 2)
        #expect(probe.low.address == PCITestBus.window && second.low.address == nil)
        pci.write(5, 0x10, PCITestBus.window + 0x4000)
        #expect(second.low.address == PCITestBus.window)
    }

    @Test func memoryIsMappedButForWhatHidesIt() {
        place(PCITestBus.window)
        let ranges = pci.space.deviceMemory.map { ($0.start - PCITestBus.high, $0.size) }.sorted { $0.0 < $1.0 }
        #expect(ranges.map(\.0) == [0, 0x3000] && ranges.map(\.1) == [0x2000, 0xd000])
        #expect(pci.space.deviceMemory(containing: PCITestBus.high + 0x3008)?.start == PCITestBus.high + 0x3000)
        #expect(pci.space.deviceMemory(containing: PCITestBus.high + 0x2000) == nil, "the MSI-X table")
        probe.memory.storeBytes(of: 0xabcd, toByteOffset: 0x2800, as: UInt32.self)
        #expect(pci.space.mmioRead(PCITestBus.high + 0x2800, width: 4) == 0xabcd, "what shares the table's page")
        pci.write(5, 4, 0, 2)
        #expect(pci.space.deviceMemory.isEmpty)
        pci.enable(5)
        probe.reset()
        #expect(pci.space.deviceMemory.isEmpty)
    }

    @Test func aLoadedStateIsMappedAgain() throws {
        place(PCITestBus.window + 0x4000)
        let state = savedState(probe)
        pci.machine.vm.resetDevices()
        try loadState(state, into: probe)
        #expect(probe.low.address == PCITestBus.window + 0x4000 && probe.high.address == PCITestBus.high)
        #expect(pci.space.deviceMemory.count == 2)
    }

    @Test func randomAddressesAndAccessesNeverEndTheProcess() throws {
        let second = ProbeFunction(pci.machine, model: "second")
        try pci.plug(second, 6)
        var random = Randomness(seed: 3)
        for _ in 0..<5_000 {
            let slot = Int.random(in: 5...6, using: &random)
            let base: UInt64 = [PCITestBus.window, PCITestBus.high, 0, UInt64.max].randomElement(using: &random) ?? 0
            let register = [0x10, 0x14, 0x18, 0x1c, 4].randomElement(using: &random) ?? 4
            let low: UInt64 = base &+ (random.next() & 0x1ffff)
            pci.write(slot, register, register == 0x1c ? base >> 32 : low)
            for start in [PCITestBus.window, PCITestBus.high, PCITestBus.ioBase] {
                let address: UInt64 = start + (random.next() & 0x1ffff)
                let width = [1, 2, 4, 8].randomElement(using: &random) ?? 4
                if start == PCITestBus.ioBase && address - start > 0xfff8 { continue }
                let isTaken = pci.space.mmioRead(address, width: width) != nil
                // The MSI-X table and its pending bits take whole words only.
                #expect(isTaken || width < 4 || address % UInt64(width) != 0)
                let value = random.next()
                #expect(pci.space.mmioWrite(address, width: width, value: value) == isTaken)
            }
            let all = probe.bars + second.bars
            for bar in all {
                guard let at = bar.address else { continue }
                for other in all where other !== bar {
                    if let start = other.address { #expect(at + bar.size <= start || start + other.size <= at) }
                }
            }
        }
    }
}
