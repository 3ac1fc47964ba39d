import BatonRuntime
import Foundation
import TestSupport
import Testing
import Virtio

/// Requests between the driver and an engine that ends them when a test says so: in any order, late, with errors, and
/// over a save.
@Suite(.oneThread) struct VirtioBlockEngineTests {
    private static let size = 4 << 20

    private let machine: TestMachine
    private let directory: TemporaryDirectory
    private let engine = HeldEngine()
    private let backend: BlockBackend
    private let device: VirtioBlock
    private let slot: VirtioMMIO
    private let driver: GuestDriver
    private let wire = Wire()
    private final class Events {
        var all: [(name: String, data: JSONObject)] = []
    }
    private let events = Events()

    init() throws {
        machine = try TestMachine()
        directory = try TemporaryDirectory()
        try directory.writeSparse("disk", size: Self.size)
        var settings = BlockSettings()
        settings.engine = try machine.vm.blockEngines.engine(of: engine)
        settings.onReadError = .report
        settings.onWriteError = .enospc
        backend = try BlockBackend(id: "d", filename: directory.file("disk"), readOnly: false, settings: settings)
        var properties = VirtioBlock.Properties()
        properties.queueCount = 2
        device = VirtioBlock(vm: machine.vm, backend: backend, properties: properties)
        slot = VirtioMMIO(slot: 0, line: wire.line)
        try slot.plug(device)
        try machine.vm.add(slot)
        try machine.vm.add(device)
        try machine.vm.start()
        driver = GuestDriver(machine, slot)
        driver.start(features: driver.deviceFeatures & ~(1 << 29), queues: 2, size: 16)
        let events = self.events
        machine.vm.onEvent { events.all.append(($0, $1)) }
    }

    private func header(_ number: Int) -> UInt64 { TestMachine.ramBase + 0x10_0000 + UInt64(number) * 0x1_0000 }
    private func status(_ number: Int) -> UInt8 { machine.load(header(number) + 64) }

    /// Submits the request of a number, of one sector, or of more.
    private func submit(_ number: Int, type: UInt32 = 0, length: UInt32 = 512, queue: Int = 0, sector: UInt64? = nil) {
        let at = header(number)
        machine.store(type, at: at)
        machine.store(UInt32(0), at: at + 4)
        machine.store(sector ?? UInt64(number), at: at + 8)
        machine.store(UInt8(0xee), at: at + 64)
        let data = GuestQueue.Buffer(address: at + 4096, length: length, writable: type == 0)
        driver.queues[queue].submit(
            [.init(address: at, length: 16, writable: false)] + (type == 4 ? [] : [data])
                + [.init(address: at + 64, length: 1, writable: true)], kick: false)
    }

    /// Turns the loop once.
    private func turn() {
        var isDone = false
        machine.vm.loop.later { isDone = true }
        machine.vm.run { isDone }
    }

    @Test("a notification is one submission, and what ends together is one interrupt")
    func batches() throws {
        for number in 0..<5 { submit(number) }
        driver.queues[0].ring()
        #expect(engine.held.count == 5 && engine.submissions == 1)
        #expect(driver.queues[0].usedIndex == 0 && device.isBusy)
        for _ in 0..<5 { engine.end(0) }
        let before = wire.rises
        turn()
        #expect(driver.queues[0].usedIndex == 5 && wire.rises == before + 1)
        #expect((0..<5).allSatisfy { status($0) == 0 })
        #expect(!device.isBusy)
    }

    @Test("requests end in any order, on the queue that they came from")
    func order() throws {
        for number in 0..<4 { submit(number, queue: number % 2) }
        driver.queues[0].ring()
        driver.queues[1].ring()
        let heads = (0..<2).map { queue in driver.queues[queue].reap() }
        #expect(heads.allSatisfy { $0.isEmpty })
        // 0, 2 of the first queue, then 1, 3 of the second.
        engine.end(3)
        engine.end(1)
        turn()
        #expect((status(0), status(1), status(2), status(3)) == (0xee, 0xee, 0, 0))
        engine.end(0)
        engine.end(0)
        turn()
        #expect(driver.queues[0].reap().map(\.head) == [3, 0])
        #expect(driver.queues[1].reap().map(\.head) == [3, 0])
    }

