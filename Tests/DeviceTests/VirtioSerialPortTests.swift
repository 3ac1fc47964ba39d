import BatonRuntime
import Testing
import Virtio

/// The device with several ports, of which driver and device tell each other by control messages.
@Suite struct VirtioSerialPortTests {
    /// A chardev with clients that come and go.
    final class Line: Chardev {
        var connected = false
        var inherited = false
        var written: [UInt8] = []
        var pending: [UInt8] = []
        var room = Int.max
        init(_ id: String) { super.init(id: id, backend: "test") }
        override var isOpen: Bool { connected }
        override var isInherited: Bool { inherited }
        override var descriptors: [Int32] { connected ? [0] : [] }
        func connect() {
            connected = true
            frontend?.chardevEvent(.opened)
        }
        func disconnect() {
            connected = false
            frontend?.chardevEvent(.closed)
        }
        override func write(_ bytes: UnsafeRawBufferPointer) -> Int {
            let count = min(room, bytes.count)
            if connected { written += bytes[..<count] }
            if room != Int.max { room -= count }
            return count
        }
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

    /// A message as both sides write it.
    struct Message: Equatable {
        var port: UInt32
        var event: UInt16
        var value: UInt16
        var name = ""
    }

    private enum Event {
        static let ready: UInt16 = 0
        static let add: UInt16 = 1
        static let remove: UInt16 = 2
        static let portReady: UInt16 = 3
        static let console: UInt16 = 4
        static let open: UInt16 = 6
        static let name: UInt16 = 7
    }

    let machine: TestMachine
    let wire = Wire()
    let line = Line("line")
    let terminal = Line("terminal")
    let device: VirtioSerial
    let driver: GuestDriver
    let events = Events()

    final class Events { var list: [(String, JSONObject)] = [] }

    private static let base = TestMachine.ramBase
    /// Where buffers for control messages, and data, are.
    private static let messages = base + 0x20_0000
    private static let data = base + 0x30_0000
    private static let features: UInt64 = 1 << 32 | 1 << 28 | 1 << 1

    init() throws {
        machine = try TestMachine()
        let slot = VirtioMMIO(slot: 0, line: wire.line)
        device = try Self.device(machine.vm, line, terminal)
        try slot.plug(device)
        try machine.vm.add(slot)
        try machine.vm.add(device)
        driver = GuestDriver(machine, slot)
        machine.vm.onEvent { [events] in events.list.append(($0, $1)) }
        try machine.vm.start()
        driver.start(features: Self.features, queues: 8, size: 16)
    }

    private static func device(_ vm: VirtualMachine, _ line: Line, _ terminal: Line) throws -> VirtioSerial {
        let device = VirtioSerial(vm: vm, maxPorts: 3)
        var port = VirtioSerialPort.Options(isConsole: false, chardev: line)
        port.name = "org.qemu.guest_agent.0"
        port.id = "agent"
        try device.plug(port)
        try device.plug(.init(isConsole: true, chardev: terminal))
        return device
    }

    // MARK: The driver's side

    private func send(_ message: Message, kick: Bool = true) {
        machine.store(message.port, at: Self.data)
        machine.store(message.event, at: Self.data + 4)
        machine.store(message.value, at: Self.data + 6)
        driver.queues[3].submit([.init(address: Self.data, length: 8, writable: false)], kick: kick)
    }

    /// Gives buffers for control messages, one after the other.
    private func offer(_ count: Int, of length: UInt32 = 64) {
        for _ in 0..<count {
            let place = UInt64(driver.queues[2].availableIndex % 16) * 64
            driver.queues[2].submit([.init(address: Self.messages + place, length: length, writable: true)])
        }
    }

    /// The messages that have come.
    private func received() -> [Message] {
        let queue = driver.queues[2]
        return queue.reap().map { head, length in
            let at: UInt64 = machine.load(queue.table + UInt64(head) * 16)
            let name = machine.bytes(at + 8, Int(length) - 8)
            return Message(
                port: machine.load(at), event: machine.load(at + 4), value: machine.load(at + 6),
                name: String(decoding: name, as: UTF8.self))
        }
    }

