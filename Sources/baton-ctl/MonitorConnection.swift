import BatonRuntime
import CBaton
import Foundation

/// A QMP session with a VMM. Waits for each answer.
final class MonitorConnection {
    /// The VMM has closed the connection: it has ended, or a connection of its own did not go over an update.
    struct Closed: Error {
        let name: String
        var error: VMMError { VMMError("the VMM closed the connection \(name)") }
    }

    /// The VMM has not answered in time. The command may still be carried out, and its answer comes before others.
    struct Late: Error {
        let name: String
        let limit: Int64
        var error: VMMError { VMMError("the VMM at \(name) did not answer within \(limit / 1_000_000) ms") }
    }

    /// Nanoseconds that a command may take; nil: as long as it likes.
    var answerLimit: Int64?
    /// Answers that are still to come, to commands that were given up.
    private var owedAnswers = 0

    /// Whether descriptors can be sent along.
    let isUnixSocket: Bool
    private let fd: Int32
    private let name: String
    private var parser = JSONStreamParser()
    private var waiting: [JSONObject] = []
    private let onEvent: (_ name: String, _ data: JSONObject) -> Void

    /// Connects and negotiates.
    /// - Parameters:
    ///   - address: a unix socket's path, or `HOST:PORT`.
    ///   - milliseconds: how long the VMM may take to greet; it serves one client of a monitor at a time, and lets the
    ///     others wait.
    ///   - onEvent: is told of each event while an answer is waited for.
    init(
        _ address: String, milliseconds: Int64, onEvent: @escaping (_ name: String, _ data: JSONObject) -> Void
    ) throws {
        name = address
        self.onEvent = onEvent
        let place = MonitorConnection.socketAddress(address)
        if case .unix = place { isUnixSocket = true } else { isUnixSocket = false }
        fd = try place.startConnecting().fd
        // Also what comes of connecting shows as something to read.
        guard hasInput(milliseconds: milliseconds) else {
            throw VMMError(
                "the VMM at \(address) did not answer within \(milliseconds) ms",
                hint: "A monitor serves one client at a time: end the other one, or give the VMM a second -qmp.")
        }
        guard try receive()["QMP"] != nil else { throw VMMError("\(address) is not a QMP monitor") }
        try execute("qmp_capabilities")
    }

    deinit { close(fd) }

    private static func socketAddress(_ text: String) -> SocketAddress {
        let port = text.lastIndex(of: ":").map { text[text.index(after: $0)...] } ?? ""
        guard !text.contains("/"), !port.isEmpty, port.allSatisfy(\.isNumber) else { return .unix(path: text) }
        return .tcp(host: String(text.dropLast(port.count + 1)), port: String(port))
    }

    /// Sends a command and waits for its answer.
    /// - Parameter descriptor: goes along. Borrowed; nil for none.
    /// - Throws: the VMM's error.
    @discardableResult
    func execute(
        _ command: String, _ arguments: JSONObject = [:], passing descriptor: Int32? = nil
    ) throws -> JSON {
        if let descriptor {
            // A blank before the command carries it.
            while cbaton_send_fds(fd, " ", 1, [descriptor], 1, 0) != 1 {
                guard errno == EAGAIN || errno == EINTR else { throw VMMError.system("Could not write to \(name)") }
                var state = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
                poll(&state, 1, -1)
            }
        }
        var request: JSONObject = ["execute": .string(command)]
        if !arguments.isEmpty { request["arguments"] = .object(arguments) }
        try send(JSON.object(request).bytes(pretty: false) + [10])
        let deadline = answerLimit.map { EventLoop.now + $0 }
        while true {
            if let deadline, let answerLimit, waiting.isEmpty,
                !hasInput(milliseconds: (max(0, deadline - EventLoop.now) + 999_999) / 1_000_000)
            {
                owedAnswers += 1
                throw Late(name: name, limit: answerLimit)
            }
            let message = try receive()
            if message["event"] == nil, owedAnswers > 0 {
                owedAnswers -= 1
                continue
            }
            if let event = message["event"]?.stringValue {
                onEvent(event, message["data"]?.objectValue ?? [:])
            } else if let error = message["error"]?.objectValue {
                throw VMMError(error["desc"]?.stringValue ?? "unknown error")
            } else if let value = message["return"] {
                return value
            }
        }
    }

    /// Tells of events as they come, until one has made `condition` true, or nothing comes for a while.
    func takeEvents(milliseconds: Int32, until condition: () -> Bool) throws {
        var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        while !condition(), !waiting.isEmpty || poll(&state, 1, milliseconds) > 0 {
            let message = try receive()
            if let event = message["event"]?.stringValue { onEvent(event, message["data"]?.objectValue ?? [:]) }
        }
    }

    private func hasInput(milliseconds: Int64) -> Bool {
        let deadline = EventLoop.now + min(max(milliseconds, 0), 86_400_000) * 1_000_000
        while true {
            let left = max(0, deadline - EventLoop.now)
            var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
            let ready = poll(&state, 1, Int32(clamping: (left + 999_999) / 1_000_000))
            if ready > 0 { return true }
            if ready == 0 && left == 0 { return false }
        }
    }

    private func send(_ bytes: [UInt8]) throws {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Glibc.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            if count > 0 {
                rest = rest.dropFirst(count)
            } else {
                guard errno == EAGAIN || errno == EINTR else { throw VMMError.system("Could not write to \(name)") }
                var state = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
                poll(&state, 1, -1)
            }
        }
    }

    private func receive() throws -> JSONObject {
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while waiting.isEmpty {
            var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
            poll(&state, 1, -1)
            let count = read(fd, &buffer, buffer.count)
            if count < 0 && (errno == EAGAIN || errno == EINTR) { continue }
            guard count > 0 else { throw Closed(name: name) }
            var failure: VMMError?
            buffer[..<count].withUnsafeBytes { bytes in
                parser.feed(bytes) { result in
                    switch result {
                    case .success(let value): if let object = value.objectValue { waiting.append(object) }
                    case .failure(let error): failure = error
                    }
                }
            }
            if let failure { throw failure }
        }
        return waiting.removeFirst()
    }
}
