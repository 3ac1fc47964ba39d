import BatonRuntime

/// Control messages (virtio 1.2, 5.3.6.2). Those for the driver are not kept as messages, which a driver could ask for
/// without end: a port knows what of its state the driver has not been told.
extension VirtioSerial {
    /// VIRTIO_CONSOLE_DEVICE_READY and so on.
    enum Control: UInt16 {
        case deviceReady = 0
        case deviceAdd = 1
        case deviceRemove = 2
        case portReady = 3
        case consolePort = 4
        case resize = 5
        case portOpen = 6
        case portName = 7
    }

    /// Port, event and value; a name follows.
    private static let messageSize = 8

    // MARK: From the driver

    func takeMessages(_ queue: VirtQueue) {
        guard usesMultiport else { return serveChains(queue) { _ in .used(0) } }
        serveChains(queue) { chain in
            withUnsafeTemporaryAllocation(byteCount: VirtioSerial.messageSize, alignment: 8) { bytes in
                guard queue.copyOut(chain, offset: 0, to: bytes) == bytes.count else {
                    return Log.guestError("\(stateName): control message of \(chain.readableBytes) bytes")
                }
                take(
                    port: bytes.load(as: UInt32.self), event: bytes.load(fromByteOffset: 4, as: UInt16.self),
                    value: bytes.load(fromByteOffset: 6, as: UInt16.self))
            }
            // It may have gone wrong with the other queue.
            return isOperating ? .used(0) : .stopped
        }
        sendMessages()
    }

    private func take(port number: UInt32, event: UInt16, value: UInt16) {
        let event = Control(rawValue: event)
        if event == .deviceReady {
            guard value == 1 else { return Log.guestError("\(stateName): the driver failed to set the device up") }
            for port in ports { port?.announce() }
            // Each is a message, sooner or later.
            _ = vm.loop.mayGoOn(after: ports.count << 8)
            owesMessages = true
            return
        }
        guard number < UInt32(ports.count), let port = ports[Int(number)] else {
            return Log.guestError("\(stateName): control message for port \(number), which does not exist")
        }
        switch event {
        case .portReady:
            guard value == 1 else {
                return Log.guestError("\(stateName): the driver failed to add port \(number)")
            }
            port.driverIsReady()
            owesMessages = true
        case .portOpen: port.setOpenInGuest(value != 0)
        default: Log.guestError("\(stateName): unexpected control message for port \(number)")
        }
    }

    // MARK: To the driver

    /// A port's state has changed.
    func hasMessages() {
        owesMessages = true
        sendMessages()
    }

    /// Sends what there are buffers for. With the machine stopped, `resume` comes back to it.
    func sendMessages() {
        guard owesMessages, usesMultiport, isRunning, isOperating else { return }
        let queue = queues[ControlQueue.toDriver]
        defer { queue.signal() }
        var sent = 0
        // Before another port of the number is there.
        while let number = goneNumbers.first {
            guard send(.deviceRemove, 1, number: number, by: queue) else { return }
            goneNumbers.removeFirst()
            sent += 1
        }
        for port in ports {
            guard let port else { continue }
            while let (event, value) = port.nextMessage() {
                let name = event == .portName ? port.name : nil
                guard send(event, value, number: port.number, name: name, by: queue) else { return }
                port.didSend(event, value)
                sent += 1
            }
        }
        _ = vm.loop.mayGoOn(after: sent << 12)
        owesMessages = false
    }

    /// - Returns: false when there is no buffer, or the driver has broken the rules.
    private func send(
        _ event: Control, _ value: UInt16, number: Int, name: String? = nil, by queue: VirtQueue
    ) -> Bool {
        var message: [UInt8] = Array(repeating: 0, count: VirtioSerial.messageSize)
        message.put(UInt32(number), at: 0)
        message.put(event.rawValue, at: 4)
        message.put(value, at: 6)
        // The driver learns its length from the buffer's; a shorter buffer gets the beginning.
        if let name { message += name.utf8 }
        return send(message, least: VirtioSerial.messageSize, kind: "control messages", by: queue)
    }
}
