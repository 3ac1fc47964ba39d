import Foundation
import TestSupport

/// A network namespace of a test's own with a tap interface in it, on which
/// the host is 10.77.0.1. Needs root, iproute2 and /dev/net/tun.
final class NetworkNamespace: Sendable {
    static let interface = "tap0"
    let name: String

    /// Whether one can be made here.
    static let isAvailable: Bool = (try? NetworkNamespace()) != nil

    /// - Parameter options: more words for `ip tuntap add`.
    init(_ options: [String] = []) throws {
        name = "baton-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
        try ChildProcess.run(["ip", "netns", "add", name])
        do {
            try ip(["tuntap", "add", "dev", Self.interface, "mode", "tap"] + options)
            try ip(["address", "add", "10.77.0.1/24", "dev", Self.interface])
            try ip(["link", "set", Self.interface, "up"])
        } catch {
            _ = try? ChildProcess.run(["ip", "netns", "del", name])
            throw error
        }
    }

    deinit { _ = try? ChildProcess.run(["ip", "netns", "del", name]) }

    /// Executes a program inside.
    var prefix: [String] { ["ip", "netns", "exec", name] }

    @discardableResult
    func ip(_ arguments: [String]) throws -> String { try ChildProcess.run(["ip", "-netns", name] + arguments) }

    /// Makes something inside, such as a socket, on a thread that goes there.
    func make(_ body: @escaping @Sendable () -> Int32) throws -> Int32 {
        // Not in the headers that Swift sees.
        typealias SetNamespace = @convention(c) (Int32, Int32) -> Int32
        guard let symbol = dlsym(nil, "setns") else { throw TestError("no setns") }
        let setNamespace = unsafeBitCast(symbol, to: SetNamespace.self)
        let path = "/run/netns/\(name)"
        let done = DispatchSemaphore(value: 0)
        final class Result: @unchecked Sendable { var fd: Int32 = -1 }
        let result = Result()
        Thread.detachNewThread {
            let namespace = open(path, O_RDONLY | O_CLOEXEC)
            if setNamespace(namespace, 0x4000_0000) == 0 { result.fd = body() }
            close(namespace)
            done.signal()
        }
        done.wait()
        guard result.fd >= 0 else { throw TestError("nothing could be made in namespace \(name)") }
        return result.fd
    }
}

/// Sends numbered echo requests to the guest, as fast as it answers, and
/// follows the answers: each must come, once, and in order.
final class EchoFlood: @unchecked Sendable {
    /// Requests without an answer at a time: more than the guest has buffers,
    /// fewer than the interface queues.
    private let window: Int

    /// Stays at least as long.
    let namespace: NetworkNamespace
    private let fd: Int32
    private let address: String
    /// Tells this one's answers from another's.
    private let identifier: UInt16
    private let lock = NSLock()
    private var sent: UInt32 = 0
    private var answered: UInt32 = 0
    private var disorder = 0
    private var isStopping = false
    private let ended = DispatchSemaphore(value: 0)
    private var quietUntil = Deadline.seconds(60)

    struct Outcome: Equatable {
        var lost: Int
        /// Answers that were not the next.
        var disorder: Int

        /// Each once, and in order.
        static let allAnswered = Outcome(lost: 0, disorder: 0)
    }

    /// - Parameter address: one of the guest's; each for one flood at a time.
    init(in namespace: NetworkNamespace, address: String = NetGuest.address, window: Int = 256) throws {
        self.namespace = namespace
        self.address = address
        self.window = window
        identifier = 0x4200 + (UInt16(address.split(separator: ".").last ?? "") ?? 0)
        fd = try namespace.make {
            socket(AF_INET, Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), Int32(IPPROTO_ICMP))
        }
        // All answers at once, to every flood, whatever the machine allows those who are not root (rmem_max):
        // SO_RCVBUFFORCE. What does not fit would look lost.
        var size: Int32 = 64 << 20
        guard setsockopt(fd, SOL_SOCKET, 33, &size, socklen_t(MemoryLayout<Int32>.size)) == 0 else {
            throw TestError.system("SO_RCVBUFFORCE")
        }
        // Until it has ended, or its test, which may have failed.
        Thread.detachNewThread { [weak self] in while let flood = self, flood.goOn() {} }
    }

    deinit { close(fd) }

    var answers: UInt32 { lock.withLock { answered } }

    func waitForProgress(_ more: UInt32 = 500) throws {
        let before = answers
        try eventually("answers past \(before) to pings, there are \(answers) of \(lock.withLock { sent }) sent") {
            answers >= before + more
        }
    }

    /// Waits for the last answers.
    func stop() -> Outcome {
        lock.withLock { isStopping = true }
        ended.wait()
        return Outcome(lost: Int(sent) - Int(answered), disorder: disorder)
    }

    /// - Returns: false at the end.
    private func goOn() -> Bool {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        inet_pton(AF_INET, self.address, &address.sin_addr)
        let (stopping, unanswered) = lock.withLock { (isStopping, sent - answered) }
        if stopping, unanswered == 0 || quietUntil.hasPassed {
            ended.signal()
            return false
        }
        // The first alone: its answer tells the host where the guest is.
        if !stopping, unanswered < (answered == 0 ? 1 : UInt32(window)) {
            let message = EchoFrame.message(sent, identifier: identifier, padding: 44)
            let count = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    sendto(fd, message, message.count, 0, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            if count == message.count { lock.withLock { sent += 1 } }
        }
        if receive(wait: unanswered == window || stopping || answered == 0) { quietUntil = .seconds(60) }
        return true
    }

    private func receive(wait: Bool) -> Bool {
        var state = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        guard poll(&state, 1, wait ? 10 : 0) == 1 else { return false }
        var buffer = [UInt8](repeating: 0, count: 2048)
        let count = recv(fd, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        guard count > 28, Array(buffer[24..<26]) == EchoFrame.bigEndian(identifier),
            let number = EchoFrame.number(ofReply: buffer[20..<count])
        else { return false }
        lock.withLock {
            if number != answered { disorder += 1 }
            answered += 1
        }
        return true
    }
}
