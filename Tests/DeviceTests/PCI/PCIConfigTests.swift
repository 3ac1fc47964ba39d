import BatonRuntime
import PCI
import Testing

@Suite struct PCIConfigTests {
    let pci: PCITestBus
    let probe: ProbeFunction

    init() throws {
        pci = try PCITestBus()
        probe = ProbeFunction(pci.machine)
        try pci.plug(probe, 5)
        pci.machine.vm.resetDevices()
    }

    @Test func identifiesItselfInEveryWidth() {
        #expect(pci.read(5, 0) == 0x5678_1234)
        #expect(pci.read(5, 2, 2) == 0x5678)
        #expect(pci.read(5, 9, 1) == 0 && pci.read(5, 8) == 0x0880_0003)
        #expect(pci.read(5, 0, 8) == pci.read(5, 0) | pci.read(5, 4) << 32)
        #expect(pci.read(5, 1, 2) == 0x7812, "unaligned")
        #expect(pci.read(0, 0) == 0x0008_1b36, "the host bridge")
    }

    @Test func whatIsNotThereReadsAsOnes() {
        #expect(pci.read(6, 0) == 0xffff_ffff)
        #expect(pci.space.mmioRead(PCITestBus.ecam + 1 << 20, width: 2) == 0xffff, "bus 1")
        #expect(pci.read(5, 0x100) == 0xffff_ffff, "extended space of a conventional function")
        #expect(pci.space.mmioRead(PCITestBus.ecam + ECAMHostBridge.size - 8, width: 8) == UInt64.max)
        #expect(pci.space.mmioRead(PCITestBus.ecam + ECAMHostBridge.size - 4, width: 8) == nil)
        pci.write(6, 0, 1)
        pci.write(5, 0xffc, 1)
    }

    @Test func capabilitiesAreListed() {
        #expect(pci.read(5, 6, 2) & 0x10 != 0)
        let first = Int(pci.read(5, 0x34, 1))
        #expect(pci.read(5, first, 1) == 5)
        let second = Int(pci.read(5, first + 1, 1))
        #expect(pci.read(5, second, 1) == 0x11 && pci.read(5, second + 1, 1) == 0)
        #expect(probe.config.capability(0x11) == second && probe.config.capability(9) == nil)
        #expect(pci.read(5, second + 2, 2) == 19, "20 vectors")
        #expect(pci.read(5, second + 4) == 0x2002 && pci.read(5, second + 8) == 0x3000)
    }

    @Test func randomWritesChangeOnlyWhatTheGuestMayChange() throws {
        var random = Randomness(seed: 11)
        for _ in 0..<20_000 {
            let width = [1, 2, 4, 8].randomElement(using: &random) ?? 1
            pci.write(5, Int.random(in: 0...(256 - width), using: &random), random.next(), width)
            #expect(pci.read(5, 0) == 0x5678_1234)
            #expect(pci.read(5, 4) & 0xffff_f8f8 & ~0x8 == 0x0010_0000, "of command and status")
            #expect(pci.read(5, 8) == 0x0880_0003 && pci.read(5, 0xe, 1) == 0)
            #expect(pci.read(5, 0x10) & 0x3fff == 0 && pci.read(5, 0x14) & 0x3f == 1)
            #expect(pci.read(5, 0x18) & 0xffff == 12 && pci.read(5, 0x20, 8) == 0)
        }
        // Whatever the guest has made of it, it goes through a checkpoint.
        let state = savedState(probe)
        pci.machine.vm.resetDevices()
        let fresh = savedState(probe)
        #expect(state != fresh)
        try loadState(state, into: probe)
        #expect(savedState(probe) == state)
        probe.reset()
        #expect(savedState(probe) == fresh)
    }

    @Test func aCheckpointOfAnotherDeviceIsRefused() throws {
        let bus = try PCITestBus()
        let other = PCIFunction(
            vm: bus.machine.vm, model: "probe", id: nil,
            identity: PCIIdentity(vendor: 0x1234, device: 0x9999, classCode: 0x0880))
        try bus.plug(other, 5)
        let before = savedState(probe)
        let error = #expect(throws: VMMError.self) { try loadState(savedState(other), into: probe) }
        #expect(error?.message.hasPrefix("Bad config data: i=0x2 read: 0x99 device: 0x78") == true)
        #expect(savedState(probe) == before)
    }

    @Test func anotherSetOfFunctionsIsRefused() throws {
        let other = try PCITestBus()
        let error = #expect(throws: VMMError.self) { try loadState(savedState(pci.host), into: other.host) }
        #expect(error?.message == "section 'pcie.0' has functions at 0x0 0x28 of bus 'pcie.0', this machine has 0x0")
        try loadState(savedState(pci.host), into: pci.host)
    }

    @Test func everyTruncationOfAStateIsRefused() throws {
        let state = savedState(probe)
        for length in stride(from: 0, to: state.count, by: 7) {
            #expect(throws: VMMError.self) { try loadState(Array(state[..<length]), into: probe) }
        }
        #expect(savedState(probe) == state)
    }
}
