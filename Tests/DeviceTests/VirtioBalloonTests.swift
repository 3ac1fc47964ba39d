import BatonRuntime
import CBaton
import Glibc
import TestSupport
import Testing
import Virtio

@Suite(.oneThread) struct VirtioBalloonTests {
    /// What memory is made of.
    enum Kind: CaseIterable { case anonymous, memfd, privateMemfd }

    /// A machine with a balloon, and memory of a kind behind its RAM.
    final class Setup {
        let machine: TestMachine
        let memory: RAMBlock
        let device: VirtioBalloon
        let driver: GuestDriver
        private(set) var events: [(name: String, data: JSONObject)] = []

        /// Where that memory is.
        static let base: UInt64 = 0x1_0000_0000
        static let size = 16 << 20

        init(
            _ kind: Kind = .memfd, properties: VirtioBalloon.Properties = VirtioBalloon.Properties(),
            features: UInt64 = 1 << 32 | 1 << 28 | 1 << 1
        ) throws {
            machine = try TestMachine()
            let fd = kind == .anonymous ? -1 : try Mapping.createMemfd(name: "t", length: Self.size).release()
            let host = try Mapping.map(
                length: Self.size, alignment: 4096, fd: fd, shared: kind == .memfd, name: "memory")
            memory = RAMBlock(
                name: "memory", usedLength: Self.size, maxLength: Self.size, alignment: 4096, host: host, fd: fd,
                shared: kind == .memfd, origin: "test")
            try machine.vm.addressSpace.map(memory, at: Self.base, size: UInt64(Self.size))
            machine.vm.ramSize = UInt64(Self.size)
            let slot = VirtioMMIO(slot: 0, line: Wire().line)
            device = VirtioBalloon(vm: machine.vm, properties: properties)
            try slot.plug(device)
            try machine.vm.add(slot)
            try machine.vm.add(device)
            driver = GuestDriver(machine, slot)
            machine.vm.onEvent { [unowned self] in events.append(($0, $1)) }
            try machine.vm.start()
            driver.start(features: features, queues: device.queues.count, size: 16)
            memset(host, 0x5a, Self.size)
        }

        /// Which pages are there.
        func resident() -> Set<Int> {
            var state = [UInt8](repeating: 0, count: Self.size / 4096)
            mincore(memory.host, Self.size, &state)
            return Set(state.indices.filter { state[$0] & 1 != 0 })
        }

        static let list = TestMachine.ramBase + 0x20_0000

        /// Has the driver put pages, numbers of 4 KiB from 0 on, into the balloon or take them out.
        func pages(_ numbers: [UInt32], queue: Int = 0, extra: UInt32 = 0) {
            for (index, number) in numbers.enumerated() {
                machine.store(number, at: Self.list + UInt64(index) * 4)
            }
            driver.queues[queue].submit([
                .init(address: Self.list, length: UInt32(numbers.count * 4) + extra, writable: false)
            ])
        }

        func byte(_ page: Int) -> UInt8 { memory.host.load(fromByteOffset: page * 4096, as: UInt8.self) }
    }

    private static let firstPage = UInt32(Setup.base >> 12)

    @Test("pages in the balloon are the host's, and come back as zeroes", arguments: Kind.allCases)
    func inflate(_ kind: Kind) throws {
        let setup = try Setup(kind)
        let before = setup.resident()
        #expect(before.count == Setup.size / 4096)
        setup.pages([5, 6, 7, 100, 99].map { Self.firstPage + $0 }, extra: 3)
        #expect(before.subtracting(setup.resident()) == [5, 6, 7, 99, 100] || kind == .privateMemfd)
        #expect(setup.driver.queues[0].reap().map(\.length) == [0])
        setup.pages([5].map { Self.firstPage + $0 }, queue: 1)
        #expect(setup.byte(5) == 0 && setup.byte(4) == 0x5a && setup.byte(8) == 0x5a)
        setup.memory.host.storeBytes(of: 1, toByteOffset: 5 * 4096, as: UInt8.self)
        #expect(setup.byte(5) == 1)
    }

