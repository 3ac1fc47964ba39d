import BatonRuntime
import Testing
import Virtio

/// The ring engine, driven through the entropy device: its chains need only
/// be writable.
@Suite struct VirtQueueTests {
    let machine: TestMachine
    let wire = Wire()
    let driver: GuestDriver
    static let data = TestMachine.ramBase + 0x10_0000

    init() throws {
        machine = try TestMachine()
        driver = try GuestDriver(ofEntropyIn: machine, line: wire.line)
    }

    private func start(_ features: UInt64 = GuestDriver.common) -> GuestQueue {
        driver.start(features: features, queues: 1)
        return driver.queues[0]
    }

    @Test func fillsTheWholeOfAChainAndInterrupts() {
        let queue = start()
        queue.submit([
            .init(address: Self.data, length: 32, writable: true),
            .init(address: Self.data + 64, length: 32, writable: true),
        ])
        let used = queue.reap()
        #expect(used.count == 1 && used[0].head == 0 && used[0].length == 64)
        #expect(machine.bytes(Self.data, 32) != machine.bytes(Self.data + 64, 32))
        #expect(machine.bytes(Self.data + 32, 32).allSatisfy { $0 == 0 })
        #expect(wire.level)
        driver.write(0x64, 1)
        #expect(!wire.level)
    }

    @Test func indicesWrapAfter65536Chains() {
        let queue = start()
        for round in 0..<70_000 {
            queue.submit([.init(address: Self.data, length: 4, writable: true)])
            let used = queue.reap()
            guard used.count == 1, used[0].head == UInt32(round % 8) else {
                Issue.record("round \(round): \(used)")
                return
            }
        }
        #expect(!driver.needsReset)
    }

    @Test func takesChainsFromIndirectTables() {
        let queue = start()
        let table = Self.data + 0x1008
        queue.descriptor(0, in: table, Self.data, 8, flags: 3, next: 2)
        queue.descriptor(2, in: table, Self.data + 16, 8, flags: 2)
        queue.descriptor(0, table, 48, flags: 4)
        queue.publish(0)
        #expect(queue.reap().map(\.length) == [16])
    }

    @Test func suppressesInterruptsByFlag() {
        let queue = start()
        machine.store(UInt16(1), at: queue.available)
        queue.submit([.init(address: Self.data, length: 4, writable: true)])
        #expect(queue.reap().count == 1)
        #expect(!wire.level)
    }

    @Test func interruptsAtTheEventIndexOnly() {
        let queue = start(GuestDriver.common | 1 << 29)
        // Interrupt when the used index passes 2: on the third chain.
        machine.store(UInt16(2), at: queue.available + 4 + 8 * 2)
        // The first signal after the start is always given.
        queue.submit([.init(address: Self.data, length: 4, writable: true)])
        driver.write(0x64, 1)
        queue.submit([.init(address: Self.data, length: 4, writable: true)])
        #expect(!wire.level)
        queue.submit([.init(address: Self.data, length: 4, writable: true)])
        #expect(wire.level)
        // And the device asks for the next notification where it stands.
        #expect(machine.load(queue.used + 4 + 8 * 8, as: UInt16.self) == 3)
    }

    // MARK: What drivers must not do

    private func expectFailure(_ name: String, _ make: (GuestQueue) -> Void) throws {
        let queue = start()
        driver.write(0x64, 3)
        make(queue)
        #expect(driver.needsReset, "\(name): DEVICE_NEEDS_RESET")
        #expect(driver.read(0x60) & 2 != 0, "\(name): configuration interrupt")
        let before = queue.usedIndex
        queue.submit([.init(address: Self.data, length: 4, writable: true)])
        #expect(queue.usedIndex == before, "\(name): the queue stays stopped")
        // A reset brings it back.
        let again = start()
        #expect(!driver.needsReset)
        again.submit([.init(address: Self.data, length: 4, writable: true)])
        #expect(again.usedIndex == 1, "\(name): works after a reset")
    }

    @Test func refusesLoops() throws {
        try expectFailure("self loop") { queue in
            queue.descriptor(0, Self.data, 4, flags: 3, next: 0)
            queue.publish(0)
        }
    }

    @Test func refusesLoopsInIndirectTables() throws {
        try expectFailure("indirect loop") { queue in
            queue.descriptor(0, in: Self.data, Self.data + 0x100, 4, flags: 3, next: 1)
            queue.descriptor(1, in: Self.data, Self.data + 0x100, 4, flags: 3, next: 0)
            queue.descriptor(0, Self.data, 32, flags: 4)
            queue.publish(0)
        }
    }

