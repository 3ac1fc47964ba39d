import BatonRuntime

/// virtio-serial, the console device (virtio 1.2, 5.3), with its ports: consoles (`virtconsole`) and byte streams with a
/// name (`virtserialport`).
///
/// With room for one port it lacks VIRTIO_CONSOLE_F_MULTIPORT and the control queues: the guest has that port at once,
/// as its hvc0. With more, driver and device tell each other of ports by messages: see `VirtioSerial+Control.swift`.
public final class VirtioSerial: VirtioDevice, DeviceBus {
    /// VIRTIO_CONSOLE_F_MULTIPORT.
    static let multiportFeature: UInt64 = 1 << 1
    /// The most ports: each has two queues, of QEMU's 1024, and so have the control messages.
    public static let portLimit = 511
    /// Ports where `max_ports=` does not say, as in QEMU.
    public static let defaultPorts = 31

    public static let busType = "virtio-serial-bus"
    public let busName: String
    /// How a port that finds no room is refused is the device's own matter.
    public var isFull: Bool { false }
    public var hotPlugRefusal: VMMError? { nil }
    public var unplugsAtOnce: Bool { true }

    /// By number; nil where none is plugged.
    private(set) var ports: [VirtioSerialPort?]
    /// Some port has messages for the driver that wait for buffers.
    var owesMessages = false
    /// Ports that have gone, of which the driver has not been told yet.
    var goneNumbers: [Int] = []
    /// Numbers of ports that the command line has and the machine has not any more: not to be given to those after them.
    private var passedOver: Set<Int> = []

    /// - Parameters:
    ///   - maxPorts: 1 to `portLimit`.
    ///   - busName: what `bus=` of ports says.
    public init(vm: VirtualMachine, maxPorts: Int = 1, busName: String = "virtio-serial0.0") {
        self.busName = busName
        ports = Array(repeating: nil, count: maxPorts)
        // cols, rows (without VIRTIO_CONSOLE_F_SIZE both 0), max_nr_ports, emerg_wr.
        var config = [UInt8](repeating: 0, count: 12)
        if maxPorts > 1 { config.put(UInt32(maxPorts), at: 4) }
        var sizes: [UInt16] = [128, 128]
        if maxPorts > 1 {
            sizes = Array(repeating: 128, count: 2 * (maxPorts + 1))
            sizes[ControlQueue.toDriver] = 32
            sizes[ControlQueue.toDevice] = 32
        }
        super.init(
            model: "virtio-serial", deviceID: 3, vm: vm, features: maxPorts > 1 ? VirtioSerial.multiportFeature : 0,
            queueSizes: sizes, config: config)
    }

    /// Whether there is room for more than one port.
    var isMultiport: Bool { ports.count > 1 }
    /// Whether the driver knows of more ports than the first.
    var usesMultiport: Bool { has(VirtioSerial.multiportFeature) }

    // MARK: Ports

    /// Whether `plug` would find a number for a port.
    func hasRoom(for options: VirtioSerialPort.Options) -> Bool { (try? number(for: options)) != nil }

    /// The number that a port gets, by QEMU's rules: number 0 is for a console, and the first one gets it.
    private func number(for options: VirtioSerialPort.Options) throws(VMMError) -> Int {
        if let number = options.number {
            guard number < ports.count else {
                throw VMMError(
                    "virtio-serial-bus: Out-of-range port id specified, max. allowed: \(ports.count - 1)",
                    hint: "Give the virtio-serial device max_ports=\(number + 1) or more.")
            }
            guard ports[number] == nil else {
                throw VMMError("virtio-serial-bus: A port already exists at id \(number)")
            }
            guard number > 0 || options.isConsole else {
                throw VMMError(
                    "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward "
                        + "compatibility.")
            }
            return number
        }
        func isFree(_ number: Int) -> Bool { ports[number] == nil && !passedOver.contains(number) }
        if options.isConsole, isFree(0) { return 0 }
        let others = ports.indices.dropFirst()
        guard let free = others.first(where: isFree) ?? others.first(where: { ports[$0] == nil }) else {
            throw VMMError(
                "virtio-serial-bus: Maximum port limit for this device reached",
                hint: "Give the virtio-serial device a higher max_ports=.")
        }
        return free
    }

    /// Plugs a port. A driver that is at work is told of it.
    /// - Throws: QEMU's errors when its number, its name or its chardev is taken; nothing has changed.
    @discardableResult
    public func plug(_ options: VirtioSerialPort.Options) throws(VMMError) -> VirtioSerialPort {
        let number = try number(for: options)
        if let name = options.name, ports.contains(where: { $0?.name == name }) {
            throw VMMError("virtio-serial-bus: A port already exists by name \(name)")
        }
        let port = VirtioSerialPort(of: self, number: number, options)
        try options.chardev?.attach(port)
        ports[number] = port
        if isOperating, usesMultiport {
            port.announce()
            hasMessages()
        }
        return port
    }