    @Test("what is no RAM is left alone")
    func hostilePages() throws {
        let setup = try Setup()
        let rom = try #require(setup.machine.vm.addressSpace.ramRange(containing: TestMachine.romBase)).block
        memset(rom.host, 0x77, rom.usedLength)
        let end = UInt32((Setup.base + UInt64(Setup.size)) >> 12)
        setup.pages([.max, 0, UInt32(TestMachine.romBase >> 12), Self.firstPage - 1, end, end - 1, end, end + 1])
        #expect(rom.host.load(as: UInt8.self) == 0x77)
        #expect(setup.resident().count == Setup.size / 4096 - 1 && !setup.driver.needsReset)
        #expect(setup.driver.queues[0].reap().count == 1)
    }

    @Test("a huge message goes on beside everybody else, over a checkpoint too")
    func share() throws {
        let setup = try Setup()
        // Far more than can be done in a turn.
        let count = 0x4_0000
        for index in 0..<count {
            setup.machine.store(Self.firstPage + UInt32(index) % 4096, at: Setup.list + UInt64(index) * 4)
        }
        let queue = setup.driver.queues[0]
        for slot in UInt16(0)..<4 {
            queue.descriptor(slot, Setup.list, 0x10_0000, flags: slot == 3 ? 0 : 1, next: slot + 1)
        }
        queue.publish(0, kick: false)
        queue.ring()
        #expect(queue.usedIndex == 0)
        setup.machine.vm.stop()
        let state = savedState(setup.device)
        try loadState(state, into: setup.device)
        #expect(savedState(setup.device) == state)
        try setup.machine.vm.start()
        #expect(setup.machine.wait { queue.usedIndex == 1 })
        #expect(setup.resident().isEmpty)
    }

    @Test("nothing is discarded while the machine stands, or while somebody has pages pinned")
    func inhibited() throws {
        let setup = try Setup()
        setup.machine.vm.stop()
        setup.pages([1, 2].map { Self.firstPage + $0 })
        #expect(setup.resident().count == Setup.size / 4096)
        setup.machine.vm.addressSpace.pinPages()
        try setup.machine.vm.start()
        setup.pages([3].map { Self.firstPage + $0 })
        #expect(setup.resident().count == Setup.size / 4096)
        #expect(setup.driver.queues[0].reap().count == 2)
    }

    @Test("free pages that the guest reports are the host's until it uses them")
    func reporting() throws {
        var properties = VirtioBalloon.Properties()
        properties.reportsFreePages = true
        let setup = try Setup(properties: properties, features: 1 << 32 | 1 << 28 | 1 << 1 | 1 << 5 | 1 << 4)
        let queue = setup.driver.queues[3]
        queue.submit([
            .init(address: Setup.base + 0x20_0000, length: 0x20_0000, writable: true),
            .init(address: Setup.base + 0x80_0800, length: 0x1800, writable: true),
        ])
        let gone = Set(0..<Setup.size / 4096).subtracting(setup.resident())
        #expect(gone == Set(0x200..<0x400).union([0x801]))
        #expect(queue.reap().count == 1)
        // With another filling than zeroes the pages must keep it.
        setup.driver.slot.mmioWrite(offset: 0x10c, width: 4, value: 0xaaaa_aaaa)
        queue.submit([.init(address: Setup.base, length: 0x10_0000, writable: true)])
        #expect(setup.resident().contains(0) && queue.reap().count == 1)
        setup.driver.slot.mmioWrite(offset: 0x10c, width: 4, value: 0)
        queue.submit([.init(address: Setup.base, length: 0x10_0000, writable: true)])
        #expect(!setup.resident().contains(0))
        queue.submit([.init(address: Setup.base, length: 0x1000, writable: false)])
        #expect(setup.driver.needsReset)
    }

