import Foundation

/// A QMP client for tests and the harness: synchronous, over a unix socket, every wait with a
/// deadline.
public final class QMPClient {
    /// The server's answer to a refused command.
    public struct Refusal: Error, Equatable, CustomStringConvertible {
        public var errorClass: String
        public var text: String
        public var description: String { "\(errorClass): \(text)" }
    }

    /// The server has answered something that was not asked now, such as a command for the second time.
    public struct WrongAnswer: Error, CustomStringConvertible {
        public let description: String
    }

    private let fd: Int32
    private var buffer = Data()
    /// Events that came and that nobody has asked for yet, in order.
    public private(set) var events: [[String: Any]] = []
    private var lastID = 0
    /// The server, for messages about what goes wrong; nil if it is not known.
    private let server: ChildProcess?

    /// Takes over a connected stream socket.
    public init(adopting fd: Int32, of server: ChildProcess? = nil) {
        self.fd = fd
        self.server = server
    }
    deinit { close(fd) }

    /// Connects to the socket of a server that may still be starting.
    /// - Parameters:
    ///   - server: who it is; its end ends the wait.
    ///   - negotiate: reads the greeting and leaves the negotiation mode.
    public convenience init(
        path: String, of server: ChildProcess? = nil, by deadline: Deadline = .patient, negotiate: Bool = true
    ) throws {
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { throw Failure.system("socket") }
        do {
            // A server with clients enough keeps another one in connect(2).
            var (limit, none) = (timeval(tv_sec: 1, tv_usec: 0), timeval())
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
            defer { setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, socklen_t(MemoryLayout<timeval>.size)) }
            try eventually("a server on \(path)\(Self.report(server))", by: deadline) {
                if Self.withAddress(path, { connect(fd, $0, $1) == 0 }) { return true }
                if let server, !server.isRunning { throw Failure("nobody listens on \(path)\(Self.report(server))") }
                return false
            }
        } catch {
            close(fd)
            throw error
        }
        self.init(adopting: fd, of: server)
        if negotiate { try self.negotiate(by: deadline) }
    }

    /// Listens on a socket that a server will connect to (`server=off`).
    public final class Listener {
        private let fd: Int32
        public init(path: String) throws {
            fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            guard fd >= 0, QMPClient.withAddress(path, { bind(fd, $0, $1) }) == 0, listen(fd, 4) == 0 else {
                throw Failure.system("listen on \(path)")
            }
        }
        deinit { close(fd) }
        public func accept(by deadline: Deadline = .patient) throws -> QMPClient {
            var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
            guard poll(&state, 1, deadline.milliseconds) == 1 else { throw Failure("nobody connected") }
            let connection = Foundation.accept(fd, nil, nil)
            guard connection >= 0 else { throw Failure.system("accept") }
            _ = fcntl(connection, F_SETFD, FD_CLOEXEC)
            let client = QMPClient(adopting: connection)
            try client.negotiate(by: deadline)
            return client
        }
    }

    public static func withAddress<R>(_ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8.prefix($0.count - 1)) }
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    private static func report(_ server: ChildProcess?) -> String { server.map { "; " + $0.report } ?? "" }
    private var report: String { Self.report(server) }

    // MARK: Raw messages

    public func send(_ text: String, by deadline: Deadline = .patient) throws {
        try send(Data(text.utf8), by: deadline)
    }

    public func send(_ data: Data, by deadline: Deadline = .patient) throws {
        var rest = data[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes {
                Foundation.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
            }
            if count > 0 {
                rest = rest.dropFirst(count)
                continue
            }
            guard errno == EAGAIN || errno == EINTR else { throw Failure.system("send to the QMP server") }
            var state = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
            guard poll(&state, 1, deadline.milliseconds) == 1 else {
                throw Failure(
                    "gave up waiting for: the QMP server reads \(rest.count) more bytes of a command\(report)")
            }
        }
    }

    /// Carries out a command that comes with a descriptor, which stays the caller's.
    @discardableResult
    public func execute(_ command: String, _ arguments: [String: Any], passing descriptor: Int32) throws -> Any {
        // A blank before the command carries the descriptor.
        guard DescriptorPassing.send(Data(" ".utf8), passing: [descriptor], over: fd) == 1 else {
            throw Failure.system("sendmsg to the QMP server")
        }
        return try execute(command, arguments)
    }

    /// The next message, whatever it is; nil when the server closed.
    public func receive(by deadline: Deadline = .patient) throws -> [String: Any]? {
        while true {
            if let end = buffer.firstIndex(of: 10) {
                let line = buffer[..<end]
                buffer = Data(buffer[(end + 1)...])
                let value = try JSONSerialization.jsonObject(with: line)
                guard let object = value as? [String: Any] else {
                    throw Failure("not an object: \(String(decoding: line, as: UTF8.self))")
                }
                return object
            }
            var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
            guard poll(&state, 1, deadline.milliseconds) == 1 else {
                throw Failure(
                    "no answer from the QMP server; half a message: "
                        + "'\(String(decoding: buffer, as: UTF8.self))'\(report)")
            }
            var bytes = [UInt8](repeating: 0, count: 1 << 16)
            let count = recv(fd, &bytes, bytes.count, 0)
            if count <= 0 { return nil }
            buffer.append(contentsOf: bytes[..<count])
        }
    }

    // MARK: The protocol

    /// Reads the greeting and enters command mode.
    @discardableResult
    public func negotiate(by deadline: Deadline = .patient) throws -> [String: Any] {
        guard let greeting = try receive(by: deadline)?["QMP"] as? [String: Any] else {
            throw Failure("no greeting\(report)")
        }
        try execute("qmp_capabilities", by: deadline)
        return greeting
    }

    /// Carries out a command.
    /// - Returns: the `return` member.
    /// - Throws: `Refusal` when the server answers with an error.
    @discardableResult
    public func execute(
        _ command: String, _ arguments: [String: Any] = [:], by deadline: Deadline = .patient
    ) throws -> Any {
        lastID += 1
        var request: [String: Any] = ["execute": command, "id": lastID]
        if !arguments.isEmpty { request["arguments"] = arguments }
        try answering(command) {
            try send(try JSONSerialization.data(withJSONObject: request) + Data("\n".utf8), by: deadline)
        }
        while let message = try answering(command, { try receive(by: deadline) }) {
            if message["event"] != nil {
                events.append(message)
                try goOn(waitingFor: "the answer to '\(command)'", by: deadline)
                continue
            }
            guard message["id"] as? Int == lastID else {
                throw WrongAnswer(description: "not the answer to \(command): \(message)")
            }
            if let error = message["error"] as? [String: Any] {
                throw Refusal(errorClass: error["class"] as? String ?? "", text: error["desc"] as? String ?? "")
            }
            guard let result = message["return"] else { throw Failure("neither return nor error: \(message)") }
            return result
        }
        throw Failure("the QMP server closed the connection during '\(command)'\(report)")
    }

    /// Has a failure say what it was that had no answer.
    private func answering<T>(_ command: String, _ body: () throws -> T) throws -> T {
        do { return try body() } catch let failure as Failure { throw Failure("'\(command)': \(failure)") }
    }

    /// Sends a command whose answer may never come, such as one that replaces the process.
    public func executeWithoutAnswer(_ command: String, _ arguments: [String: Any] = [:]) throws {
        var request: [String: Any] = ["execute": command]
        if !arguments.isEmpty { request["arguments"] = arguments }
        try send(try JSONSerialization.data(withJSONObject: request) + Data("\n".utf8))
    }

    /// The data of the next event of that name, also of one that came before.
    @discardableResult
    public func waitForEvent(_ name: String, by deadline: Deadline = .patient) throws -> [String: Any] {
        while true {
            if let index = events.firstIndex(where: { $0["event"] as? String == name }) {
                let event = events.remove(at: index)
                return event["data"] as? [String: Any] ?? [:]
            }
            guard let message = try answering("the event \(name)", { try receive(by: deadline) }) else {
                throw Failure("the QMP server closed the connection before \(name)\(report)")
            }
            if message["event"] != nil { events.append(message) }
            try goOn(waitingFor: "the event \(name)", by: deadline)
        }
    }

    /// What has come is not what is waited for, and there may be more of it without end.
    private func goOn(waitingFor what: String, by deadline: Deadline) throws {
        guard deadline.hasPassed else { return }
        let last = events.suffix(3).compactMap { $0["event"] as? String }
        throw Failure("gave up waiting for: \(what); the last of \(events.count) events: \(last)\(report)")
    }

    /// Puts an event back, as if it had just come.
    public func putBack(_ event: [String: Any]) { events.append(event) }

    /// Forgets the events that have come so far.
    public func discardEvents() { events = [] }

    /// Has no VMM outlive a test or a measurement, even one that ends in the middle of an update: kills the process that
    /// was started, and ends a VMM that took its guest back, which is no child of ours.
    public func endVMM(startedAs process: ChildProcess) {
        process.signal(SIGKILL)
        for _ in 0..<1000 where process.isRunning { usleep(1000) }
        try? executeWithoutAnswer("quit")
    }

    /// A word of guest memory, by the human monitor's `xp`.
    public func guestWord(at address: UInt64, by deadline: Deadline = .patient) throws -> UInt64 {
        let line = "xp /1xg 0x\(String(address, radix: 16))"
        let text = try execute("human-monitor-command", ["command-line": line], by: deadline) as? String ?? ""
        guard let digits = text.split(whereSeparator: \.isWhitespace).last, digits.hasPrefix("0x"),
            let value = UInt64(digits.dropFirst(2), radix: 16)
        else { throw Failure("xp said '\(text)'") }
        return value
    }

    /// `query-status`.
    public func status() throws -> String {
        (try execute("query-status") as? [String: Any])?["status"] as? String ?? ""
    }
}
