import BatonRuntime
import Testing
import Serial
import VirtBoard

/// A chardev whose peer is the test.
final class TestChardev: Chardev {
    private(set) var written: [UInt8] = []
    var room = Int.max
    private(set) var pending: [UInt8] = []

    init(_ id: String = "test") { super.init(id: id, backend: "test") }

    override func write(_ bytes: UnsafeRawBufferPointer) -> Int {
        let count = min(room, bytes.count)
        written += bytes[..<count]
        if room != Int.max { room -= count }
        return count
    }

    /// The peer sends bytes, which wait until the front end takes them.
    func type(_ bytes: [UInt8]) {
        pending += bytes
        acceptInput()
    }

    func dropPending() { pending = [] }

    override func acceptInput() {
        while !pending.isEmpty, let frontend {
            let count = min(frontend.chardevCanReceive(), pending.count)
            guard count > 0 else { return }
            let bytes = Array(pending[..<count])
            pending.removeFirst(count)
            bytes.withUnsafeBytes { frontend.chardevReceive($0) }
        }
    }
}

@Suite struct SerialUARTTests {
    let machine: TestMachine
    let chardev = TestChardev()
    let wire = Wire()
    let uart: SerialUART

    init() throws {
        machine = try TestMachine()
        uart = try SerialUART(name: "serial0", vm: machine.vm, chardev: chardev, line: wire.line)
        try machine.vm.add(uart)
        try machine.vm.start()
    }

    private func read(_ register: UInt64) -> UInt8 { UInt8(uart.mmioRead(offset: register, width: 1)) }
    private func write(_ register: UInt64, _ value: UInt8) {
        uart.mmioWrite(offset: register, width: 1, value: UInt64(value))
    }

    @Test func linuxProbesA16550A() {
        // As 8250_port.c's autoconfig: IER, scratch, loopback, FIFO, EFR.
        write(1, 0)
        #expect(read(1) == 0)
        write(1, 0xff)
        #expect(read(1) == 0x0f)
        write(1, 0)
        write(4, 0x1a)
        #expect(read(6) & 0xf0 == 0x90)
        write(4, 0x08)
        write(2, 0x01)
        #expect(read(2) >> 6 == 3)
        write(3, 0x80)
        #expect(read(2) != 0, "no EFR")
        write(3, 0xbf)
        #expect(read(2) != 0, "no EFR")
        write(3, 0)
        write(2, 0x21)
        #expect(read(2) & 0x20 == 0, "no 64-byte FIFO")
        write(7, 0xa5)
        #expect(read(7) == 0xa5)
    }

    @Test func outputReachesTheHost() {
        for byte in "hello".utf8 { write(0, byte) }
        #expect(read(5) & 0x60 == 0x60)
        machine.vm.loop.poll(timeout: 0)
        #expect(chardev.written == Array("hello".utf8))
    }

    @Test func pausingSendsWhatWasWritten() {
        write(0, 0x41)
        machine.vm.stop()
        #expect(chardev.written == [0x41])
    }

    @Test func aSlowHostHoldsTheGuestUp() {
        write(1, 2)
        chardev.room = 1
        for byte in "abcdef".utf8 { write(0, byte) }
        machine.vm.loop.poll(timeout: 0)
        #expect(chardev.written == Array("a".utf8))
        #expect(read(5) & 0x60 == 0, "the transmitter is busy")
        _ = read(2)
        #expect(!wire.level)
        chardev.room = Int.max
        uart.chardevWritable()
        #expect(chardev.written == Array("abcdef".utf8))
        #expect(read(5) & 0x60 == 0x60)
        #expect(wire.level && read(2) & 0x0f == 2)
    }

    @Test func theTransmitterInterruptComesAndIsAcknowledged() {
        #expect(!wire.level)
        write(1, 2)
        #expect(wire.level)
        #expect(read(2) & 0x0f == 2)
        #expect(!wire.level && read(2) & 0x0f == 1)
        write(0, 0x41)
        #expect(wire.level)
        _ = read(2)
        // Enabling it anew raises it anew: Linux checks.
        write(1, 0)
        write(1, 2)
        #expect(wire.level)
    }