    @Test("the target is asked for by the configuration, and what the guest has is told by an event, one a second")
    func target() throws {
        let setup = try Setup()
        try registerBalloonCommands(vm: setup.machine.vm)
        let command = try #require(setup.machine.vm.commands.qmp["balloon"])
        func field(_ offset: UInt64) -> UInt64 { setup.driver.slot.mmioRead(offset: 0x100 + offset, width: 4) }
        setup.device.setTarget(12 << 20)
        #expect(field(0) == 1024)
        setup.device.setTarget(1 << 40)
        #expect(field(0) == 0)
        setup.device.setTarget(1)
        #expect(field(0) == 4095)
        #expect(command.name == "balloon" && setup.device.guestMemory == Int64(Setup.size))
        for pages in UInt64(1)...1024 { setup.driver.slot.mmioWrite(offset: 0x104, width: 4, value: pages) }
        #expect(setup.device.guestMemory == 12 << 20)
        var changes: [JSON?] { setup.events.filter { $0.name == "BALLOON_CHANGE" }.map { $0.data["actual"] } }
        #expect(changes == [.int(Int64(Setup.size) - 4096)])
        #expect(setup.machine.wait { changes.count == 2 } && changes[1] == .int(12 << 20))
        // More than there is, and what is not the driver's to write.
        setup.driver.slot.mmioWrite(offset: 0x104, width: 4, value: .max)
        #expect(setup.device.guestMemory == 0)
        setup.driver.slot.mmioWrite(offset: 0x100, width: 4, value: 7)
        setup.driver.slot.mmioWrite(offset: 0x106, width: 4, value: 7)
        #expect(field(0) == 4095 && field(4) == 0xffff_ffff)
    }

    @Test("statistics come when they are asked for")
    func statistics() throws {
        var properties = VirtioBalloon.Properties()
        properties.pollingInterval = 1
        let setup = try Setup(properties: properties)
        func offer(_ value: UInt64) {
            let at = Setup.list
            for (index, tag) in [UInt16(4), 5, 99, 4].enumerated() {
                setup.machine.store(bytes: littleEndianBytes(tag), at: at + UInt64(index) * 10)
                setup.machine.store(bytes: littleEndianBytes(value + UInt64(index)), at: at + UInt64(index) * 10 + 2)
            }
            setup.driver.queues[2].submit([.init(address: at, length: 45, writable: false)])
        }
        offer(1000)
        let queue = setup.driver.queues[2]
        #expect(setup.device.statistics.values[4] == 1003 && setup.device.statistics.values[5] == 1001)
        #expect(setup.device.statistics.values[0] == nil && setup.device.statistics.updatedAt > 0)
        // The driver gets its buffer back when it is to fill it anew.
        #expect(queue.usedIndex == 0)
        #expect(setup.machine.wait { queue.usedIndex == 1 })
        offer(2000)
        #expect(setup.device.statistics.values[5] == 2001)
        setup.machine.vm.stop()
        let state = savedState(setup.device)
        let other = VirtioBalloon(vm: setup.machine.vm, properties: properties)
        try loadState(state, into: other)
        #expect(savedState(other) == state)
    }

    @Test("a reset gives the guest its memory back")
    func reset() throws {
        let setup = try Setup()
        setup.driver.slot.mmioWrite(offset: 0x104, width: 4, value: 100)
        setup.driver.write(0x70, 0)
        #expect(setup.device.guestMemory == Int64(Setup.size))
    }

    @Test("one balloon, with QEMU's properties")
    func factory() throws {
        let machine = try TestMachine()
        let factory = DeviceFactory(vm: machine.vm, memory: GuestMemory())
        factory.add((0..<2).map { VirtioMMIO(slot: $0, line: Wire().line) })
        func add(_ text: String) throws { try factory.add(KeyValueOptions(text, impliedKey: "driver")) }
        #expect(throws: VMMError.self) { try add("virtio-balloon-device,free-page-hint=on") }
        try add("virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on,guest-stats-polling-interval=2")
        let device = try #require(machine.vm.devices.compactMap { $0 as? VirtioBalloon }.first)
        #expect(device.offeredFeatures & 0xff == 0x36 && device.queues.count == 4 && device.pollingInterval == 2)
        let error = #expect(throws: VMMError.self) { try add("virtio-balloon-device") }
        #expect(error?.message == "Only one balloon device is supported")
    }
}