    /// As Linux does: all ports, then what each is.
    private func bringUp() -> [Message] {
        offer(8)
        send(Message(port: .max, event: Event.ready, value: 1))
        var all = received()
        for message in all where message.event == Event.add {
            send(Message(port: message.port, event: Event.portReady, value: 1))
        }
        all += received()
        offer(8)
        return all
    }

    private func open(_ port: UInt32, _ value: UInt16 = 1) {
        send(Message(port: port, event: Event.open, value: value))
    }

    private var portEvents: [JSONObject] { events.list.filter { $0.0 == "VSERPORT_CHANGE" }.map(\.1) }

    // MARK: Tests

    @Test("the first console is port 0, and the driver is told of each port what it is")
    func announcement() {
        #expect(device.offeredFeatures & 2 != 0 && device.config[4] == 3)
        line.connect()
        #expect(
            bringUp() == [
                Message(port: 0, event: Event.add, value: 1), Message(port: 1, event: Event.add, value: 1),
                Message(port: 0, event: Event.console, value: 1), Message(port: 0, event: Event.open, value: 1),
                Message(port: 1, event: Event.name, value: 1, name: "org.qemu.guest_agent.0"),
                Message(port: 1, event: Event.open, value: 1),
            ])
    }

    @Test("clients that come and go are told to the guest, and what waits for a buffer is not lost")
    func connections() {
        _ = bringUp()
        line.connect()
        line.disconnect()
        line.connect()
        let (opened, closed) = (
            Message(port: 1, event: Event.open, value: 1), Message(port: 1, event: Event.open, value: 0)
        )
        #expect(received() == [opened, closed, opened])
        // No buffers any more: of clients in between the guest learns that they were.
        #expect(received().isEmpty)
        while device.queues[2].hasAvailable {
            line.disconnect()
            line.connect()
        }
        _ = received()
        for _ in 0..<1000 {
            line.disconnect()
            line.connect()
        }
        offer(4)
        let late = received()
        #expect(late.last == opened && late.count <= 2)
        // And with the machine stopped.
        machine.vm.stop()
        line.disconnect()
        #expect(received().isEmpty)
        try? machine.vm.start()
        #expect(received() == [closed])
    }

    @Test("input waits until a program has opened the port, and both directions until there is room")
    func data() {
        _ = bringUp()
        line.connect()
        line.pending = Array("abcdef".utf8)
        driver.queues[4].submit([.init(address: Self.data + 0x100, length: 4, writable: true)])
        #expect(line.pending.count == 6, "nobody has opened the port")
        open(1)
        #expect(line.pending == Array("ef".utf8) && machine.bytes(Self.data + 0x100, 4) == Array("abcd".utf8))
        driver.queues[4].submit([.init(address: Self.data + 0x200, length: 4, writable: true)])
        #expect(line.pending.isEmpty && driver.queues[4].reap().map(\.length) == [4, 2])
        open(1, 0)
        line.pending = [1]
        driver.queues[4].submit([.init(address: Self.data + 0x200, length: 4, writable: true)])
        #expect(line.pending == [1])

        line.room = 2
        machine.store(bytes: Array("hello".utf8), at: Self.data + 0x300)
        driver.queues[5].submit([.init(address: Self.data + 0x300, length: 5, writable: false)])
        #expect(line.written == Array("he".utf8) && driver.queues[5].reap().isEmpty)
        line.room = .max
        line.frontend?.chardevWritable()
        #expect(line.written == Array("hello".utf8) && driver.queues[5].reap().count == 1)
        #expect(terminal.written.isEmpty)
    }