    @Test("what a driver makes available beyond its queue waits")
    func tooMuch() throws {
        submit(0)
        // The same chain again and again.
        for _ in 0..<15 { driver.queues[0].publish(0, kick: false) }
        driver.queues[0].ring()
        for _ in 0..<8 { driver.queues[0].publish(0, kick: false) }
        driver.queues[0].ring()
        #expect(engine.held.count == 16)
        engine.end(0)
        turn()
        #expect(engine.held.count == 16 && driver.queues[0].usedIndex == 1)
        while !engine.held.isEmpty {
            engine.end(0)
            turn()
        }
        #expect(driver.queues[0].usedIndex == 24 && !driver.needsReset)
    }

    @Test("a disk that is held takes nothing new, and lets go of what is large")
    func held() throws {
        submit(0)
        submit(1, length: 2 << 20)
        for number in 2..<5 { submit(number, type: 1, length: 512) }
        driver.queues[0].ring()
        #expect(engine.held.count == 5)
        device.hold()
        submit(9)
        driver.queues[0].ring()
        #expect(engine.held.count == 5 && device.workInHand == "5 requests of drive 'd'")
        while !engine.held.isEmpty { engine.end(0) }
        turn()
        #expect(!device.isBusy && driver.queues[0].usedIndex == 4 && status(1) == 0xee)
        device.release()
        #expect(engine.held.count == 2)
        while !engine.held.isEmpty {
            engine.end(0)
            turn()
        }
        #expect((status(1), status(9)) == (0, 0) && driver.queues[0].usedIndex == 6)
    }

    @Test("what is in hand or failed goes through a checkpoint, and is carried out once more")
    func checkpoint() throws {
        submit(0, type: 1)
        driver.queues[0].ring()
        let inHand = savedState(device)
        engine.end(0, error: ENOSPC)
        turn()
        turn()
        #expect(machine.vm.runState == .ioError && backend.ioStatus == .nospace)
        #expect(status(0) == 0xee, "the guest is not told")
        let names = events.all.map(\.name)
        #expect(names == ["BLOCK_IO_ERROR", "STOP"])
        #expect(events.all[0].data["action"]?.stringValue == "stop")
        #expect(events.all[0].data["nospace"] == .bool(true))
        #expect(events.all[0].data["operation"]?.stringValue == "write")
        let states = machine.vm.devices.map(savedState)
        #expect(states[1] == inHand)
        // It is told of before it is notified of.
        submit(1, queue: 1)

        // Another process, with the same RAM.
        let after = HeldEngine()
        let other = try TestMachine(sharing: machine)
        var settings = BlockSettings()
        settings.engine = try other.vm.blockEngines.engine(of: after)
        var properties = VirtioBlock.Properties()
        properties.queueCount = 2
        let restored = VirtioBlock(
            vm: other.vm,
            backend: try BlockBackend(id: "d", filename: directory.file("disk"), readOnly: false, settings: settings),
            properties: properties)
        let otherSlot = VirtioMMIO(slot: 0, line: Wire().line)
        try otherSlot.plug(restored)
        try loadState(states[0], into: otherSlot)
        try loadState(states[1], into: restored)
        #expect(savedState(restored) == states[1])
        otherSlot.resume()
        restored.resume()
        #expect(after.held.count == 2, "each is carried out again")
        #expect(Set(after.held.map(\.pointee.kind)) == [.write, .read])
        while !after.held.isEmpty { after.end(0) }
        other.vm.loop.poll(timeout: 0)
        #expect((status(0), status(1)) == (0, 0))
        #expect((driver.queues[0].usedIndex, driver.queues[1].usedIndex) == (1, 1))
    }