    /// Takes a port away, and tells the driver.
    public func unplug(_ port: VirtioSerialPort) {
        guard ports[port.number] === port else { return }
        port.leave()
        ports[port.number] = nil
        guard isOperating, usesMultiport else { return }
        // What its program has written is dropped, as in QEMU: it waits for that.
        if isRunning { handle(transmitQueue(ofPort: port.number)) }
        if !goneNumbers.contains(port.number) { goneNumbers.append(port.number) }
        hasMessages()
    }

    /// Keeps the number of a port that is not there any more from those that are made after it.
    func passOver(_ options: VirtioSerialPort.Options) throws(VMMError) { passedOver.insert(try number(for: options)) }

    // MARK: Queues

    /// The queues of control messages (virtio 1.2, 5.3.2).
    enum ControlQueue {
        static let toDriver = 2
        static let toDevice = 3
    }

    /// The port that a queue belongs to; nil for control queues, and where no port is plugged.
    private func port(of queue: VirtQueue) -> VirtioSerialPort? {
        let pair = queue.index / 2
        if pair == 0 { return ports[0] }
        return pair == 1 ? nil : ports[pair - 1]
    }

    func receiveQueue(ofPort number: Int) -> VirtQueue { queues[number == 0 ? 0 : 2 * number + 2] }
    func transmitQueue(ofPort number: Int) -> VirtQueue { queues[number == 0 ? 1 : 2 * number + 3] }

    public override func handle(_ queue: VirtQueue) {
        let isFromDriver = queue.index % 2 == 1
        if queue.index / 2 == 1 {
            return isFromDriver ? takeMessages(queue) : sendMessages()
        }
        guard let port = port(of: queue) else {
            // As in QEMU, what is for nobody is taken and dropped.
            if isFromDriver { serveChains(queue) { _ in .used(0) } }
            return
        }
        if isFromDriver { port.transmit() } else { port.acceptInput() }
    }

    // MARK: State

    public override func resetDevice() {
        owesMessages = false
        goneNumbers = []
        for port in ports { port?.reset() }
    }

    public override func resumeDevice() {
        owesMessages = usesMultiport
        sendMessages()
        for port in ports { port?.resume() }
    }

    public override func saveDevice(to writer: inout StateWriter) {
        // As it was before there were more ports than one.
        guard isMultiport else { return writer.put("sent", UInt64(ports[0]?.sent ?? 0)) }
        let plugged = ports.compactMap { $0 }
        writer.put("ports", plugged.map { UInt64($0.number) })
        writer.put("port-names", plugged.map { $0.name ?? "" })
        for port in plugged { writer.put("port\(port.number)", [UInt64(port.sent), port.flags]) }
        if !goneNumbers.isEmpty { writer.put("gone", goneNumbers.map { UInt64($0) }) }
    }

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        guard isMultiport else {
            let value = try reader.unsigned("sent", in: 0...UInt64(UInt32.max))
            return { [self] in ports[0]?.sent = Int(value) }
        }
        let plugged = ports.compactMap { $0 }
        let numbers = try reader.array("ports")
        let names = try reader.strings("port-names")
        guard numbers == plugged.map({ UInt64($0.number) }), names == plugged.map({ $0.name ?? "" }) else {
            throw VMMError(
                "section '\(reader.section)' is of other ports: those that it had are "
                    + zip(numbers, names).map { "\($0) '\($1)'" }.joined(separator: ", "),
                hint: "Give the device the same virtconsole and virtserialport as before.")
        }
        let gone = reader.has("gone") ? try reader.array("gone", count: 0...self.ports.count) : []
        guard gone.allSatisfy({ $0 < UInt64(self.ports.count) }) else {
            throw VMMError("field 'gone' of section '\(reader.section)' has an invalid value")
        }
        var apply: [() -> Void] = [{ [self] in goneNumbers = gone.map { Int($0) } }]
        for port in plugged {
            let values = try reader.array("port\(port.number)", count: 2...2)
            guard values[0] <= UInt64(UInt32.max), port.accepts(flags: values[1]) else {
                throw VMMError("field 'port\(port.number)' of section '\(reader.section)' has an invalid value")
            }
            apply.append { port.restore(sent: Int(values[0]), flags: values[1]) }
        }
        return { for step in apply { step() } }
    }
}
