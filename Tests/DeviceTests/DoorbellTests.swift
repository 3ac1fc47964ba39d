import BatonRuntime
import Testing
import Virtio

/// Notifications that come without a call: virtio-mmio.
@Suite struct DoorbellTests {
    let machine: TestMachine
    let accelerator: FakeAccelerator
    let slot: VirtioMMIO
    let driver: GuestDriver
    static let address: UInt64 = 0x1000_8000
    static let notify = address + 0x50
    static let buffer = TestMachine.ramBase + 0x8000

    init() throws { (machine, accelerator, slot, driver) = try DoorbellTests.make() }

    private static func make() throws -> (TestMachine, FakeAccelerator, VirtioMMIO, GuestDriver) {
        let machine = try TestMachine()
        let accelerator = try FakeAccelerator(machine)
        let slot = VirtioMMIO(slot: 0, line: Wire().line, address: address)
        let device = VirtioEntropy(vm: machine.vm)
        try slot.plug(device)
        try machine.vm.add(slot)
        try machine.vm.add(device)
        try machine.vm.addressSpace.map(slot, at: address, size: VirtioMMIO.registersSize, name: "virtio-mmio")
        return (machine, accelerator, slot, GuestDriver(machine, slot))
    }

    private func request(_ queue: GuestQueue) {
        queue.submit([GuestQueue.Buffer(address: Self.buffer, length: 64, writable: true)], kick: false)
        accelerator.store(Self.notify, width: 4, 0)
    }

    @Test func aNotificationIsCountedAndServedByTheLoop() throws {
        try machine.vm.start()
        driver.start(queues: 1)
        let queue = driver.queues[0]
        for round in 1...3 as ClosedRange<UInt16> {
            request(queue)
            #expect(queue.usedIndex == round - 1, "the guest goes on at once")
            #expect(machine.wait { queue.usedIndex == round })
        }
        #expect(accelerator.exits == 0)
        // Of another queue, or of another width: the device says what it thinks of it.
        accelerator.store(Self.notify, width: 4, 1)
        accelerator.store(Self.notify, width: 2, 0)
        #expect(accelerator.exits == 2)
    }

    @Test func itIsThereWhileTheDriverUsesTheQueue() throws {
        try machine.vm.start()
        driver.negotiate(GuestDriver.common)
        let queue = driver.setUpQueue(0, size: 8, at: TestMachine.ramBase + 0x10000)
        #expect(accelerator.doorbells.isEmpty)
        driver.write(0x70, 15)
        #expect(
            accelerator.doorbells.map { [$0.address, UInt64($0.width), $0.value] } == [[Self.notify, 4, 0]])
        request(queue)
        driver.write(0x70, 0)
        #expect(accelerator.doorbells.isEmpty)
        while machine.vm.loop.hasPostponed { machine.vm.loop.poll(timeout: 0) }
        machine.vm.loop.poll(timeout: 0)
        #expect(queue.usedIndex == 0, "the driver has taken the queue back")
        driver.start(queues: 1)
        request(driver.queues[0])
        #expect(machine.wait { driver.queues[0].usedIndex == 1 })
        machine.vm.resetDevices()
        #expect(accelerator.doorbells.isEmpty && accelerator.exits == 0)
    }

    @Test func aCountThatIsLeftInAPauseIsServedOnce() throws {
        try machine.vm.start()
        driver.start(queues: 1)
        let queue = driver.queues[0]
        request(queue)
        machine.vm.stop()
        machine.vm.loop.poll(timeout: 0)
        #expect(queue.usedIndex == 0, "the machine stands still")
        try machine.vm.start()
        #expect(machine.wait { queue.usedIndex == 1 })
        machine.vm.loop.poll(timeout: 0)
        #expect(queue.usedIndex == 1)
        request(queue)
        #expect(machine.wait { queue.usedIndex == 2 })
        #expect(accelerator.exits == 0 && accelerator.added == 1)
    }

    @Test func aCountThatIsLeftIsServedInTheNextProcess() throws {
        try machine.vm.start()
        driver.start(queues: 1)
        request(driver.queues[0])
        machine.vm.stop()
        let states = machine.vm.devices.map(savedState)

        let (next, nextAccelerator, _, _) = try DoorbellTests.make()
        next.ram.host.copyMemory(from: machine.ram.host, byteCount: TestMachine.ramSize)
        for (device, state) in zip(next.vm.devices, states) { try loadState(state, into: device) }
        next.vm.tookOverState()
        #expect(nextAccelerator.doorbells.isEmpty, "this guest may yet go back")
        try next.vm.start()
        func used() -> UInt16 { next.load(driver.queues[0].used + 2) }
        #expect(next.wait { used() == 1 && !nextAccelerator.doorbells.isEmpty })
        // The old one goes on as well as it would have, as after an update that has failed.
        try machine.vm.start()
        #expect(machine.wait { driver.queues[0].usedIndex == 1 })
        #expect(used() == 1)
    }

    @Test func withoutDoorbellsDevicesAreCalled() throws {
        let machine = try TestMachine()
        let driver = try GuestDriver(ofEntropyIn: machine, line: Wire().line)
        driver.start(queues: 1)
        driver.queues[0].submit([GuestQueue.Buffer(address: Self.buffer, length: 64, writable: true)])
        #expect(driver.queues[0].usedIndex == 1)
    }
}
