import BatonRuntime
import CBaton

/// One QMP session on a chardev (QEMU's qmp-spec): greeting, capabilities
/// negotiation, commands in order, events once negotiation is done.
///
/// A client that does not read its answers is not read from either; one that
/// goes away leaves the next in negotiation mode.
public final class QMPMonitor: ResumableMonitor {
    public var isMonitor: Bool { true }
    private unowned let vm: VirtualMachine
    let chardev: Chardev
    let number: Int
    private let pretty: Bool
    private let dispatcher: QMPDispatcher

    private var parser = JSONStreamParser()
    /// What the parser has taken of a value that is not complete.
    private var partial: [UInt8] = []
    /// Parsed and not carried out yet.
    private var requests = [Result<JSON, VMMError>]()
    /// Being carried out.
    private var current: Result<JSON, VMMError>?
    /// A session of the process before, which `.opened` does not end.
    private var isResuming = false
    /// There is no such session: this one begins when the guest is taken over.
    private var beginsAnew = false
    /// What the command that replaced the process before is answered with.
    private var owedAnswer: JSON?
    private var output = OutputQueue()
    private(set) var isExecuting = false
    /// The other requests wait for a later turn of the loop.
    private var isPutOff = false
    /// The request being carried out has had its answer from another process.
    private var isAnswered = false
    /// Tells one client from the next.
    private var session = 0

    /// Bytes of answers that a client may leave unread before it is not read
    /// from any more.
    private static let outputHighWater = 64 << 10
    /// Bytes beyond which events are dropped: a guest can cause them at will.
    private static let eventLimit = 8 << 20

    /// Starts a monitor on `chardev`.
    /// - Parameter pretty: indents what it sends.
    /// - Throws: QEMU's error when the chardev is in use.
    @discardableResult
    public init(vm: VirtualMachine, chardev: Chardev, pretty: Bool = false) throws(VMMError) {
        self.vm = vm
        self.chardev = chardev
        self.pretty = pretty
        dispatcher = QMPDispatcher(commands: vm.commands)
        number = MonitorUpdate.nextNumber(on: chardev, vm: vm)
        vm.add(monitor: self)
        vm.onEvent { [weak self] name, data in self?.sendEvent(name, data) }
        isResuming = MonitorUpdate.isTakingOver(vm)
        beginsAnew = isResuming
        if let session = try MonitorUpdate.session(on: chardev, number: number, vm: vm) { try restore(session) }
        try chardev.attach(self)
    }

    // MARK: Chardev