    @Test func refusesHeadsBeyondTheTable() throws {
        try expectFailure("head") { $0.publish(8) }
        try expectFailure("head") { $0.publish(0xffff) }
    }

    @Test func refusesNextBeyondTheTable() throws {
        try expectFailure("next") { queue in
            queue.descriptor(0, Self.data, 4, flags: 3, next: 8)
            queue.publish(0)
        }
    }

    @Test func refusesAnAvailableIndexThatJumps() throws {
        try expectFailure("index") { queue in
            queue.availableIndex = 500
            queue.publish(0)
        }
    }

    static let base = TestMachine.ramBase
    static let end = TestMachine.ramBase + UInt64(TestMachine.ramSize)
    static let notRAM: [(UInt64, UInt32)] = [
        (0, 16), (base - 4, 8), (end - 4, 8), (UInt64.max - 3, 16), (UInt64.max, 0xffff_ffff),
        (TestMachine.romBase, 16),
    ]
    @Test(arguments: notRAM)
    func refusesBuffersThatAreNotRAM(_ address: UInt64, _ length: UInt32) throws {
        try expectFailure("\(Hex(address))") { $0.submit([.init(address: address, length: length, writable: true)]) }
    }

    @Test func refusesEmptyBuffers() throws {
        try expectFailure("empty") { $0.submit([.init(address: Self.data, length: 0, writable: true)]) }
    }

    @Test func refusesReadableBehindWritable() throws {
        try expectFailure("order") {
            $0.submit([
                .init(address: Self.data, length: 4, writable: true),
                .init(address: Self.data, length: 4, writable: false),
            ])
        }
    }

    @Test(arguments: [0 as UInt32, 15, 17, 16 * 1025])
    func refusesIndirectTablesOfWrongLength(_ length: UInt32) throws {
        try expectFailure("length \(length)") { queue in
            queue.descriptor(0, Self.data, length, flags: 4)
            queue.publish(0)
        }
    }

    @Test func refusesIndirectTablesInIndirectTablesOrOutsideRAM() throws {
        try expectFailure("nested") { queue in
            queue.descriptor(0, in: Self.data, Self.data, 16, flags: 4)
            queue.descriptor(0, Self.data, 16, flags: 4)
            queue.publish(0)
        }
        try expectFailure("outside") { queue in
            queue.descriptor(0, 0x1234_5678_9abc, 16, flags: 4)
            queue.publish(0)
        }
        try expectFailure("with next") { queue in
            queue.descriptor(0, Self.data, 16, flags: 5, next: 1)
            queue.publish(0)
        }
    }

    @Test func refusesIndirectTablesThatWereNotNegotiated() {
        let queue = start(1 << 32)
        queue.descriptor(0, in: Self.data, Self.data, 16, flags: 2)
        queue.descriptor(0, Self.data, 16, flags: 4)
        queue.publish(0)
        #expect(driver.needsReset)
    }

    static let wrongRings: [(UInt64, UInt64, UInt64)] = [
        (base + 8, base + 0x4000, base + 0x8000), (base, base + 0x4001, base + 0x8000),
        (base, base + 0x4000, base + 0x8002), (0, base + 0x4000, base + 0x8000),
        (base, UInt64.max - 1, base + 0x8000), (base, base + 0x4000, TestMachine.romBase),
        (base, base + 0x4000, end - 64),
    ]
    @Test(arguments: wrongRings)
    func refusesRingsAtWrongAddresses(_ table: UInt64, _ available: UInt64, _ used: UInt64) {
        driver.negotiate(GuestDriver.common)
        driver.write(0x38, 8)
        for (offset, address) in [(UInt64(0x80), table), (0x90, available), (0xa0, used)] {
            driver.write(offset, UInt32(truncatingIfNeeded: address))
            driver.write(offset + 4, UInt32(truncatingIfNeeded: address >> 32))
        }
        driver.write(0x44, 1)
        #expect(driver.needsReset)
        #expect(driver.read(0x44) == 0)
    }

    @Test(arguments: [0 as UInt32, 3, 16, 0x10008, 0xffff_ffff])
    func refusesWrongQueueSizes(_ size: UInt32) {
        driver.negotiate(GuestDriver.common)
        driver.write(0x38, size)
        driver.write(0x80, UInt32(TestMachine.ramBase))
        driver.write(0x90, UInt32(TestMachine.ramBase + 0x4000))
        driver.write(0xa0, UInt32(TestMachine.ramBase + 0x8000))
        driver.write(0x44, 1)
        #expect(driver.needsReset)
    }
}
