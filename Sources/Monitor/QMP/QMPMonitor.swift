import BatonRuntime
import CBaton

/// One QMP session on a chardev (QEMU's qmp-spec): greeting, capabilities
/// negotiation, commands in order, events once negotiation is done.
///
/// A client that does not read its answers is not read from either; one that
/// goes away leaves the next in negotiation mode.
public final class QMPMonitor: ChardevFrontend {
    private unowned let vm: VirtualMachine
    private let chardev: Chardev
    private let pretty: Bool
    private let dispatcher: QMPDispatcher

    private var parser = JSONStreamParser()
    /// Parsed and not carried out yet.
    private var requests = [Result<JSON, VMMError>]()
    private var output = OutputQueue()
    private var isExecuting = false
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
        vm.add(monitor: self)
        vm.onEvent { [weak self] name, data in self?.sendEvent(name, data) }
        try chardev.attach(self)
    }

    // MARK: Chardev

    public func chardevCanReceive() -> Int { requests.isEmpty && !isBlocked ? 4096 : 0 }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        parser.feed(bytes) { requests.append($0) }
        executeRequests()
    }

    public func chardevWritable() {
        output.drain(into: chardev)
        executeRequests()
        if chardevCanReceive() > 0 { chardev.acceptInput() }
    }

    public func chardevEvent(_ event: ChardevEvent) {
        switch event {
        case .opened:
            restart()
            send(["QMP": ["version": MonitorVersion.json, "capabilities": []]])
        case .closed: restart()
        default: break
        }
    }

    private func restart() {
        session += 1
        parser = JSONStreamParser()
        requests.removeAll()
        output.removeAll()
        dispatcher.isNegotiated = false
    }

    private var isBlocked: Bool { output.count > Self.outputHighWater }

    // MARK: Requests

    private func executeRequests() {
        // A handler may cause input or output itself.
        guard !isExecuting else { return }
        isExecuting = true
        defer { isExecuting = false }
        while !isBlocked, let request = requests.isEmpty ? nil : requests.removeFirst() {
            let current = session
            Log.trace("handle_qmp_command", "mon \(chardev.id) req \(Self.describe(request))")
            let response = dispatcher.dispatch(request)
            Log.trace("monitor_qmp_respond", "mon \(chardev.id) \(response.text())")
            guard current == session else { continue }
            send(response)
        }
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
