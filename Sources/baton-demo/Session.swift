import Foundation
import ProcessSupport

/// Set by a signal; every wait ends with it.
private nonisolated(unsafe) var interruption: Int32 = 0

/// A VMM that runs a guest, with both of its ends: the console and QMP.
final class Session {
    private(set) var process: VMMProcess
    private(set) var console: GuestConsole
    private let consoleLog: String
    private let socketPath: String
    private(set) var qmp: QMPConnection?

    /// An update is under way that may fail: the VMM may be another process from some time on, which
    /// the event CPR_ROLLED_BACK tells.
    var isRollingBack = false

    /// Is called now and then while waiting, for a sign of life.
    var onWait: (() -> Void)?

    init(arguments: [String], socketPath: String, directory: String) throws {
        self.socketPath = socketPath
        for number in [SIGINT, SIGTERM, SIGHUP] { signal(number) { interruption = $0 } }
        signal(SIGPIPE, SIG_IGN)
        process = try VMMProcess(arguments, log: "\(directory)/vmm.log")
        consoleLog = "\(directory)/console.log"
        console = GuestConsole(process: process, log: consoleLog)
    }

    /// Reads the console until `condition` holds. `what` completes "waiting for ...".
    func wait(for what: String, seconds: Double, until condition: () throws -> Bool) throws {
        let deadline = Clock.now + seconds
        while true {
            console.drain()
            if let complaint = console.complaint { throw Failure("the guest says: \(complaint)") }
            if try condition() { return }
            if interruption != 0 { throw Failure("interrupted") }
            guard process.isRunning || isRollingBack else {
                throw Failure("while waiting for \(what): \(process.epitaph())\n\(consoleTail)")
            }
            guard Clock.now < deadline else {
                throw Failure("no \(what) in \(Int(seconds)) s: \(process.epitaph())\n\(consoleTail)")
            }
            onWait?()
            var descriptors = [pollfd(fd: console.descriptor, events: Int16(POLLIN), revents: 0)]
            if let qmp, !qmp.isClosed {
                descriptors.append(pollfd(fd: qmp.descriptor, events: Int16(POLLIN), revents: 0))
            }
            if qmp == nil {
                // Nothing would wake us when the VMM listens, and meanwhile its guest stands still.
                usleep(200)
            } else {
                poll(&descriptors, nfds_t(descriptors.count), 50)
            }
        }
    }

    private var consoleTail: String {
        console.recentLines.isEmpty ? "" : "its guest last said:\n" + console.recentLines.joined(separator: "\n")
    }

    /// Connects to QMP and negotiates, as soon as the VMM listens.
    func connect() throws {
        qmp = nil
        try wait(for: "QMP greeting", seconds: 120) {
            if qmp == nil { qmp = QMPConnection(path: socketPath) }
            guard let client = qmp else { return false }
            client.onEvent = { [process] name, data in
                // The process that ran the guest is no more, or ends now.
                if name == "CPR_ROLLED_BACK", let pid = data["pid"] as? Int { process.moved(to: pid_t(pid)) }
            }
            if let message = try client.next() { return message["QMP"] != nil }
            // The socket of a process about to go: it never accepted us.
            if client.isClosed { qmp = nil }
            return false
        }
        try command("qmp_capabilities")
    }

    /// Executes a command and returns what its "return" holds.
    @discardableResult
    func command(_ name: String, _ arguments: [String: Any]? = nil, seconds: Double = 120) throws -> Any {
        guard let qmp else { throw Failure("QMP is not connected") }
        try qmp.send(name, arguments)
        var reply: [String: Any]?
        try wait(for: "reply to \(name)", seconds: seconds) {
            reply = try qmp.next()
            if reply == nil, qmp.isClosed { throw Failure("the VMM closed QMP instead of answering \(name)") }
            return reply != nil
        }
        return try Self.result(of: name, reply ?? [:])
    }

    /// The guest has gone to another process, which has a console of its own and listens at the same socket: waits for
    /// the end of the one before, and connects anew.
    func follow(_ next: VMMProcess) throws {
        try waitForEnd()
        console.drain()
        let successor = GuestConsole(process: next, log: consoleLog)
        (successor.onLine, successor.onReport, successor.onBytes) = (console.onLine, console.onReport, console.onBytes)
        (process, console) = (next, successor)
        try connect()
    }

    /// Has the VMM replace itself. The connection stays open, and the new VMM answers on it; one that
    /// does not keep connections closes it, and is connected to anew.
    func replace(with arguments: [String]) throws {
        guard let qmp else { throw Failure("QMP is not connected") }
        try qmp.send("cpr-exec", ["argv": arguments])
        try wait(for: "the VMM to replace itself", seconds: 120) {
            guard let reply = try qmp.next() else { return qmp.isClosed }
            _ = try Self.result(of: "cpr-exec", reply)
            return true
        }
        if qmp.isClosed { try connect() }
    }

    /// Has the VMM be replaced by one that fails: the guest goes on in the old one.
    /// - Returns: the error.
    func rollback(_ argv: [String], milliseconds: Int) throws -> String {
        isRollingBack = true
        defer { isRollingBack = false }
        do {
            try command("cpr-update", ["argv": argv, "preflight": false, "timeout-ms": milliseconds])
        } catch let error as Failure {
            return "\(error)"
        }
        throw Failure("a new VMM with a fault has taken the guest over: \(argv.prefix(12).joined(separator: " "))")
    }

    private static func result(of name: String, _ reply: [String: Any]) throws -> Any {
        if let error = reply["error"] as? [String: Any] {
            throw Failure("\(name) failed: \(error["desc"] ?? error)")
        }
        guard let value = reply["return"] else { throw Failure("\(name): unexpected reply \(reply)") }
        return value
    }

    /// The process that listens at the QMP socket, as the kernel recorded it.
    func peerProcess() throws -> pid_t {
        guard let qmp else { throw Failure("QMP is not connected") }
        var credentials = [pid_t](repeating: 0, count: 3)  // struct ucred: pid, uid, gid
        var size = socklen_t(MemoryLayout<pid_t>.stride * 3)
        guard getsockopt(qmp.descriptor, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0 else {
            throw Failure.system("SO_PEERCRED")
        }
        return credentials[0]
    }

    /// Waits for the VMM, told to quit, to end well.
    func waitForEnd() throws {
        let deadline = Clock.now + 120
        while process.isRunning {
            console.drain()
            guard Clock.now < deadline else { throw Failure("the VMM does not quit") }
            usleep(2000)
        }
        guard process.exitStatus == 0 else { throw Failure(process.epitaph()) }
    }

    /// The VMM's run state.
    func status() throws -> String {
        let status = try command("query-status") as? [String: Any]
        return status?["status"] as? String ?? "unknown"
    }
}

enum Clock {
    /// Seconds of the monotonic clock.
    static var now: Double {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }
}
