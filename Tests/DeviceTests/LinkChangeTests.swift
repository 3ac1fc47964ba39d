import BatonRuntime
import TestSupport
import Testing
import Virtio

/// The link of a virtio network card goes down and up, as its saved state owes.
@Suite(.oneThread) struct LinkChangeTests {
    private static let status: UInt64 = 1 << 16, control: UInt64 = 1 << 17, announce: UInt64 = 1 << 21
    private static let data = TestMachine.ramBase + 0x10_0000
    private static let second: Int64 = 1_000_000_000

    private let machine: TestMachine
    private let device: VirtioNet
    private let driver: GuestDriver

    init() throws {
        machine = try TestMachine()
        let slot = VirtioMMIO(slot: 0, line: Wire().line)
        device = VirtioNet(vm: machine.vm, backend: VirtioNetTests.Backend(), mac: [0x52, 0x54, 0, 1, 2, 3])
        try slot.plug(device)
        try machine.vm.add(slot)
        try machine.vm.add(device)
        driver = GuestDriver(machine, slot)
        try machine.vm.start()
    }

    private func start(_ features: UInt64) {
        driver.start(features: GuestDriver.common | features, queues: features & Self.control == 0 ? 2 : 3)
    }

    /// The saved state, in which a change is owed.
    private func owingState(_ field: String = "owes-link-change") -> [UInt8] {
        machine.vm.stop()
        var writer = StateWriter()
        writer.put(field, true, optional: true)
        return savedState(device) + writer.encoded()
    }

    private func saves(_ field: String) throws -> Bool { try reader(of: savedState(device), for: device).has(field) }

    private func load(_ state: [UInt8]) throws {
        machine.vm.stop()
        try loadState(state, into: device)
        try machine.vm.start()
    }

    /// What the driver would read, without its reading it.
    private var shown: UInt8 { device.config[6] }
    private func readStatus() -> UInt64 { driver.slot.mmioRead(offset: 0x106, width: 2) }

    /// Takes the interrupt of a changed configuration.
    private func takeInterrupt() -> Bool {
        let causes = driver.read(0x60)
        driver.write(0x64, causes)
        return causes & 2 != 0
    }

    private func acknowledge() -> UInt8 {
        machine.store(bytes: [3, 0, 0xff], at: Self.data)
        driver.queues[2].submit([
            .init(address: Self.data, length: 2, writable: false),
            .init(address: Self.data + 2, length: 1, writable: true),
        ])
        return driver.queues[2].reap().map(\.length) == [1] ? machine.load(Self.data + 2) : 0xee
    }

    @Test func theLinkIsDownUntilTheDriverHasReadItForSomeTime() throws {
        start(Self.status)
        _ = takeInterrupt()
        try load(owingState())
        #expect(takeInterrupt())
        #expect(shown == 0)
        // A driver reads it when it likes; what else it reads does not count.
        _ = driver.slot.mmioRead(offset: 0x100, width: 4)
        let before = EventLoop.now
        while EventLoop.now < before + 2 * Self.second { machine.vm.loop.poll(timeout: 10_000_000) }
        #expect(shown == 0 && !takeInterrupt())
        let read = EventLoop.now
        #expect(readStatus() == 0)
        #expect(machine.wait { shown == 1 })
        #expect(EventLoop.now - read >= Self.second)
        #expect(takeInterrupt())
        #expect(readStatus() == 1)
        // No driver that did not ask for it is asked to announce itself.
        for field in ["owes-announcement", "owes-link-change"] { #expect(try !saves(field), "\(field)") }
    }

    @Test func theDriverIsAskedToAnnounceItself() throws {
        start(Self.status | Self.control | Self.announce)
        #expect(acknowledge() == 1, "nobody has asked")
        try load(owingState())
        _ = readStatus()
        #expect(machine.wait { shown == 1 })
        #expect(try saves("owes-announcement"))
        #expect(try !saves("owes-link-change"))
        _ = takeInterrupt()
        #expect(machine.wait { shown == 3 })
        #expect(takeInterrupt())
        #expect(acknowledge() == 0)
        #expect(readStatus() == 1)
        #expect(acknowledge() == 1)
        #expect(try !saves("owes-announcement"))
    }

    @Test func aChangeGoesOnAfterAStopAndInTheNextState() throws {
        start(Self.status | Self.control | Self.announce)
        try load(owingState())
        _ = readStatus()
        machine.vm.stop()
        #expect(try saves("owes-link-change"))
        let state = savedState(device)
        try machine.vm.start()
        #expect(shown == 0 && takeInterrupt())
        try load(state)
        #expect(shown == 0 && takeInterrupt())
        #expect(try saves("owes-link-change"))
        // An announcement that was asked for, and not made.
        try load(owingState("owes-announcement"))
        #expect(shown == 0, "a change comes first")
        start(Self.status | Self.control | Self.announce)
        #expect(shown == 1, "a driver that sets the card up anew sees the link as it is")
        try load(owingState("owes-announcement"))
        #expect(shown == 3 && takeInterrupt())
        #expect(acknowledge() == 0)
    }

    @Test func nothingIsToldToADriverThatDoesNotAskForTheLink() throws {
        start(0)
        try load(owingState())
        #expect(shown == 1 && !takeInterrupt())
        #expect(try !saves("owes-link-change"))
        // Nor to one that has not set the card up.
        driver.negotiate(GuestDriver.common | Self.status)
        try load(owingState())
        #expect(shown == 1)
    }
}
