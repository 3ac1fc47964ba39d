import Foundation
import ProcessSupport

/// A connection to the VMM's QMP socket. Waiting is the caller's: it has the
/// guest's console to read meanwhile.
final class QMPConnection {
    let descriptor: Int32
    private var buffer: [UInt8] = []
    private(set) var isClosed = false
    private var messages: [[String: Any]] = []

    /// Connects, or returns nil if nobody listens yet.
    init?(path: String) {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return nil }
        guard QMPClient.withAddress(path, { connect(descriptor, $0, $1) }) == 0 else {
            close(descriptor)
            return nil
        }
        _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
    }

    deinit { close(descriptor) }

    func send(_ command: String, _ arguments: [String: Any]? = nil) throws {
        try send(try Self.encode(command, arguments))
    }

    /// A command as it is sent.
    static func encode(_ command: String, _ arguments: [String: Any]?) throws -> Data {
        var object: [String: Any] = ["execute": command]
        if let arguments { object["arguments"] = arguments }
        return try JSONSerialization.data(withJSONObject: object) + Data("\n".utf8)
    }

    func send(_ message: Data) throws {
        var rest = message
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            if count > 0 {
                rest = rest.dropFirst(count)
            } else if errno == EAGAIN {
                var set = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                poll(&set, 1, 1000)
            } else if errno != EINTR {
                throw Failure.system("QMP: cannot send")
            }
        }
    }

    /// Sends a short command with a descriptor, which stays the caller's.
    func send(_ command: String, _ arguments: [String: Any], passing descriptor: Int32) throws {
        let message = try Self.encode(command, arguments)
        guard DescriptorPassing.send(message, passing: [descriptor], over: self.descriptor) == message.count else {
            throw Failure.system("QMP: cannot pass a descriptor")
        }
    }

    /// Is called with each event's name and data.
    var onEvent: ((String, [String: Any]) -> Void)?

    /// The next message that is not an event, if it is there.
    func next() throws -> [String: Any]? {
        try fill()
        while !messages.isEmpty {
            let message = messages.removeFirst()
            guard let event = message["event"] as? String else { return message }
            onEvent?(event, message["data"] as? [String: Any] ?? [:])
        }
        return nil
    }

    /// Sleeps until there is a message that is not an event.
    /// - Returns: nil when the connection is closed, or at `deadline`.
    func await(_ deadline: Double) throws -> [String: Any]? {
        while Clock.now < deadline {
            if let message = try next() { return message }
            if isClosed { return nil }
            var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            poll(&entry, 1, Int32(max(1, (deadline - Clock.now) * 1000)))
        }
        return nil
    }

    private func fill() throws {
        var bytes = [UInt8](repeating: 0, count: 16384)
        while !isClosed {
            let count = read(descriptor, &bytes, bytes.count)
            if count > 0 {
                buffer += bytes[..<count]
            } else if count == 0 || errno != EAGAIN && errno != EINTR {
                isClosed = true
            } else if errno == EAGAIN {
                break
            }
        }
        while let end = buffer.firstIndex(of: 0x0a) {
            let line = Data(buffer[..<end])
            buffer.removeSubrange(...end)
            if line.allSatisfy({ $0 == 0x0d || $0 == 0x20 }) { continue }
            guard let object = try? JSONSerialization.jsonObject(with: line) as? [String: Any] else {
                throw Failure("QMP: not a JSON object: \(String(decoding: line, as: UTF8.self))")
            }
            messages.append(object)
        }
    }
}
