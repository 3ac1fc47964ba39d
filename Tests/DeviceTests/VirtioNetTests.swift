import BatonRuntime
import TestSupport
import Testing
import Virtio

@Suite(.oneThread) struct VirtioNetTests {
    final class Backend: NetBackend {
        var sent: [[UInt8]] = []
        var ready = 0
        init() { super.init(id: "n", backend: "test") }
        override func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>) {
            sent.append(parts.flatMap { Array($0) })
        }
        override func receiveReady() { ready += 1 }
        func deliver(_ frame: [UInt8]) -> Bool { frame.withUnsafeBytes { deliver($0) } }
    }
    let machine: TestMachine
    let backend = Backend()
    let wire = Wire()
    let driver: GuestDriver
    static let data = TestMachine.ramBase + 0x10_0000
    static let mergeable: UInt64 = 1 << 15

    init() throws {
        machine = try TestMachine()
        let slot = VirtioMMIO(slot: 0, line: wire.line)
        let device = VirtioNet(vm: machine.vm, backend: backend, mac: [0x52, 0x54, 0, 1, 2, 3])
        try slot.plug(device)
        try machine.vm.add(slot)
        try machine.vm.add(device)
        driver = GuestDriver(machine, slot)
        try machine.vm.start()
    }

    @Test func tellsItsAddressAndLink() {
        #expect((0..<8).map { driver.slot.mmioRead(offset: 0x100 + $0, width: 1) } == [0x52, 0x54, 0, 1, 2, 3, 1, 0])
    }

    @Test func sendsFramesWithoutTheirHeader() {
        driver.start(queues: 2)
        machine.store(bytes: Array(repeating: 0xee, count: 12) + Array(0..<60), at: Self.data)
        driver.queues[1].submit([
            .init(address: Self.data, length: 8, writable: false),
            .init(address: Self.data + 8, length: 30, writable: false),
            .init(address: Self.data + 38, length: 34, writable: false),
        ])
        #expect(backend.sent == [Array(0..<60)])
        #expect(driver.queues[1].reap().count == 1)
    }

    @Test func dropsFramesOfImpossibleLength() {
        driver.start(queues: 2)
        driver.queues[1].submit([.init(address: Self.data, length: 20, writable: false)])
        driver.queues[1].submit([.init(address: Self.data, length: 70000, writable: false)])
        #expect(backend.sent.isEmpty)
        #expect(driver.queues[1].reap().count == 2)
        #expect(!driver.needsReset)
        driver.queues[1].submit([.init(address: Self.data, length: 11, writable: false)])
        #expect(driver.needsReset)
    }

    @Test func deliversFramesWithAHeader() {
        driver.start(queues: 2)
        driver.queues[0].submit([.init(address: Self.data, length: 1526, writable: true)])
        #expect(backend.deliver(Array(1...64)))
        #expect(driver.queues[0].reap().map(\.length) == [76])
        #expect(machine.bytes(Self.data, 76) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] + Array(1...64))
        #expect(wire.level)
    }

    @Test func holdsFramesUntilThereIsRoom() {
        driver.start(queues: 2)
        #expect(!backend.deliver(Array(1...64)))
        let before = backend.ready
        driver.queues[0].submit([.init(address: Self.data, length: 1526, writable: true)])
        #expect(backend.ready == before + 1)
        #expect(backend.deliver(Array(1...64)))
    }

    @Test func spreadsAFrameOverMergedBuffers() {
        driver.start(features: GuestDriver.common | Self.mergeable, queues: 2)
        let frame = (0..<250).map { UInt8($0) }
        driver.queues[0].submit([.init(address: Self.data, length: 100, writable: true)])
        driver.queues[0].submit([.init(address: Self.data + 0x1000, length: 100, writable: true)])
        #expect(!backend.deliver(frame), "two are not enough")
        #expect(driver.queues[0].usedIndex == 0)
        driver.queues[0].submit([.init(address: Self.data + 0x2000, length: 100, writable: true)])
        #expect(backend.deliver(frame))
        #expect(driver.queues[0].reap().map(\.length) == [100, 100, 62])
        #expect(machine.load(Self.data + 10, as: UInt16.self) == 3)
        #expect(
            machine.bytes(Self.data + 12, 88) + machine.bytes(Self.data + 0x1000, 100)
                + machine.bytes(Self.data + 0x2000, 62)
                == frame)
    }

    @Test func asksForTheNextBufferWhenThoseThatThereAreDoNotSuffice() {
        driver.start(features: GuestDriver.common | Self.mergeable | 1 << 29, queues: 2)
        for offset in [UInt64(0), 0x1000] {
            driver.queues[0].submit([.init(address: Self.data + offset, length: 100, writable: true)])
        }
        #expect(!backend.deliver(Array(repeating: 1, count: 250)))
        #expect(machine.load(driver.queues[0].used + 4 + 8 * 8, as: UInt16.self) == 2)
    }

    @Test func dropsFramesThatABufferCannotHold() {
        driver.start(queues: 2)
        driver.queues[0].submit([.init(address: Self.data, length: 50, writable: true)])
        #expect(backend.deliver(Array(1...64)))
        #expect(driver.queues[0].usedIndex == 0)
        #expect(backend.deliver(Array(1...20)))
        #expect(driver.queues[0].reap().map(\.length) == [32])
    }

    @Test func failsOnReceiveBuffersWithoutRoomForTheHeader() throws {
        driver.start(queues: 2)
        driver.queues[0].submit([.init(address: Self.data, length: 12, writable: true)])
        #expect(backend.deliver(Array(1...64)))
        #expect(driver.needsReset)
        // And its state can still be saved and loaded.
        machine.vm.stop()
        let device = machine.vm.devices[1]
        let state = savedState(device)
        try loadState(state, into: device)
        #expect(savedState(device) == state)
    }

    @Test func linkChangesInterrupt() {
        driver.start(queues: 2)
        let generation = driver.read(0xfc)
        backend.linkChanged?(false)
        #expect(driver.read(0x60) & 2 != 0)
        #expect(driver.slot.mmioRead(offset: 0x106, width: 2) == 0)
        #expect(driver.read(0xfc) != generation)
    }

    @Test func neverTouchesMemoryWhileStopped() {
        driver.start(queues: 2)
        driver.queues[0].submit([.init(address: Self.data, length: 1526, writable: true)])
        machine.vm.stop()
        #expect(!backend.deliver(Array(1...64)))
        #expect(machine.bytes(Self.data, 76).allSatisfy { $0 == 0 })
    }
}
