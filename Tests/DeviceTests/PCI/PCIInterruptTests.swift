import BatonRuntime
import PCI
import Testing

@Suite struct PCIInterruptTests {
    let pci: PCITestBus
    let probe: ProbeFunction
    let msi: PCIMSI
    let msix: PCIMSIX
    static let table = PCITestBus.high + 0x2000

    init() throws {
        pci = try PCITestBus()
        probe = ProbeFunction(pci.machine)
        try pci.plug(probe, 5)
        msi = try #require(probe.msi)
        msix = try #require(probe.msix)
        pci.machine.vm.resetDevices()
        pci.write(5, 0x10, PCITestBus.window)
        pci.write(5, 0x18, 0)
        pci.write(5, 0x1c, PCITestBus.high >> 32)
        pci.enable(5)
    }

    private func setVector(_ vector: Int, data: UInt64, mask: Bool = false, address: UInt64 = PCITestBus.doorbell) {
        let entry = Self.table + UInt64(vector) * 16
        #expect(pci.space.mmioWrite(entry, width: 8, value: address))
        #expect(pci.space.mmioWrite(entry + 8, width: 4, value: data))
        #expect(pci.space.mmioWrite(entry + 12, width: 4, value: mask ? 1 : 0))
    }

    private var pendingBits: UInt64? { pci.space.mmioRead(PCITestBus.window + 0x3000, width: 8) }

    // MARK: INTx

    @Test func thePinDrivesTheWireOfItsSlot() {
        probe.setInterrupt(true)
        #expect(pci.wires.map(\.level) == [false, true, false, false])
        #expect(pci.read(5, 6, 2) & 8 != 0)
        probe.setInterrupt(false)
        #expect(pci.wires[1].level == false && pci.read(5, 6, 2) & 8 == 0)
    }

    @Test func theCommandRegisterDisablesThePin() {
        probe.setInterrupt(true)
        pci.write(5, 4, 0x407, 2)
        #expect(!pci.wires[1].level)
        #expect(pci.read(5, 6, 2) & 8 != 0, "the status is shown all the same")
        pci.write(5, 4, 7, 2)
        #expect(pci.wires[1].level)
    }

    @Test func aWireIsUpWhileAnyFunctionDrivesIt() throws {
        let second = ProbeFunction(pci.machine, model: "second")
        try pci.plug(second, 9)
        probe.setInterrupt(true)
        second.setInterrupt(true)
        probe.setInterrupt(false)
        #expect(pci.wires[1].level)
        second.reset()
        #expect(!pci.wires[1].level)
    }

    @Test func theLevelGoesThroughACheckpoint() throws {
        probe.setInterrupt(true)
        let state = savedState(probe)
        probe.reset()
        #expect(!pci.wires[1].level)
        try loadState(state, into: probe)
        #expect(pci.wires[1].level)
    }

    // MARK: MSI

    @Test func msiSendsItsDataWithTheVectorInTheLowBits() {
        let at = msi.offset
        #expect(!msi.notify(0), "off")
        pci.write(5, at + 4, PCITestBus.doorbell + 2)
        pci.write(5, at + 12, 0x47, 2)
        pci.write(5, at + 2, 0x21, 2)
        #expect(msi.enabledVectors == 4)
        #expect(msi.notify(2) && !msi.notify(4) && !msi.notify(-1))
        #expect(pci.messages.take() == [0x46])
        pci.write(5, at + 16, 4)
        #expect(msi.notify(2))
        #expect(pci.messages.take().isEmpty && pci.read(5, at + 20) == 4)
        pci.write(5, at + 16, 0)
        #expect(pci.messages.take() == [0x46] && pci.read(5, at + 20) == 0)
        pci.write(5, at + 2, 0x71, 2)
        #expect(msi.enabledVectors == 4, "no more than there are")
    }

    // MARK: MSI-X

    @Test func msixSendsWhatTheTableSays() {
        setVector(3, data: 0x99)
        #expect(!msix.notify(3), "off")
        pci.write(5, msix.offset + 2, 0x8000, 2)
        #expect(msix.notify(3) && !msix.notify(20) && !msix.notify(-1))
        #expect(pci.messages.take() == [0x99])
        #expect(msix.isMasked(4), "masked after reset")
    }

    @Test func aMaskedVectorIsPendingUntilItIsUnmasked() {
        pci.write(5, msix.offset + 2, 0x8000, 2)
        setVector(3, data: 7, mask: true)
        #expect(msix.notify(3))
        #expect(pci.messages.take().isEmpty && pendingBits == 8)
        setVector(3, data: 7)
        #expect(pci.messages.take() == [7] && pendingBits == 0)
    }

    @Test func theMaskOfAllHoldsEveryVector() {
        setVector(0, data: 1)
        setVector(19, data: 2)
        pci.write(5, msix.offset + 2, 0xc000, 2)
        #expect(msix.notify(0) && msix.notify(19))
        #expect(pci.messages.take().isEmpty && pendingBits == 1 << 19 | 1)
        pci.write(5, msix.offset + 2, 0x8000, 2)
        #expect(pci.messages.take() == [1, 2] && pendingBits == 0)
    }

    @Test func aMessageNeedsBusMastering() {
        pci.write(5, msix.offset + 2, 0x8000, 2)
        setVector(0, data: 1)
        pci.write(5, 4, 3, 2)
        #expect(!msix.notify(0))
        #expect(pci.messages.take().isEmpty)
    }

    @Test func aMessageMayGoToMemoryButNotToNowhere() {
        pci.write(5, msix.offset + 2, 0x8000, 2)
        setVector(0, data: 0x1234, address: TestMachine.ramBase + 0x100)
        #expect(msix.notify(0))
        #expect(pci.machine.load(TestMachine.ramBase + 0x100, as: UInt32.self) == 0x1234)
        for address in [0, TestMachine.romBase, UInt64.max & ~3, TestMachine.ramBase + UInt64(TestMachine.ramSize)] {
            setVector(1, data: 1, address: address)
            #expect(!msix.notify(1))
        }
    }

    @Test func aMessageThatCausesAMessageEnds() {
        pci.write(5, msix.offset + 2, 0x8000, 2)
        setVector(0, data: 5)
        pci.messages.effect = { msix.notify(0) }
        #expect(msix.notify(0))
        #expect(pci.messages.take() == [5, 5, 5])
    }

    @Test func tableAndPendingBitsGoThroughACheckpoint() throws {
        pci.write(5, msix.offset + 2, 0x8000, 2)
        setVector(3, data: 7, mask: true)
        msix.notify(3)
        let state = savedState(probe)
        probe.reset()
        #expect(!msix.isPending(3) && !msix.isEnabled)
        try loadState(state, into: probe)
        #expect(pendingBits == 8)
        setVector(3, data: 7)
        #expect(pci.messages.take() == [7])
    }

    @Test func theTableTakesOnlyWholeWords() {
        #expect(!pci.space.mmioWrite(Self.table, width: 2, value: 1))
        #expect(pci.space.mmioRead(Self.table, width: 1) == nil)
        #expect(pci.space.mmioRead(Self.table, width: 4) == 0)
        #expect(pci.space.mmioWrite(Self.table + 12, width: 4, value: 0xffff_ffff))
        #expect(pci.space.mmioRead(Self.table + 12, width: 4) == 1, "reserved bits")
        #expect(pci.space.mmioWrite(PCITestBus.window + 0x3000, width: 8, value: 1))
        #expect(pendingBits == 0, "read only")
    }
}
