import BatonRuntime
import Testing
import Virtio

/// The device with its one port, as guests without VIRTIO_CONSOLE_F_MULTIPORT have it.
@Suite struct VirtioConsoleTests {
    let machine: TestMachine
    let chardev = TestChardev()
    let wire = Wire()
    let device: VirtioSerial
    let port: VirtioSerialPort
    let driver: GuestDriver
    static let data = TestMachine.ramBase + 0x10_0000

    init() throws {
        machine = try TestMachine()
        let slot = VirtioMMIO(slot: 0, line: wire.line)
        device = VirtioSerial(vm: machine.vm)
        try slot.plug(device)
        port = try device.plug(.init(isConsole: true, chardev: chardev))
        try machine.vm.add(slot)
        try machine.vm.add(device)
        driver = GuestDriver(machine, slot)
        try machine.vm.start()
        driver.start(queues: 2)
    }

    private func send(_ text: String) {
        machine.store(bytes: Array(text.utf8), at: Self.data)
        driver.queues[1].submit([.init(address: Self.data, length: UInt32(text.utf8.count), writable: false)])
    }

    @Test func outputReachesTheHost() {
        send("hello")
        #expect(chardev.written == Array("hello".utf8))
        #expect(driver.queues[1].reap().count == 1)
    }

    @Test func aSlowHostKeepsTheChainInTheRing() {
        chardev.room = 2
        send("hello")
        #expect(driver.queues[1].reap().isEmpty)
        chardev.room = 1
        port.chardevWritable()
        chardev.room = Int.max
        port.chardevWritable()
        #expect(chardev.written == Array("hello".utf8))
        #expect(driver.queues[1].reap().count == 1)
    }

    @Test func inputWaitsForBuffers() {
        chardev.type(Array("abcdef".utf8))
        #expect(chardev.pending.count == 6)
        driver.queues[0].submit([.init(address: Self.data, length: 4, writable: true)])
        #expect(machine.bytes(Self.data, 4) == Array("abcd".utf8))
        #expect(chardev.pending.count == 2 && wire.level)
        driver.queues[0].submit([.init(address: Self.data, length: 4, writable: true)])
        #expect(driver.queues[0].reap().map(\.length) == [4, 2])
        #expect(machine.bytes(Self.data, 2) == Array("ef".utf8))
    }

    @Test func takesNoInputWhileStopped() throws {
        driver.queues[0].submit([.init(address: Self.data, length: 4, writable: true)])
        machine.vm.stop()
        chardev.type([1])
        #expect(chardev.pending == [1])
        try machine.vm.start()
        #expect(chardev.pending.isEmpty)
    }

    @Test func refusesReceiveBuffersThatCannotBeWritten() {
        driver.queues[0].submit([.init(address: Self.data, length: 4, writable: false)])
        chardev.type([1])
        #expect(!driver.needsReset || chardev.pending == [1])
        #expect(machine.bytes(Self.data, 1) == [0])
    }

    @Test func aHalfSentChainGoesOnAfterARestart() throws {
        chardev.room = 2
        send("hello")
        machine.vm.stop()
        let states = machine.vm.devices.map(savedState)

        // The same RAM, another process' devices.
        let peer = TestChardev()
        let slot = VirtioMMIO(slot: 0, line: Wire().line)
        let restored = VirtioSerial(vm: machine.vm)
        try slot.plug(restored)
        try restored.plug(.init(isConsole: true, chardev: peer))
        try loadState(states[0], into: slot)
        try loadState(states[1], into: restored)
        #expect(savedState(restored) == states[1])
        #expect(peer.written.isEmpty)
        restored.resume()
        #expect(peer.written == Array("llo".utf8))
        #expect(driver.queues[1].reap().count == 1)
    }

    @Test func theOnePortIsTakenOnce() throws {
        let error = #expect(throws: VMMError.self) {
            try device.plug(.init(isConsole: true, chardev: TestChardev("other")))
        }
        #expect(error?.message == "virtio-serial-bus: Maximum port limit for this device reached")
    }
}
