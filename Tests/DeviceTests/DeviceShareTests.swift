import BatonRuntime
import Foundation
import TestSupport
import Testing
import VirtBoard
import Virtio

/// However much a driver makes available, a device has its share of a turn, and everybody else has theirs. Counted, not
/// timed: what has been done when somebody else's turn comes.
@Suite(.oneThread) struct DeviceShareTests {
    private static let base = TestMachine.ramBase
    private static let header = base + 0x8_0000
    private static let status = base + 0x8_1000
    /// A table of indirect descriptors.
    private static let table = base + 0x9_0000
    /// What most segments of huge requests are.
    private static let data = base + 0x10_0000
    private static let dataSize: UInt32 = 2 << 20
    /// The last segment.
    private static let tail = base + 0x30_0000
    private static let tailSize: UInt32 = 512 * 3

    /// A device under a driver, and somebody else who wants the loop.
    private final class Setup<Device: VirtioDevice> {
        let machine: TestMachine
        let device: Device
        let slot: VirtioMMIO
        let driver: GuestDriver
        private(set) var turns = 0
        private var ends: [Int32] = [-1, -1]

        init(features: UInt64? = nil, queues: Int, size: UInt16, _ make: (VirtualMachine) throws -> Device) throws {
            machine = try TestMachine()
            device = try make(machine.vm)
            slot = VirtioMMIO(slot: 0, line: Wire().line)
            try slot.plug(device)
            try machine.vm.add(slot)
            try machine.vm.add(device)
            try machine.vm.start()
            driver = GuestDriver(machine, slot)
            driver.start(features: features ?? driver.deviceFeatures & ~(1 << 29), queues: queues, size: size)
            guard pipe(&ends) == 0 else { throw TestError("pipe") }
            // A byte that nobody takes: always ready.
            _ = write(ends[1], "x", 1)
            try machine.vm.loop.watch(ends[0], .readable) { [unowned self] _ in turns += 1 }
        }

        deinit {
            machine.vm.loop.unwatch(ends[0])
            for fd in ends { close(fd) }
        }

        /// Turns the loop: the other one has a turn each time.
        func turn() { machine.vm.loop.poll(timeout: 0) }
    }

    private func disk(_ directory: TemporaryDirectory, _ vm: VirtualMachine) throws -> VirtioBlock {
        let backend = try BlockBackend(id: "d", filename: directory.file("disk"), readOnly: false)
        return VirtioBlock(vm: vm, backend: backend, serial: "s")
    }

    private func makeDisk(_ directory: TemporaryDirectory, size: Int) throws {
        try directory.writeSparse("disk", size: size)
    }

    /// Makes a request of `length` bytes at sector 0 available, by indirect descriptors.
    private func submit(
        _ setup: Setup<VirtioBlock>, type: UInt32, length: Int, chains: UInt16 = 1, segment: UInt64 = data,
        segmentSize: UInt32 = dataSize
    ) {
        let (machine, queue) = (setup.machine, setup.driver.queues[0])
        machine.store(type, at: Self.header)
        machine.store(UInt32(0), at: Self.header + 4)
        machine.store(UInt64(0), at: Self.header + 8)
        let writable: UInt16 = type == 0 ? 2 : 0
        var slot: UInt16 = 0
        func add(_ address: UInt64, _ length: UInt32, _ flags: UInt16) {
            queue.descriptor(slot, in: Self.table, address, length, flags: flags, next: slot + 1)
            slot += 1
        }
        add(Self.header, 16, 1)
        var left = length - Int(Self.tailSize)
        // Pieces do not end where segments do.
        add(Self.data, 512 * 7, writable | 1)
        left -= 512 * 7
        while left > 0 {
            let count = min(left, Int(segmentSize))
            add(segment, UInt32(count), writable | 1)
            left -= count
        }
        add(Self.tail, Self.tailSize, writable | 1)
        add(Self.status, 1, 2)
        machine.store(UInt8(0xee), at: Self.status)
        for index in 0..<chains {
            queue.descriptor(index, Self.table, UInt32(slot) * 16, flags: 4)
            queue.publish(index, kick: false)
        }
        queue.ring()
    }

    private static let gigabytes = 2000 << 20

