import Foundation
import TestSupport

/// The socket on which a service manager is told of its service, as sd_notify(3) does.
final class NotifySocket {
    let path: String
    private let fd: Int32
    /// What was said of the guest's state so far, oldest first.
    private(set) var statuses: [String] = []
    /// Signs of life so far.
    private(set) var pings = 0

    init(_ directory: TemporaryDirectory) throws {
        let path = directory.file("notify")
        self.path = path
        fd = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        let fd = fd
        guard QMPClient.withAddress(path, { bind(fd, $0, $1) }) == 0 else { throw TestError.system("bind") }
        var on: Int32 = 1
        setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, socklen_t(MemoryLayout<Int32>.size))
    }
    deinit { close(fd) }

    private func hasMessage(milliseconds: Int32) -> Bool {
        var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        return poll(&state, 1, milliseconds) == 1
    }

    /// A message, its descriptor, which is the caller's, and the process that has sent it.
    typealias Message = (text: String, descriptor: Int32?, sender: pid_t?)

    private func receive() throws -> Message {
        guard hasMessage(milliseconds: 30_000) else { throw TestError("the manager is told nothing") }
        guard let message = DescriptorPassing.receiveWithSender(upTo: 1024, from: fd) else {
            throw TestError.system("recvmsg")
        }
        let text = String(decoding: message.bytes, as: UTF8.self)
        if text.hasPrefix("STATUS=") { statuses.append(String(text.dropFirst("STATUS=".count))) }
        if text == "WATCHDOG=1" { pings += 1 }
        return (text, message.fds.first, message.sender)
    }

    /// Takes a message, whatever it is.
    private func drop() throws {
        if let descriptor = try receive().descriptor { close(descriptor) }
    }

    /// Leaves no room for messages.
    func fill() throws {
        let sender = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(sender) }
        guard QMPClient.withAddress(path, { connect(sender, $0, $1) }) == 0 else { throw TestError.system("connect") }
        while send(sender, "X=1", 3, Int32(MSG_DONTWAIT)) == 3 {}
        guard errno == EAGAIN else { throw TestError.system("send") }
    }

    private static func isAside(_ text: String) -> Bool { text.hasPrefix("STATUS=") || text == "WATCHDOG=1" }

    /// The next message about the service's processes.
    func next() throws -> Message {
        while true {
            let message = try receive()
            if !Self.isAside(message.text) { return message }
        }
    }

    /// The same, which must be one about the main process.
    func nextMainProcess() throws -> (pid: pid_t, sender: pid_t?) {
        let message = try next()
        guard message.text.hasPrefix("MAINPID="), let pid = pid_t(message.text.dropFirst("MAINPID=".count)) else {
            throw TestError("the manager is told \(message.text)")
        }
        return (pid, message.sender)
    }

    /// Whether nothing was said about the service's processes.
    var isQuiet: Bool {
        while hasMessage(milliseconds: 0) {
            guard let message = try? receive(), Self.isAside(message.text) else { return false }
        }
        return true
    }

    /// Waits for a status that contains a text, or for one more sign of life.
    func waitForStatus(_ text: String) throws {
        // Signs of life come all the time.
        let deadline = Deadline.patient
        while !statuses.contains(where: { $0.contains(text) }) {
            guard !deadline.hasPassed else { throw TestError("the status never was '\(text)', but \(statuses)") }
            try drop()
        }
    }
    func waitForPings(_ count: Int) throws {
        let end = pings + count
        let deadline = Deadline.patient
        while pings < end {
            guard !deadline.hasPassed else { throw TestError("\(pings) signs of life instead of \(end)") }
            try drop()
        }
    }
}