    @Test("VSERPORT_CHANGE and frontend-open say whether a program has the port open; a flood of changes is few events")
    func changes() throws {
        _ = bringUp()
        let frontend = try #require(line.frontend)
        #expect(!frontend.isFrontendOpen && terminal.frontend?.isFrontendOpen == true)
        open(1)
        #expect(frontend.isFrontendOpen && portEvents == [["id": "agent", "open": true]])
        for _ in 0..<100 {
            open(1, 0)
            open(1)
        }
        open(1, 0)
        #expect(!frontend.isFrontendOpen && portEvents.count == 1)
        #expect(machine.wait { portEvents.count == 2 })
        #expect(portEvents[1] == ["id": "agent", "open": false])
        // The console has no id, and no events.
        open(0)
        #expect(portEvents.count == 2)
    }

    @Test("messages that make no sense change nothing")
    func hostileMessages() throws {
        _ = bringUp()
        let before = savedFields()
        for (port, event) in [
            (UInt32(2), Event.portReady), (3, Event.open), (.max, Event.open), (1, 99), (1, 1), (1, 5),
        ] {
            send(Message(port: port, event: event, value: 1))
        }
        driver.queues[3].submit([.init(address: Self.data, length: 7, writable: false)])
        driver.queues[3].submit([.init(address: Self.data, length: 64, writable: true)])
        #expect(savedFields() == before && !driver.needsReset && received().isEmpty)
        #expect(driver.queues[3].reap().count > 8)
        // What is asked for again and again is owed once.
        while device.queues[2].hasAvailable { send(Message(port: 1, event: Event.portReady, value: 1)) }
        for _ in 0..<1000 {
            send(Message(port: .max, event: Event.ready, value: 1))
            send(Message(port: 1, event: Event.portReady, value: 1))
        }
        _ = received()
        offer(8)
        #expect(received().count <= 4)
        // A buffer that no message fits in.
        offer(1, of: 7)
        line.connect()
        offer(1, of: 7)
        while !driver.needsReset, device.queues[2].hasAvailable {
            line.disconnect()
            line.connect()
        }
        #expect(driver.needsReset)
    }

    private func savedFields() -> [UInt8] {
        var writer = StateWriter()
        device.saveDevice(to: &writer)
        return writer.encoded()
    }

    @Test("a driver that knows one port has port 0 at once")
    func singlePort() {
        driver.start(queues: 2)
        driver.queues[0].submit([.init(address: Self.data, length: 4, writable: true)])
        terminal.pending = [7]
        terminal.acceptInput()
        #expect(machine.bytes(Self.data, 1) == [7])
    }

    @Test("another VMM goes on where this one was: no message twice, no byte lost")
    func update() throws {
        line.connect()
        _ = bringUp()
        open(1)
        line.room = 2
        machine.store(bytes: Array("hello".utf8), at: Self.data + 0x300)
        driver.queues[5].submit([.init(address: Self.data + 0x300, length: 5, writable: false)])
        machine.vm.stop()
        let states = machine.vm.devices.map(savedState)

        func next(_ line: Line) throws -> VirtioSerial {
            let slot = VirtioMMIO(slot: 0, line: Wire().line)
            let restored = try Self.device(machine.vm, line, Line("terminal"))
            try slot.plug(restored)
            try loadState(states[0], into: slot)
            try loadState(states[1], into: restored)
            return restored
        }
        let peer = Line("line")
        (peer.connected, peer.inherited) = (true, true)
        let restored = try next(peer)
        #expect(savedState(restored) == states[1])
        #expect(events.list.filter { $0.0 == "VSERPORT_CHANGE" }.count == 1)
        restored.resume()
        #expect(peer.written == Array("llo".utf8) && peer.frontend?.isFrontendOpen == true)
        #expect(received().isEmpty)
        restored.pause()

        // A connection that has not come along is closed for the guest, and one of somebody else is another.
        let gone = try next(Line("line"))
        gone.resume()
        #expect(received() == [Message(port: 1, event: Event.open, value: 0)])
        gone.pause()
        let other = Line("line")
        other.connected = true
        try next(other).resume()
        // In this memory the ring has gone on.
    }

