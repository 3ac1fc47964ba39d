import BatonRuntime
import Testing
import Virtio

/// Notifications that come without a call: virtio-pci, whose registers the guest places.
@Suite struct VirtioPCIDoorbellTests {
    let pci: PCITestBus
    let accelerator: FakeAccelerator
    let driver: VirtioPCIDriver
    static let notify = VirtioPCIDriver.registers + 0x3000
    static let buffer = TestMachine.ramBase + 0x8000

    init() throws {
        let machine = try TestMachine()
        accelerator = try FakeAccelerator(machine)
        pci = try PCITestBus(machine)
        driver = try VirtioPCIDriver(
            pci, VirtioPCI(VirtioEntropy(vm: pci.machine.vm), model: "virtio-rng-pci", id: nil))
    }

    private func serve(_ queue: GuestQueue, by address: UInt64) {
        let before = queue.usedIndex
        queue.submit([GuestQueue.Buffer(address: Self.buffer, length: 64, writable: true)], kick: false)
        accelerator.store(address, width: 2, 0)
        #expect(pci.machine.wait { queue.usedIndex == before + 1 })
    }

    private func place(_ slot: Int, at address: UInt64) {
        pci.write(slot, 0x20, address & 0xffff_ffff)
        pci.write(slot, 0x24, address >> 32)
    }

    @Test func aNotificationIsCountedAndServedByTheLoop() {
        let queue = driver.start(msix: true)[0]
        serve(queue, by: Self.notify)
        #expect(accelerator.doorbells.map(\.width) == [0] && accelerator.exits == 0)
        #expect(pci.messages.take() == [0x40])
    }

    @Test func whereAWidthIsNeededItIsThatOfDrivers() {
        accelerator.takesAnyWidth = false
        let queue = driver.start(msix: true)[0]
        #expect(accelerator.doorbells.map(\.width) == [2])
        serve(queue, by: Self.notify)
        #expect(accelerator.exits == 0)
    }

    @Test func itMovesWithTheRegisters() throws {
        let queue = driver.start(msix: false)[0]
        place(1, at: VirtioPCIDriver.registers + 0x10000)
        #expect(accelerator.doorbells.map(\.address) == [Self.notify + 0x10000])
        serve(queue, by: Self.notify + 0x10000)
        // Neither memory nor bus mastering: it is nowhere, and must not be served.
        pci.write(1, 4, 0, 2)
        #expect(accelerator.doorbells.isEmpty)
        pci.enable(1)
        serve(queue, by: Self.notify + 0x10000)
        pci.write(1, 4, 2, 2)
        #expect(accelerator.doorbells.isEmpty)
        #expect(accelerator.exits == 0)
    }

    @Test func twoFunctionsCanChangePlaces() throws {
        let other = try VirtioPCIDriver(
            pci,
            VirtioPCI(
                VirtioDevice(
                    model: "other", deviceID: 4, vm: pci.machine.vm, features: 0, queueSizes: [8], config: []),
                model: "other-pci", id: nil), slot: 2)
        let (here, there) = (VirtioPCIDriver.registers, VirtioPCIDriver.registers + 0x10000)
        // It has reset the first, and is at its place, where its driver looks for it.
        _ = other.start(msix: false)
        place(2, at: there)
        driver.findStructures()
        let queue = driver.start(msix: false)[0]
        func places() -> [UInt64] { accelerator.doorbells.map(\.address).sorted() }
        #expect(places() == [Self.notify, Self.notify + 0x10000])
        // Both are at one place for a moment, which is the first's.
        place(2, at: here)
        #expect(places() == [Self.notify])
        place(1, at: there)
        #expect(places() == [Self.notify, Self.notify + 0x10000])
        serve(queue, by: Self.notify + 0x10000)
        #expect(accelerator.exits == 0)
    }
}