    @Test func inputWaitsForRoomInTheFIFO() {
        write(2, 1)
        write(1, 1)
        chardev.type(Array(0..<40))
        #expect(chardev.pending.count == 24)
        #expect(wire.level)
        for byte in UInt8(0)..<40 {
            #expect(read(5) & 1 == 1)
            #expect(read(0) == byte)
        }
        #expect(read(5) & 3 == 0, "nothing left, nothing lost")
        #expect(!wire.level)
    }

    @Test func withoutFIFOsOneByteIsHeld() {
        chardev.type([1, 2])
        #expect(chardev.pending == [2])
        #expect(read(0) == 1 && read(0) == 2)
    }

    @Test func belowTheTriggerInputTimesOut() {
        write(2, 0x81)
        write(1, 1)
        chardev.type(Array(repeating: 1, count: 7))
        #expect(read(2) & 0x0f == 0x0c)
        chardev.type([1])
        #expect(read(2) & 0x0f == 0x04)
    }

    @Test func breaksAreSeenInTheLineStatus() {
        write(2, 1)
        write(1, 5)
        uart.chardevEvent(.breakCondition)
        #expect(read(2) & 0x0f == 6)
        #expect(read(5) & 0x11 == 0x11)
        #expect(read(5) & 0x10 == 0)
        #expect(read(0) == 0)
    }

    @Test func loopbackReturnsBytesAndKeepsTheHostOut() {
        write(2, 1)
        write(4, 0x10)
        write(0, 0x55)
        chardev.type([9])
        #expect(read(0) == 0x55)
        #expect(read(5) & 1 == 0)
        write(4, 0)
        #expect(read(0) == 9)
        machine.vm.loop.poll(timeout: 0)
        #expect(chardev.written.isEmpty)
    }

    @Test func loopbackOverrunsAreReported() {
        write(2, 1)
        write(4, 0x10)
        for byte in UInt8(0)..<17 { write(0, byte) }
        #expect(read(5) & 2 == 2)
        #expect(read(5) & 2 == 0)
        #expect(read(0) == 0)
    }

    @Test func fifoClearsAndDivisor() {
        write(2, 1)
        chardev.type([1, 2, 3])
        write(2, 3)
        #expect(read(5) & 1 == 0)
        write(3, 0x80)
        write(0, 0x34)
        write(1, 0x12)
        #expect(read(0) == 0x34 && read(1) == 0x12)
        write(3, 3)
        #expect(read(1) == 0)
    }

    @Test func takesNoInputWhileStopped() {
        write(2, 1)
        machine.vm.stop()
        chardev.type([1])
        #expect(chardev.pending == [1])
    }

    @Test func theSameStateComesBackFromACheckpoint() throws {
        write(2, 0xc1)
        write(1, 7)
        write(3, 0x1b)
        chardev.type([1, 2, 3])
        chardev.room = 0
        for byte in "held".utf8 { write(0, byte) }
        machine.vm.stop()
        let state = savedState(uart)

        let other = try TestMachine()
        let peer = TestChardev()
        let otherWire = Wire()
        let restored = try SerialUART(name: "serial0", vm: other.vm, chardev: peer, line: otherWire.line)
        try loadState(state, into: restored)
        #expect(savedState(restored) == state)
        #expect(otherWire.level)
        #expect(peer.written.isEmpty, "nothing leaves before the machine runs")
        restored.resume()
        #expect(peer.written == Array("held".utf8))
    }

    @Test func refusedStatesChangeNothing() throws {
        let before = savedState(uart)
        var state = before
        for index in state.indices {
            state[index] ^= 0x80
            do { try loadState(state, into: uart) } catch { #expect(savedState(uart) == before) }
            state[index] ^= 0x80
            try loadState(before, into: uart)
        }
    }
}