    public func chardevCanReceive() -> Int { requests.isEmpty && !isBlocked ? 4096 : 0 }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        parse(bytes)
        executeRequests()
    }

    private func parse(_ bytes: UnsafeRawBufferPointer) {
        // Byte by byte, to know what an update has to hand over.
        for index in bytes.indices {
            parser.feed(UnsafeRawBufferPointer(rebasing: bytes[index...index])) { requests.append($0) }
            if parser.isInValue { partial.append(bytes[index]) } else if !partial.isEmpty { partial = [] }
        }
    }

    public func chardevWritable() {
        output.drain(into: chardev)
        executeRequests()
        if chardevCanReceive() > 0 { chardev.acceptInput() }
    }

    public func chardevEvent(_ event: ChardevEvent) {
        switch event {
        case .opened:
            if isResuming { return }
            restart()
            send(["QMP": ["version": MonitorVersion.json, "capabilities": []]])
        // A session that is taken over ends with its own state, and not as its chardev gets another descriptor.
        case .closed where !isResuming: restart()
        default: break
        }
    }

    private func restart() {
        session += 1
        parser = JSONStreamParser()
        partial = []
        owedAnswer = nil
        requests.removeAll()
        output.removeAll()
        dispatcher.isNegotiated = false
    }

    private var isBlocked: Bool { output.count > Self.outputHighWater }

    // MARK: Requests

    private func executeRequests() {
        // A handler may cause input or output itself.
        guard !isExecuting, !isPutOff else { return }
        isExecuting = true
        defer { isExecuting = false }
        while !isBlocked, let request = requests.isEmpty ? nil : requests.removeFirst() {
            let session = session
            current = request
            defer { current = nil }
            Log.trace("handle_qmp_command", "mon \(chardev.id) req \(Self.describe(request))")
            vm.monitorInUse = chardev
            let response = dispatcher.dispatch(request)
            vm.monitorInUse = nil
            Log.trace("monitor_qmp_respond", "mon \(chardev.id) \(response.text())")
            if session == self.session {
                if isAnswered { isAnswered = false } else { send(response) }
            }
            // A client may send hundreds at once.
            if !requests.isEmpty, !vm.loop.hasTimeLeft { return putOff() }
        }
    }

    /// Goes on with the requests in a later turn.
    private func putOff() {
        isPutOff = true
        vm.loop.postpone { [weak self] in
            guard let self else { return }
            isPutOff = false
            executeRequests()
            if chardevCanReceive() > 0 { chardev.acceptInput() }
        }
    }

    // MARK: Update

    func handOver() -> StateWriter {
        var writer = StateWriter()
        writer.put("mode", "control")
        writer.put("negotiated", dispatcher.isNegotiated)
        writer.put("partial", bytes: partial)
        writer.put("output", bytes: output.contents)
        if let answer = current.map(QMPDispatcher.replacementAnswer) ?? owedAnswer {
            writer.put("answer", bytes: answer.bytes(pretty: false))
        }
        writer.put("requests", UInt64(requests.count))
        for (index, request) in requests.enumerated() {
            switch request {
            case .success(let value): writer.put("\(index).request", bytes: value.bytes(pretty: false))
            case .failure(let error): writer.put("\(index).error", error.message)
            }
        }
        return writer
    }

    private func restore(_ state: StateReader) throws(VMMError) {
        // Another kind of monitor begins anew.
        guard try state.string("mode") == "control" else { return }
        beginsAnew = false
        dispatcher.isNegotiated = try state.bool("negotiated")
        output.append(try state.bytes("output"))
        if state.has("answer") { owedAnswer = try JSON(parsing: try state.bytes("answer")) }
        for index in 0..<(try state.unsigned("requests", in: 0...1 << 20)) {
            if state.has("\(index).request") {
                requests.append(.success(try JSON(parsing: try state.bytes("\(index).request"))))
            } else {
                requests.append(.failure(VMMError(try state.string("\(index).error"))))
            }
        }
        let partial = try state.bytes("partial")
        partial.withUnsafeBytes { parse($0) }
    }

    func takeOver(_ state: StateReader?) throws(VMMError) {
        restart()
        beginsAnew = true
        if let state { try restore(state) }
    }

    func resume() {
        if isResuming {
            isResuming = false
            if beginsAnew, chardev.isOpen { chardevEvent(.opened) }
        }
        if let answer = owedAnswer {
            owedAnswer = nil
            send(answer)
        } else {
            output.drain(into: chardev)
        }
        // Not now: an update is not over while its observers are told.
        vm.loop.later { [weak self] in
            guard let self else { return }
            executeRequests()
            if chardevCanReceive() > 0 { chardev.acceptInput() }
        }
    }

    func takenBack(answered: Bool) {
        guard answered else { return }
        // The new process has sent and read all that; its answer stands.
        output.removeAll()
        requests.removeAll()
        parser = JSONStreamParser()
        partial = []
        if isExecuting { isAnswered = true }
    }

    private static func describe(_ request: Result<JSON, VMMError>) -> String {
        switch request {
        case .success(let value): value.text()
        case .failure(let error): error.message
        }
    }

    private func send(_ message: JSON) {
        output.append(message.bytes(pretty: pretty) + [13, 10])
        output.drain(into: chardev)
    }

    private func sendEvent(_ name: String, _ data: JSONObject) {
        guard dispatcher.isNegotiated, output.count < Self.eventLimit else { return }
        let now = cbaton_realtime_ns()
        var event = JSONObject()
        event["timestamp"] = [
            "seconds": .int(now / 1_000_000_000), "microseconds": .int(now / 1000 % 1_000_000),
        ]
        event["event"] = .string(name)
        if !data.isEmpty { event["data"] = .object(data) }
        send(.object(event))
    }
}
