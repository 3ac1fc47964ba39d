import Foundation
import ProcessSupport

/// A unix socket of type SOCK_SEQPACKET, as two VMMs have it between them; for a test that stands in for one.
public final class PacketSocket {
    private let fd: Int32

    private init(adopting fd: Int32) { self.fd = fd }

    private static func make() throws -> Int32 {
        ChildProcess.ignoreBrokenPipes()
        let fd = socket(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { throw TestError("socket: \(String(cString: strerror(errno)))") }
        return fd
    }

    public convenience init(connectingTo path: String) throws {
        self.init(adopting: try Self.make())
        guard QMPClient.withAddress(path, { connect(fd, $0, $1) }) == 0 else {
            throw TestError("connect to \(path): \(String(cString: strerror(errno)))")
        }
    }

    public convenience init(listeningAt path: String) throws {
        self.init(adopting: try Self.make())
        guard QMPClient.withAddress(path, { bind(fd, $0, $1) }) == 0, listen(fd, 4) == 0 else {
            throw TestError("listen at \(path): \(String(cString: strerror(errno)))")
        }
    }

    deinit { close(fd) }

    private func waitForInput() throws {
        var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        guard poll(&state, 1, Deadline.patient.milliseconds) == 1 else { throw TestError("nothing came") }
    }

    public func accept() throws -> PacketSocket {
        try waitForInput()
        let connection = Foundation.accept(fd, nil, nil)
        guard connection >= 0 else { throw TestError("accept: \(String(cString: strerror(errno)))") }
        _ = fcntl(connection, F_SETFD, FD_CLOEXEC)
        return PacketSocket(adopting: connection)
    }

    /// - Returns: whether it went.
    public func send(_ bytes: [UInt8]) -> Bool {
        Foundation.send(fd, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count
    }

    /// The next packet; descriptors that come with it are discarded. Empty at the end.
    public func receive() throws -> [UInt8] {
        try waitForInput()
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = recv(fd, &buffer, buffer.count, 0)
        return Array(buffer.prefix(max(0, count)))
    }

    /// Whether the other side has closed it.
    public var isClosed: Bool {
        var state = pollfd(fd: fd, events: 0, revents: 0)
        return poll(&state, 1, 10) == 1 && Int32(state.revents) & (POLLHUP | POLLERR) != 0
    }
}
