import BatonRuntime
import CBaton
import Glibc
import PCI
import Testing

/// Eventfds of others that are messages of a function.
@Suite final class InterruptEventTests {
    let accelerator: FakeAccelerator
    let pci: PCITestBus
    let probe: ProbeFunction
    let msix: PCIMSIX
    let fd = cbaton_eventfd()
    private(set) var interrupt: InterruptEvent!
    static let table = PCITestBus.high + 0x2000
    static let message = FakeAccelerator.messages | 0x1000

    init() throws {
        let machine = try TestMachine()
        accelerator = try FakeAccelerator(machine)
        pci = try PCITestBus(machine)
        probe = ProbeFunction(machine)
        try pci.plug(probe, 5)
        msix = try #require(probe.msix)
        machine.vm.resetDevices()
        pci.write(5, 0x10, PCITestBus.window)
        pci.write(5, 0x18, 0)
        pci.write(5, 0x1c, PCITestBus.high >> 32)
        pci.enable(5)
        interrupt = event(fd)
        setVector(data: 0x40)
        pci.write(5, msix.offset + 2, 0x8000, 2)
        try interrupt.resume()
    }

    deinit {
        interrupt.remove()
        close(fd)
    }

    private func event(_ fd: Int32) -> InterruptEvent {
        let event = InterruptEvent(vm: pci.machine.vm, event: fd) { [msix] in
            msix.directMessage(3)
        } onEvent: { [msix] in
            msix.notify(3)
        }
        probe.add(event)
        return event
    }

    private func setVector(address: UInt64 = InterruptEventTests.message, data: UInt64) {
        let entry = Self.table + 3 * 16
        #expect(pci.space.mmioWrite(entry, width: 8, value: address))
        #expect(pci.space.mmioWrite(entry + 8, width: 4, value: data))
        mask(false)
    }

    private func mask(_ on: Bool) {
        #expect(pci.space.mmioWrite(Self.table + 3 * 16 + 12, width: 4, value: on ? 1 : 0))
    }

    private var pendingBits: UInt64? { pci.space.mmioRead(PCITestBus.window + 0x3000, width: 8) }
    private var sent: [UInt32] {
        let (stored, routed) = accelerator.takeSent()
        return stored + routed
    }
    private func turn() { pci.machine.vm.loop.poll(timeout: 0) }

    @Test func theRouteSendsWhatIsNotMasked() {
        count(fd)
        turn()
        // The loop had it before the guest ran.
        let early = accelerator.takeSent()
        #expect(interrupt.isDirect && early.stored == [0x40] && early.routed.isEmpty)
        count(fd)
        turn()
        #expect(pci.machine.vm.loop.isWatched(fd) == false)
        let late = accelerator.takeSent()
        #expect(late.stored.isEmpty && late.routed == [0x40])
        #expect(sent == [] && pendingBits == 0)
        setVector(data: 0x41)
        count(fd)
        #expect(sent == [0x41])
    }

    @Test(arguments: [0, 1, 2]) func whatIsMaskedIsPendingAndSentOnce(how: Int) {
        turn()
        func set(_ on: Bool) {
            switch how {
            case 0: mask(on)
            case 1: pci.write(5, msix.offset + 2, on ? 0xc000 : 0x8000, 2)
            // Without bus mastering it is neither sent nor pending.
            default: pci.write(5, 4, on ? 2 : 6, 2)
            }
        }
        set(true)
        #expect(!interrupt.isDirect)
        count(fd)
        #expect(sent == [])
        #expect(pendingBits == (how == 2 ? 0 : 8), "without a turn of the loop")
        set(false)
        #expect(sent == (how == 2 ? [] : [0x40]) && pendingBits == 0)
        turn()
        #expect(sent == [] && interrupt.isDirect)
    }

    /// Changes where the message goes, and leaves the mask.
    private func setQuietly(address: UInt64) {
        #expect(pci.space.mmioWrite(Self.table + 3 * 16, width: 8, value: address))
    }

    @Test func whatTheAcceleratorDoesNotSendTheLoopDoes() {
        turn()
        setQuietly(address: PCITestBus.doorbell)
        #expect(!interrupt.isDirect)
        count(fd)
        turn()
        #expect(pci.messages.take() == [0x40] && sent == [])
        setQuietly(address: Self.message)
        #expect(interrupt.isDirect)
        pci.write(5, msix.offset + 2, 0, 2)
        #expect(!interrupt.isDirect, "MSI-X is off")
    }

    @Test func whatComesInAPauseIsTheNextProcesssOrThisOnes() throws {
        turn()
        interrupt.pause()
        #expect(accelerator.routes.allSatisfy { !$0.isArmed })
        count(fd)
        turn()
        #expect(sent == [] && pendingBits == 0)
        let (next, second) = (try InterruptEventTests(), dup(fd))
        defer { close(second) }
        let taker = next.event(second)
        try taker.resume()
        next.turn()
        #expect(next.sent == [0x40] && next.sent == [])
        taker.pause()
        // That update has failed.
        count(fd)
        try interrupt.resume()
        turn()
        #expect(sent == [0x40] && sent == [])
    }

    @Test func aResetTakesTheMessageBack() {
        turn()
        probe.reset()
        #expect(!interrupt.isDirect)
        count(fd)
        turn()
        #expect(sent == [] && pci.messages.take() == [] && pendingBits != 8)
        interrupt.remove()
        #expect(accelerator.routes.allSatisfy(\.isRemoved) && !pci.machine.vm.loop.isWatched(fd))
    }
}
