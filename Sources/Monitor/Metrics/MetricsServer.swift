import BatonRuntime

/// Answers Prometheus' requests on a chardev (`-metrics`): HTTP, one request a connection, `GET /metrics`.
///
/// The chardev serves one client at a time and goes over an update as any other does. A client that does not read,
/// write or go is disconnected after `limit`, so that the others have their turn.
public final class MetricsServer: ChardevFrontend {
    private unowned let vm: VirtualMachine
    private let chardev: Chardev
    private var request: [UInt8] = []
    private var isAnswered = false
    private var output = OutputQueue()
    private var deadline: EventLoop.Timer?

    /// Nanoseconds that a client has.
    private static let limit: Int64 = 5_000_000_000
    /// Bytes of a request, at most.
    private static let requestLimit = 8192

    /// Carries out `-metrics`. The VM keeps the server.
    /// - Throws: QEMU's error when the chardev is in use.
    @discardableResult
    public init(vm: VirtualMachine, chardev: Chardev) throws(VMMError) {
        self.vm = vm
        self.chardev = chardev
        vm.parts(MetricsServers.self).servers.append(self)
        try chardev.attach(self)
    }

    public func chardevCanReceive() -> Int { 4096 }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        // What follows a request is not wanted.
        guard !isAnswered else { return }
        request.append(contentsOf: bytes)
        if request.count > Self.requestLimit { return answer("431 Request Header Fields Too Large") }
        guard let end = firstLineEnd, isComplete else { return }
        let words = String(decoding: request[..<end], as: UTF8.self).split(separator: " ")
        guard words.count == 3, words[2].hasPrefix("HTTP/") else { return answer("400 Bad Request") }
        let path = words[1].prefix { $0 != "?" }
        switch (words[0], path) {
        case ("GET", "/metrics"), ("GET", "/"): answer("200 OK", MetricsText.text(vm.metrics.collect()))
        case ("HEAD", "/metrics"), ("HEAD", "/"): answer("200 OK")
        case ("GET", _), ("HEAD", _): answer("404 Not Found", "There is /metrics.\n")
        default: answer("405 Method Not Allowed")
        }
    }

    private var firstLineEnd: Int? {
        request.firstIndex { $0 == UInt8(ascii: "\r") || $0 == UInt8(ascii: "\n") }
    }

    /// Whether the empty line has come that ends a request's header.
    private var isComplete: Bool {
        var newlines = 0
        for byte in request {
            if byte == UInt8(ascii: "\n") { newlines += 1 } else if byte != UInt8(ascii: "\r") { newlines = 0 }
            if newlines == 2 { return true }
        }
        return false
    }

    private func answer(_ status: String, _ body: String = "") {
        isAnswered = true
        request = []
        let head = [
            "HTTP/1.1 \(status)", "Content-Type: \(MetricsText.contentType)", "Content-Length: \(body.utf8.count)",
            "Connection: close", "", "",
        ].joined(separator: "\r\n")
        output.append(Array(head.utf8) + Array(body.utf8))
        output.drain(into: chardev)
    }

    public func chardevWritable() { output.drain(into: chardev) }

    public func chardevEvent(_ event: ChardevEvent) {
        switch event {
        case .opened:
            restart()
            deadline = vm.loop.schedule(at: EventLoop.now + Self.limit) { [weak self] in
                self?.chardev.endConnection()
            }
        case .closed: restart()
        default: break
        }
    }

    private func restart() {
        deadline?.cancel()
        deadline = nil
        request = []
        isAnswered = false
        output.removeAll()
    }
}

/// Keeps the servers, which chardevs do not.
final class MetricsServers: MachineParts {
    fileprivate(set) var servers: [MetricsServer] = []
}