    @Test("a port that comes or goes while the driver is at work is told to it, also by the next VMM")
    func comingAndGoing() throws {
        _ = bringUp()
        _ = received()
        let fresh = Line("fresh")
        fresh.connect()
        var options = VirtioSerialPort.Options(isConsole: false, chardev: fresh)
        options.name = "late"
        let port = try device.plug(options)
        #expect(received() == [Message(port: 2, event: Event.add, value: 1)])
        send(Message(port: 2, event: Event.portReady, value: 1))
        #expect(
            received() == [
                Message(port: 2, event: Event.name, value: 1, name: "late"),
                Message(port: 2, event: Event.open, value: 1),
            ])
        offer(4)
        open(2)
        #expect(port.isOpenInGuest)

        // The driver has what it has written back, and its chardev is free for another port of the number.
        fresh.room = 0
        machine.store(bytes: [1], at: Self.data + 0x300)
        driver.queues[7].submit([.init(address: Self.data + 0x300, length: 1, writable: false)])
        #expect(driver.queues[7].reap().isEmpty)
        device.unplug(port)
        #expect(driver.queues[7].reap().count == 1 && fresh.frontend == nil)
        try device.plug(options)
        #expect(
            received() == [
                Message(port: 2, event: Event.remove, value: 1), Message(port: 2, event: Event.add, value: 1),
            ])
    }

    @Test("of a port that has gone the next VMM tells the driver, when that has a buffer")
    func goneOverAnUpdate() throws {
        let agent = try #require(line.frontend as? VirtioSerialPort)
        send(Message(port: .max, event: Event.ready, value: 1))
        device.unplug(agent)
        machine.vm.stop()
        let states = machine.vm.devices.map(savedState)
        let slot = VirtioMMIO(slot: 0, line: Wire().line)
        let restored = VirtioSerial(vm: machine.vm, maxPorts: 3)
        try restored.plug(.init(isConsole: true, chardev: Line("terminal")))
        try slot.plug(restored)
        try loadState(states[0], into: slot)
        try loadState(states[1], into: restored)
        #expect(savedState(restored) == states[1])
        offer(2)
        restored.resume()
        #expect(
            received() == [
                Message(port: 1, event: Event.remove, value: 1), Message(port: 0, event: Event.add, value: 1),
            ])
    }

    @Test("a state with other ports is refused")
    func otherPorts() throws {
        machine.vm.stop()
        let state = savedState(device)
        for name in [nil, "other"] {
            let other = VirtioSerial(vm: machine.vm, maxPorts: 3)
            if let name {
                var port = VirtioSerialPort.Options(isConsole: false)
                port.name = name
                try other.plug(port)
            }
            try other.plug(.init(isConsole: true))
            let error = #expect(throws: VMMError.self) { try loadState(state, into: other) }
            #expect(error?.message.contains("is of other ports") == true, "\(error?.message ?? "")")
        }
    }

    @Test("numbers and names are taken once, as in QEMU")
    func numbers() throws {
        func refused(_ options: VirtioSerialPort.Options) -> String {
            do {
                try device.plug(options)
                return ""
            } catch {
                return error.message
            }
        }
        var port = VirtioSerialPort.Options(isConsole: false)
        port.name = "org.qemu.guest_agent.0"
        #expect(refused(port) == "virtio-serial-bus: A port already exists by name org.qemu.guest_agent.0")
        port.name = "x"
        port.number = 3
        #expect(refused(port) == "virtio-serial-bus: Out-of-range port id specified, max. allowed: 2")
        port.number = 1
        #expect(refused(port) == "virtio-serial-bus: A port already exists at id 1")
        port.number = nil
        #expect(refused(port) == "")
        port.name = "y"
        #expect(refused(port) == "virtio-serial-bus: Maximum port limit for this device reached")
        let empty = VirtioSerial(vm: machine.vm, maxPorts: 2)
        port.number = 0
        let error = #expect(throws: VMMError.self) { try empty.plug(port) }
        #expect(error?.message.hasPrefix("Port number 0 on virtio-serial devices reserved") == true)
    }
}