    @Test("a state whose unfinished requests do not fit is refused")
    func wrongState() throws {
        submit(0, type: 1)
        driver.queues[0].ring()
        engine.end(0, error: ENOSPC)
        turn()
        turn()
        let good = savedState(device)
        for (from, to) in [(0, 5 << 16), (0, 1 << 16), (0, 4096)] as [(UInt64, UInt64)] {
            var bad = good
            // The field is the last one.
            let place = bad.count - 8
            #expect(bad[place...] == littleEndianBytes(from)[...])
            bad.replaceSubrange(place..., with: littleEndianBytes(to))
            #expect(throws: VMMError.self) { try loadState(bad, into: device) }
        }
        #expect(savedState(device) == good)
    }

    @Test("cont tries what failed again, until it goes well")
    func retry() throws {
        submit(0, type: 1)
        driver.queues[0].ring()
        for round in 1...3 {
            engine.end(0, error: ENOSPC)
            turn()
            turn()
            #expect(machine.vm.runState == .ioError, "round \(round)")
            #expect(status(0) == 0xee && driver.queues[0].usedIndex == 0)
            try machine.vm.start()
            #expect(backend.ioStatus == .ok && engine.held.count == 1)
        }
        engine.end(0)
        turn()
        #expect(status(0) == 0 && driver.queues[0].usedIndex == 1 && machine.vm.isRunning)
    }

    @Test("an error that is reported is the guest's")
    func report() throws {
        submit(0)
        submit(1, type: 1)
        submit(2, type: 4)
        driver.queues[0].ring()
        for _ in 0..<3 { engine.end(0, error: EIO) }
        turn()
        turn()
        #expect((0..<3).allSatisfy { status($0) == 1 } && machine.vm.isRunning)
        #expect(events.all.map { $0.data["operation"]?.stringValue } == ["read", "write"])
        #expect(events.all.map { $0.data["reason"]?.stringValue } == ["Input/output error", "Input/output error"])
    }

    @Test("a reset waits for what is in hand, and forgets what failed")
    func reset() throws {
        submit(0, type: 1)
        driver.queues[0].ring()
        engine.end(0, error: ENOSPC)
        turn()
        turn()
        #expect(machine.vm.runState == .ioError)
        driver.write(0x70, 0)
        try machine.vm.start()
        #expect(engine.held.isEmpty && status(0) == 0xee)
    }

    @Test("drain waits with the loop running, and gives up at its limit")
    func drain() throws {
        submit(0)
        driver.queues[0].ring()
        var turns = 0
        machine.vm.loop.later { turns += 1 }
        let text = text { try machine.vm.drain(limit: 20_000_000) }
        #expect(text.contains("1 request of drive 'd' did not end within 20 ms"))
        #expect(turns == 1)
        // It goes on.
        submit(1)
        driver.queues[0].ring()
        #expect(engine.held.count == 2)
        machine.vm.loop.later { for _ in 0..<2 { engine.end(0) } }
        try machine.vm.drain(limit: 10_000_000_000)
        #expect(driver.queues[0].usedIndex == 2)
    }

    private func text(_ body: () throws -> Void) -> String {
        do {
            try body()
            return "no error"
        } catch { return "\(error)" }
    }

    @Test("the guest is told of another size, and of its cache as it sets it")
    func configuration() throws {
        #expect(driver.read(0x100) == UInt32(Self.size / 512))
        try backend.resize(to: UInt64(Self.size) * 2)
        #expect(driver.read(0x100) == UInt32(Self.size / 256))
        #expect(driver.read(0x60) & 2 != 0, "a configuration interrupt")
        #expect(backend.isWriteback && slot.mmioRead(offset: 0x120, width: 1) == 1)
        slot.mmioWrite(offset: 0x120, width: 1, value: 0)
        #expect(!backend.isWriteback)
        submit(0, type: 1)
        driver.queues[0].ring()
        #expect(engine.held[0].pointee.isDurable)
        engine.end(0)
        turn()
        #expect(slot.mmioRead(offset: 0x122, width: 2) == 2, "queues")
    }
}
