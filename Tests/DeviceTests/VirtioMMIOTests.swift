import BatonRuntime
import Testing
import Virtio

@Suite struct VirtioMMIOTests {
    let machine: TestMachine
    let wire = Wire()
    let driver: GuestDriver

    init() throws {
        machine = try TestMachine()
        driver = try GuestDriver(ofEntropyIn: machine, line: wire.line)
    }

    @Test func identifiesItself() {
        #expect(driver.read(0) == 0x7472_6976)
        #expect(driver.read(4) == 2)
        #expect(driver.read(8) == 4)
        #expect(driver.read(0x34) == 8)
        #expect(driver.deviceFeatures == 1 << 32 | 1 << 29 | 1 << 28)
        #expect(driver.read(0xb0) == 0xffff_ffff && driver.read(0xb4) == 0xffff_ffff)
    }

    @Test func anEmptySlotHasDeviceZero() {
        let empty = GuestDriver(machine, VirtioMMIO(slot: 1, line: Wire().line))
        #expect(empty.read(0) == 0x7472_6976)
        #expect(empty.read(8) == 0)
        empty.write(0x70, 1)
        #expect(empty.read(0x70) == 0)
    }

    @Test func refusesFeaturesThatWereNotOffered() {
        driver.negotiate(1 << 32 | 1)
        #expect(driver.status & 8 == 0)
        driver.negotiate(0)
        #expect(driver.status & 8 == 0, "VERSION_1 is needed")
        driver.negotiate(1 << 32)
        #expect(driver.status & 8 != 0)
    }

    @Test func featuresCannotChangeAfterFeaturesOK() {
        driver.negotiate(1 << 32)
        driver.write(0x24, 0)
        driver.write(0x20, 1)
        driver.write(0x70, 15)
        #expect(driver.status == 15)
        #expect(driver.slot.device?.driverFeatures == 1 << 32)
    }

    @Test func statusBitsAreOnlyClearedByReset() {
        driver.negotiate(1 << 32)
        driver.write(0x70, 1)
        #expect(driver.status == 11)
        driver.write(0x70, 0)
        #expect(driver.status == 0)
    }

    @Test func driverOKNeedsFeaturesOK() {
        driver.write(0x70, 1)
        driver.write(0x70, 3)
        driver.write(0x70, 7)
        #expect(driver.status == 3)
    }

    @Test func queuesCannotChangeWhileReady() {
        driver.start(queues: 1)
        driver.write(0x30, 0)
        driver.write(0x38, 2)
        driver.write(0x80, 0)
        #expect(driver.slot.device?.queues[0].size == 8)
        #expect(driver.slot.device?.queues[0].descriptorAddress != 0)
    }

    @Test func queuesThatDoNotExistAreEmpty() {
        driver.negotiate(1 << 32)
        driver.write(0x30, 1)
        #expect(driver.read(0x34) == 0)
        driver.write(0x38, 8)
        driver.write(0x44, 1)
        #expect(driver.read(0x44) == 0)
        driver.write(0x50, 1)
        driver.write(0x50, 0xffff_ffff)
        #expect(!driver.needsReset)
    }

    @Test func notificationsBeforeDriverOKAreServedAfterIt() {
        driver.negotiate(GuestDriver.common)
        let queue = driver.setUpQueue(0, size: 8, at: TestMachine.ramBase + 0x10000)
        queue.submit([.init(address: TestMachine.ramBase, length: 4, writable: true)])
        #expect(queue.usedIndex == 0)
        driver.write(0x70, 15)
        #expect(queue.usedIndex == 1)
    }

    @Test func resetLowersTheInterruptAndForgetsTheQueues() {
        driver.start(queues: 1)
        driver.queues[0].submit([.init(address: TestMachine.ramBase, length: 4, writable: true)])
        #expect(wire.level)
        driver.write(0x70, 0)
        #expect(!wire.level)
        #expect(driver.read(0x60) == 0)
        driver.write(0x30, 0)
        #expect(driver.read(0x44) == 0)
    }

    @Test func registersTakeOnlyAlignedWords() {
        #expect(driver.slot.mmioRead(offset: 0, width: 1) == 0)
        #expect(driver.slot.mmioRead(offset: 0, width: 8) == 2 << 32 | 0x7472_6976, "two words")
        #expect(driver.slot.mmioRead(offset: 2, width: 4) == 0)
        driver.slot.mmioWrite(offset: 0x70, width: 1, value: 1)
        #expect(driver.status == 0)
    }
}
