import Foundation

/// A byte stream to a unix socket or a terminal: nothing blocks.
public final class StreamClient {
    private let fd: Int32
    /// Everything received and not taken yet.
    public private(set) var received: [UInt8] = []
    public private(set) var isClosed = false
    private let patience: Double

    /// Connects to a unix socket.
    /// - Parameter patience: how long to wait for its server, and in `expect`, in seconds.
    public init(socket path: String, patience: Double = Deadline.patience) throws {
        self.patience = patience
        ChildProcess.ignoreBrokenPipes()
        fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { throw Failure.system("socket") }
        // Before connect(2), which a server with clients enough would not let go of.
        _ = fcntl(fd, F_SETFL, O_NONBLOCK)
        try eventually("a server on \(path)", by: .seconds(patience)) {
            QMPClient.withAddress(path) { connect(self.fd, $0, $1) == 0 }
        }
    }

    /// Opens a terminal.
    public init(terminal path: String, patience: Double = Deadline.patience) throws {
        self.patience = patience
        fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC)
        guard fd >= 0 else { throw Failure.system("open \(path)") }
    }

    deinit { close(fd) }

    /// Sends what goes without waiting.
    /// - Returns: how many bytes went.
    public func send(_ bytes: ArraySlice<UInt8>) -> Int {
        max(0, bytes.withUnsafeBytes { write(fd, $0.baseAddress, $0.count) })
    }

    public func send(_ text: String) throws {
        let bytes = Array(text.utf8)
        guard send(bytes[...]) == bytes.count else { throw Failure.system("send") }
    }

    /// Waits a moment for bytes, and reads those that are there.
    public func poll() {
        var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        guard Foundation.poll(&state, 1, 10) == 1 else { return }
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        let count = read(fd, &buffer, buffer.count)
        if count > 0 { received += buffer[..<count] } else if count == 0 { isClosed = true }
    }

    /// Takes everything received so far.
    public func take() -> [UInt8] {
        defer { received = [] }
        return received
    }

    /// Waits for a text, and takes everything up to its end.
    @discardableResult
    public func expect(_ text: String) throws -> String {
        var taken = ""
        func soFar() -> String { "'\(String(decoding: received, as: UTF8.self))'\(isClosed ? ", and the end" : "")" }
        try eventually("'\(text)'; so far \(soFar())", by: .seconds(patience)) {
            self.poll()
            let all = String(decoding: self.received, as: UTF8.self)
            guard let range = all.range(of: text) else { return false }
            taken = String(all[..<range.upperBound])
            self.received = Array(all[range.upperBound...].utf8)
            return true
        }
        return taken
    }
}
