import BatonRuntime
import TestSupport
import Testing
import Virtio

@Suite struct VirtioPCITests {
    let pci: PCITestBus
    let driver: VirtioPCIDriver
    static let buffer = TestMachine.ramBase + 0x8000

    init() throws {
        pci = try PCITestBus()
        driver = try VirtioPCIDriver(
            pci, VirtioPCI(VirtioEntropy(vm: pci.machine.vm), model: "virtio-rng-pci", id: nil))
    }

    private func request(_ queue: GuestQueue, length: UInt32 = 64) {
        queue.submit([GuestQueue.Buffer(address: Self.buffer, length: length, writable: true)])
    }

    @Test func isAModernDeviceAsQEMUMakesIt() {
        #expect(pci.read(1, 0) == 0x1044_1af4)
        #expect(pci.read(1, 8) == 0x00ff_0001)
        #expect(pci.read(1, 0x2c) == 0x1100_1af4)
        #expect(driver.read(18, 2) == 1, "queues")
        driver.write(0, 1, 4)
        #expect(driver.read(4, 4) == 1, "VERSION_1")
        #expect(driver.read(24, 2) == 8, "the largest size, until the driver chooses")
        driver.write(22, 1, 2)
        #expect(driver.read(24, 2) == 0, "no such queue")
    }

    @Test func servesRequestsWithTheInterruptPin() {
        let queue = driver.start(msix: false)[0]
        request(queue)
        #expect(queue.reap().map(\.length) == [64])
        #expect(pci.wires[1].level)
        #expect(driver.readStatus() == 1 && driver.readStatus() == 0)
        #expect(!pci.wires[1].level)
    }

    @Test func anInterruptThatIsUpInACheckpointCanBeTakenDown() throws {
        let queue = driver.start(msix: false)[0]
        request(queue)
        let state = savedState(driver.device)
        let loaded = try PCITestBus()
        let other = try VirtioPCIDriver(
            loaded, VirtioPCI(VirtioEntropy(vm: loaded.machine.vm), model: "virtio-rng-pci", id: nil))
        try loadState(state, into: other.device)
        #expect(loaded.wires[1].level)
        #expect(other.readStatus() == 1 && !loaded.wires[1].level)
    }

    @Test func servesRequestsWithMessages() {
        let queue = driver.start(msix: true)[0]
        request(queue)
        #expect(queue.reap().count == 1)
        #expect(pci.messages.take() == [0x40])
        #expect(!pci.wires[1].level && driver.readStatus() == 0)
    }

    @Test func aVectorThatIsNotThereReadsBackAsNone() {
        driver.write(22, 0, 2)
        #expect(driver.read(26, 2) == 0xffff && driver.read(16, 2) == 0xffff)
        driver.write(26, 2, 2)
        driver.write(16, 1, 2)
        #expect(driver.read(26, 2) == 0xffff && driver.read(16, 2) == 1)
    }

    @Test func withoutBusMasteringTheDeviceTouchesNothing() {
        let queue = driver.start(msix: true)[0]
        pci.write(1, 4, 2, 2)
        request(queue)
        #expect(queue.usedIndex == 0)
        pci.enable(1)
        #expect(queue.usedIndex == 1, "what was made available meanwhile")
        #expect(pci.messages.take() == [0x40])
    }

    @Test func aResetByTheDriverForgetsVectorsAndQueues() {
        _ = driver.start(msix: true)
        driver.write(20, 0, 1)
        #expect(driver.status == 0)
        driver.write(22, 0, 2)
        #expect(driver.read(26, 2) == 0xffff && driver.read(28, 2) == 0 && driver.read(24, 2) == 8)
        #expect(driver.read(32, 8) == 0)
    }

    @Test func aQueueInUseDoesNotChange() {
        let queue = driver.start(msix: true)[0]
        driver.write(32, 0, 8)
        driver.write(24, 2, 2)
        driver.write(28, 0, 2)
        #expect(driver.read(32, 8) == queue.table && driver.read(24, 2) == 8 && driver.read(28, 2) == 1)
    }