    @Test("a disk's queue of gigabytes goes on beside everybody else")
    func disk() throws {
        let directory = try TemporaryDirectory()
        try makeDisk(directory, size: Self.gigabytes)
        let setup = try Setup(queues: 1, size: 16) { try disk(directory, $0) }
        submit(setup, type: 0, length: Self.gigabytes, chains: 16)
        let queue = setup.driver.queues[0]
        for round in 1...5 {
            setup.turn()
            #expect(setup.turns == round)
            #expect(queue.usedIndex < 16, "all was done in \(round) turns")
        }
        // A doorbell brings no more than was there.
        for _ in 0..<100 { queue.ring() }
        #expect(queue.usedIndex < 16)
        // Draining ends it soon, and nothing of a request that is not done whole is told of.
        setup.device.hold()
        #expect(setup.machine.wait { !setup.device.isBusy })
        #expect(queue.usedIndex < 16)
        // The driver's reset ends it for good, and a queue that is set up anew begins with its first request.
        setup.driver.write(0x70, 0)
        setup.device.release()
        setup.turn()
        setup.driver.start(features: setup.driver.deviceFeatures & ~(1 << 29), queues: 1, size: 16)
        submit(setup, type: 8, length: 512 * 10)
        #expect(setup.machine.wait { setup.driver.queues[0].usedIndex == 1 })
        #expect(setup.machine.load(Self.status, as: UInt8.self) == 0)
    }