    @Test func registersAreReachedThroughConfigurationSpace() {
        let at = driver.accessCapability
        pci.write(1, at + 4, 4, 1)
        pci.write(1, at + 8, 20)
        pci.write(1, at + 12, 1)
        pci.write(1, at + 16, 3)
        #expect(driver.status == 3)
        #expect(pci.read(1, at + 16) & 0xff == 3)
        // Not allowed: another BAR, beyond its end, a width or an offset that is not.
        for (bar, offset, length) in [
            (0, 0, 4), (5, 0, 4), (4, 0x4000, 4), (4, 0xffff_fffc, 4), (4, 0, 3), (4, 2, 4), (4, 0, 0),
        ] {
            pci.write(1, at + 4, UInt64(bar), 1)
            pci.write(1, at + 8, UInt64(offset))
            pci.write(1, at + 12, UInt64(length))
            pci.write(1, at + 16, 0)
            _ = pci.read(1, at + 16)
        }
        #expect(driver.status == 3)
    }

    @Test func aRunningDeviceGoesThroughACheckpoint() throws {
        let queue = driver.start(msix: true)[0]
        request(queue)
        #expect(pci.messages.take() == [0x40])
        let states = pci.machine.vm.devices.map(savedState)
        pci.machine.vm.resetDevices()
        for (device, state) in zip(pci.machine.vm.devices, states) { try loadState(state, into: device) }
        #expect(pci.machine.vm.devices.map(savedState) == states)
        request(queue)
        #expect(queue.usedIndex == 2 && pci.messages.take() == [0x40])
    }

    @Test func aStateWithAVectorThatIsNotThereIsRefused() throws {
        _ = driver.start(msix: true)
        let small = try PCITestBus()
        let other = try VirtioPCIDriver(
            small, VirtioPCI(VirtioEntropy(vm: small.machine.vm), model: "virtio-rng-pci", id: nil, vectors: 1))
        #expect(throws: VMMError.self) { try loadState(savedState(driver.device), into: other.device) }
    }

    @Test func theDisksConfigurationIsThere() throws {
        let directory = try TemporaryDirectory()
        try directory.writeSparse("disk", size: 1 << 20)
        let bus = try PCITestBus()
        let backend = try BlockBackend(id: "d", filename: directory.file("disk"), readOnly: false)
        let disk = try VirtioPCIDriver(
            bus,
            VirtioPCI(VirtioBlock(vm: bus.machine.vm, backend: backend, serial: ""), model: "virtio-blk-pci", id: nil))
        #expect(bus.read(1, 0) == 0x1042_1af4 && bus.read(1, 8) == 0x0100_0001)
        #expect(disk.config(0, 8) == 2048 && disk.config(20, 4) == 512)
    }

    @Test func randomRegisterAccessesNeverEndTheProcess() throws {
        var random = Randomness(seed: 5)
        for round in 0..<20_000 {
            if round % 500 == 0 {
                driver.findStructures()
                _ = driver.start(msix: round % 1000 == 0)
            }
            let width = [1, 2, 4, 8].randomElement(using: &random) ?? 4
            let value = Bool.random(using: &random) ? random.next() & 0xff : random.next()
            switch Int.random(in: 0...3, using: &random) {
            case 0: pci.write(1, Int.random(in: 0...(256 - width), using: &random), value, width)
            case 1: _ = pci.read(1, Int.random(in: 0...(256 - width), using: &random), width)
            default:
                let part = UInt64.random(in: 0...3, using: &random) << 12
                let address = VirtioPCIDriver.registers + part + UInt64.random(in: 0..<64, using: &random)
                #expect(pci.space.mmioRead(address, width: width) != nil)
                #expect(pci.space.mmioWrite(address, width: width, value: value))
            }
        }
        let state = savedState(driver.device)
        try loadState(state, into: driver.device)
        #expect(savedState(driver.device) == state)
    }
}