    @Test("a request that takes many turns is carried out whole", arguments: [0, 1] as [UInt32])
    func wholeRequest(type: UInt32) throws {
        let directory = try TemporaryDirectory()
        let size = type == 0 ? Self.gigabytes : 96 << 20
        try makeDisk(directory, size: size)
        let file = try #require(FileHandle(forUpdatingAtPath: directory.file("disk")))
        defer { try? file.close() }
        let setup = try Setup(queues: 1, size: 16) { try disk(directory, $0) }
        let machine = setup.machine
        let tail = UInt64(size - Int(Self.tailSize))
        let pattern = (0..<Int(Self.tailSize)).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }
        if type == 0 {
            try file.seek(toOffset: tail)
            try file.write(contentsOf: Data(pattern))
        } else {
            machine.store(bytes: pattern, at: Self.tail)
            for offset in stride(from: UInt64(0), to: UInt64(Self.dataSize), by: 8) {
                machine.store(offset, at: Self.data + offset)
            }
        }
        submit(setup, type: type, length: size)
        #expect(setup.driver.queues[0].usedIndex == 0 && setup.turns == 0, "it was waited for")
        #expect(machine.wait { setup.driver.queues[0].usedIndex == 1 })
        #expect(setup.turns > 1)
        #expect(machine.load(Self.status, as: UInt8.self) == 0)
        #expect(setup.driver.queues[0].reap().map(\.length) == [type == 0 ? UInt32(size) + 1 : 1])
        if type == 0 {
            #expect(machine.bytes(Self.tail, pattern.count) == pattern)
            #expect(machine.load(Self.data, as: UInt64.self) == 0)
            return
        }
        try file.seek(toOffset: tail)
        #expect(try file.readToEnd().map { Array($0) } == pattern)
        // The doubleword at a place of the disk is its place in the segment.
        for place in stride(from: 512 * 7, to: Int(tail), by: 1 << 19) {
            try file.seek(toOffset: UInt64(place))
            let bytes = try #require(try file.read(upToCount: 8))
            let value = bytes.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) }
            #expect(value == UInt64((place - 512 * 7) % Int(Self.dataSize)))
        }
    }

    @Test("what was put off goes on after a pause", arguments: [false, true])
    func pause(inAnotherProcess: Bool) throws {
        let directory = try TemporaryDirectory()
        try makeDisk(directory, size: Self.gigabytes)
        let setup = try Setup(queues: 1, size: 16) { try disk(directory, $0) }
        let machine = setup.machine
        submit(setup, type: 0, length: Self.gigabytes)
        machine.vm.stop()
        for _ in 0..<3 { setup.turn() }
        let queue = setup.driver.queues[0]
        #expect(queue.usedIndex == 0)
        let states = machine.vm.devices.map(savedState)
        if inAnotherProcess {
            // The same RAM, another process' devices.
            let slot = VirtioMMIO(slot: 0, line: Wire().line)
            let restored = try disk(directory, machine.vm)
            try slot.plug(restored)
            try loadState(states[0], into: slot)
            try loadState(states[1], into: restored)
            #expect(savedState(restored) == states[1])
            restored.resume()
            #expect(machine.wait { queue.usedIndex == 1 })
        } else {
            try machine.vm.start()
            #expect(machine.wait { queue.usedIndex == 1 })
        }
        #expect(machine.load(Self.status, as: UInt8.self) == 0)
        #expect(queue.reap().map(\.length) == [UInt32(Self.gigabytes) + 1])
    }

    @Test("a request of more than QEMU's most is an error")
    func tooLarge() throws {
        let directory = try TemporaryDirectory()
        try makeDisk(directory, size: 3 << 30)
        let setup = try Setup(queues: 1, size: 16) { try disk(directory, $0) }
        submit(
            setup, type: 0, length: 2 << 30, segment: Self.base, segmentSize: UInt32(TestMachine.ramSize))
        #expect(setup.machine.wait { setup.driver.queues[0].usedIndex == 1 })
        #expect(setup.machine.load(Self.status, as: UInt8.self) == 1)
        #expect(!setup.driver.needsReset)
    }

    // MARK: Other devices

    /// Takes all that it is given, and some time.
    private final class Sink: Chardev {
        var count = 0
        var largest = 0
        init() { super.init(id: "sink", backend: "test") }
        override func write(_ bytes: UnsafeRawBufferPointer) -> Int {
            largest = max(largest, bytes.count)
            count += bytes.count
            burn(microseconds: 100)
            return bytes.count
        }
    }

    @Test("a console's gigabyte goes on beside everybody else")
    func console() throws {
        let sink = Sink()
        let setup = try Setup(queues: 2, size: 16) { vm in
            let console = VirtioSerial(vm: vm)
            try console.plug(.init(isConsole: true, chardev: sink))
            return console
        }
        let queue = setup.driver.queues[1]
        for slot in UInt16(0)..<16 {
            queue.descriptor(
                slot, in: Self.table, Self.data, Self.dataSize, flags: slot == 15 ? 0 : 1, next: slot + 1)
        }
        queue.descriptor(0, Self.table, 256, flags: 4)
        queue.publish(0, kick: false)
        queue.ring()
        #expect(queue.usedIndex == 0 && sink.count > 0 && sink.largest <= 1 << 16)
        for round in 1...3 {
            setup.turn()
            #expect(setup.turns == round && queue.usedIndex == 0)
        }
        #expect(setup.machine.wait { queue.usedIndex == 1 })
        #expect(sink.count == 16 * Int(Self.dataSize))
    }

    /// Is slow at everything.
    private final class SlowNet: NetBackend {
        var frames = 0
        var changes = 0
        init() { super.init(id: "n", backend: "test") }
        override var queueCount: Int { 2 }
        override func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>) {
            frames += 1
            burn(microseconds: 1000)
        }
        override func useQueues(_ count: Int) -> Bool {
            changes += 1
            burn(microseconds: 1000)
            return true
        }
    }

    @Test("a card's frames and commands go on beside everybody else")
    func net() throws {
        let host = SlowNet()
        // CTRL_VQ, MQ, VERSION_1.
        let setup = try Setup(features: 1 << 17 | 1 << 22 | 1 << 32, queues: 5, size: 64) {
            VirtioNet(
                vm: $0, backend: host, mac: [2, 0, 0, 0, 0, 1],
                features: VirtioNetFeature.standard | 1 << 17 | 1 << 22)
        }
        let queue = setup.driver.queues[1]
        setup.turn()
        for slot in UInt16(0)..<64 {
            queue.descriptor(slot, Self.data, 100, flags: 0)
            queue.publish(slot, kick: false)
        }
        queue.ring()
        #expect(queue.usedIndex > 0 && queue.usedIndex < 64)
        setup.turn()
        #expect(setup.turns == 2 && queue.usedIndex < 64)
        #expect(setup.machine.wait { queue.usedIndex == 64 })
        #expect(host.frames == 64)

        let control = setup.driver.queues[4]
        setup.machine.store(bytes: [4, 0, 2, 0], at: Self.header)
        control.descriptor(0, Self.header, 4, flags: 1, next: 1)
        control.descriptor(1, Self.status, 1, flags: 2)
        for _ in 0..<64 { control.publish(0, kick: false) }
        control.ring()
        let before = setup.turns
        #expect(control.usedIndex < 64)
        setup.turn()
        #expect(setup.turns == before + 1 && control.usedIndex < 64)
        #expect(setup.machine.wait { control.usedIndex == 64 })
        #expect(setup.machine.load(Self.status, as: UInt8.self) == 0)
    }

    @Test("alarms that are set and taken back leave nothing")
    func alarms() throws {
        let machine = try TestMachine()
        let clock = GoldfishRTC(loop: machine.vm.loop, line: Wire().line)
        clock.resume()
        clock.mmioWrite(offset: 0x0c, width: 4, value: 0x4000_0000)
        // Each alarm would make the next one slower: a million of them took minutes.
        for alarm in 0..<200_000 { clock.mmioWrite(offset: 0x08, width: 4, value: UInt64(alarm)) }
        #expect(machine.vm.loop.timerCount == 1)
    }
}

/// Takes its time.
private func burn(microseconds: Int64) {
    let end = EventLoop.now + microseconds * 1000
    while EventLoop.now < end {}
}
