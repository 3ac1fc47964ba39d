import Foundation
import ProcessSupport

/// A VMM under a counting guest whose counter this process watches in the
/// guest's RAM: the guest's pauses, as seen from outside of the VMM.
final class PauseProbe {
    let page: CounterPage
    private(set) var process: VMMProcess
    private var socketPath: String
    private(set) var client: QMPConnection
    /// When the last command of the last pause was answered, and the counter then.
    private var answered = (time: 0.0, count: UInt64(0))

    /// Starts `arguments`, whose guest counts in `page`, and connects to its QMP socket.
    init(_ arguments: [String], page: CounterPage, socketPath: String, log: String) throws {
        signal(SIGPIPE, SIG_IGN)
        self.page = page
        self.socketPath = socketPath
        process = try VMMProcess(arguments, log: log)
        client = try Self.connect(socketPath, process)
        followRollbacks()
        try wait("the guest to count") { page.count > 0 }
    }

    private static func connect(_ path: String, _ process: VMMProcess) throws -> QMPConnection {
        let deadline = Clock.now + 30
        while process.isRunning, Clock.now < deadline {
            if let client = QMPConnection(path: path) {
                while !client.isClosed, Clock.now < deadline {
                    guard try client.next() != nil else {
                        usleep(100)
                        continue
                    }
                    try client.send("qmp_capabilities")
                    while !client.isClosed, Clock.now < deadline {
                        if try client.next() != nil { return client }
                        usleep(100)
                    }
                }
            }
            usleep(1000)
        }
        throw Failure("no QMP on \(path): \(process.epitaph())")
    }

    /// A guest that was taken back is another process'.
    private func followRollbacks() {
        client.onEvent = { [unowned self] name, data in
            if name == "CPR_ROLLED_BACK", let pid = data["pid"] as? Int { process.moved(to: pid_t(pid)) }
        }
    }

    /// Connects again, to a process that does not keep connections.
    func reconnect() throws {
        client = try Self.connect(socketPath, process)
        followRollbacks()
    }

    /// The guest is in another process now, which somebody has started.
    /// - Parameter socketPath: where that listens, if not where the one before has.
    func goesOn(in next: VMMProcess, socketPath: String? = nil) throws {
        try wait("the end of the process before") { !process.isRunning }
        process = next
        if let socketPath { self.socketPath = socketPath }
        try reconnect()
    }

    func wait(_ what: String, _ condition: () throws -> Bool) throws {
        let deadline = Clock.now + 30
        while try !condition() {
            guard Clock.now < deadline else {
                throw Failure("waiting for \(what): \(process.epitaph())")
            }
            usleep(500)
        }
    }

    /// Executes a command, while nothing is measured.
    @discardableResult
    func command(_ name: String, _ arguments: [String: Any]? = nil) throws -> Any {
        try client.send(name, arguments)
        return try reply(to: name)
    }

    /// Names a descriptor in the VMM, which gets a copy of it.
    func pass(_ descriptor: Int32, as name: String) throws {
        try client.send("getfd", ["fdname": name], passing: descriptor)
        try reply(to: "getfd")
    }

    @discardableResult
    private func reply(to name: String) throws -> Any {
        var reply: [String: Any]?
        try wait("the reply to \(name)") {
            reply = try client.next()
            return reply != nil
        }
        guard let value = reply?["return"] else { throw Failure("\(name): \(reply?["error"] ?? "no reply")") }
        return value
    }

    /// Sends commands, each once the one before is answered, and watches the counter meanwhile.
    /// - Parameters:
    ///   - replaces: the last one's connection is closed instead of answered.
    ///   - event: that comes after the last one's answer, and before the guest goes on.
    /// - Returns: the longest time, in ms, that the counter stood still.
    func pause(_ commands: [Data], replaces: Bool = false, until event: String? = nil) throws -> Double {
        try awaitOldVMM()
        try awaitRounds(2)
        let rate = rate()
        var hasCome = false
        if let event { client.onEvent = { name, _ in hasCome = hasCome || name == event } }
        defer { followRollbacks() }
        var last = page.count, lastChange = Clock.now, longest = 0.0
        let deadline = lastChange + 30
        func sample() {
            let count = page.count, now = Clock.now
            guard count != last else { return }
            // What it has counted since, it did not stand still: this process, too, waits for a processor.
            longest = max(longest, now - lastChange - Double(count - last) / rate)
            (last, lastChange) = (count, now)
        }
        for (index, message) in commands.enumerated() {
            try client.send(message)
            var isAnswered = false
            while !isAnswered {
                sample()
                if let reply = try client.next() {
                    guard reply["return"] != nil else { throw Failure("\(reply["error"] ?? reply)") }
                    isAnswered = !replaces || index < commands.count - 1
                    if isAnswered { answered = (Clock.now, page.count) }
                } else if client.isClosed {
                    guard replaces else { throw Failure("QMP was closed: \(process.epitaph())") }
                    isAnswered = true
                }
                guard Clock.now < deadline else { throw Failure(process.epitaph()) }
                // Not all the time: the VMM needs the machine's cores.
                usleep(10)
            }
        }
        if event != nil {
            while !hasCome {
                sample()
                _ = try client.next()
                guard process.isRunning, !client.isClosed, Clock.now < deadline else {
                    throw Failure("no event \(event ?? ""): \(process.epitaph())")
                }
                usleep(10)
            }
        }
        // Until the guest has gone on for a while: the pause is over.
        let seen = page.count, end = Clock.now + 0.005
        while page.count == seen || Clock.now < end {
            sample()
            // That process may have ended: the guest may be another's.
            guard Clock.now < deadline else { throw Failure("the guest stands still: \(process.epitaph())") }
            usleep(10)
        }
        sample()
        return longest * 1000
    }

    /// Sends commands, each once the one before is answered, and has the guest measure its own gaps meanwhile. This
    /// process sleeps, so that it takes no processor.
    /// - Parameter isRefused: the last one's answer is an error.
    /// - Returns: the longest gap, in ms.
    func gap(_ commands: [Data], isRefused: Bool = false) throws -> Double {
        try awaitOldVMM()
        try awaitRounds(2)
        page.measuresGaps = true
        defer { page.measuresGaps = false }
        try goOn()
        page.longestGap = 0
        for (index, message) in commands.enumerated() {
            try client.send(message)
            guard let answer = try client.await(Clock.now + 30) else {
                throw Failure("no answer: \(process.epitaph())")
            }
            guard (answer["return"] == nil) == (isRefused && index == commands.count - 1) else {
                throw Failure("\(answer["error"] ?? answer)")
            }
        }
        try goOn()
        return page.longestGap
    }

    /// The longest gap, in ms, that the guest sees in so many seconds of nothing.
    func gap(during seconds: Double) throws -> Double {
        page.measuresGaps = true
        defer { page.measuresGaps = false }
        try goOn()
        page.longestGap = 0
        usleep(UInt32(seconds * 1e6))
        return page.longestGap
    }

    /// How long after the command `stop` is sent the guest makes its last step, by its time-stamp counter, in ms. The
    /// guest goes on then.
    func stopLatency() throws -> Double {
        let message = try QMPConnection.encode("stop", nil)
        let both = page.simultaneous()
        let sent = Clock.now
        try client.send(message)
        try reply(to: "stop")
        let last = page.timeStamp
        try command("cont")
        try goOn()
        return Double(last &- both.ticks) / page.ticksPerMillisecond - (sent - both.time) * 1000
    }

    /// Waits for the end of the VMM before, which gives its memory back beside the guest. Else an update that follows at
    /// once is measured with what the last one has left to do.
    private func awaitOldVMM() throws {
        try wait("the end of the VMM before") {
            try ProcFile.children(of: process.pid).isEmpty
        }
    }

    /// Waits until the guest has used its memory so often, if it is to use any.
    private func awaitRounds(_ count: UInt64) throws {
        guard let begin = page.rounds else { return }
        try wait("the guest to use its memory") { (page.rounds ?? 0) >= begin + count }
    }

    /// Waits until the guest has counted for some ms.
    private func goOn() throws {
        let seen = page.count
        try wait("the guest to count") { page.count != seen }
        usleep(5000)
    }

    /// Counts a second, of a guest that nothing holds up.
    private func rate() -> Double {
        (0..<10).map { _ in
            let begin = (time: Clock.now, count: page.count)
            usleep(2000)
            return Double(page.count - begin.count) / (Clock.now - begin.time)
        }.max() ?? 1
    }

    /// What the VMM says of its last update: the guest's two pauses, in ms.
    func ownFigures() throws -> (exec: Double, hands: Double) {
        let phases = try phases()
        return ((phases["exec-pause"] ?? 0) / 1000, (phases["pause"] ?? 0) / 1000)
    }

    /// What the VMM says of its last update: all figures in microseconds, by their names without `-us`.
    func phases() throws -> [String: Double] {
        let cpr = try command("query-cpr") as? [String: Any]
        let update = cpr?["last-update"] as? [String: Any] ?? [:]
        return update.reduce(into: [:]) { phases, member in
            guard member.key.hasSuffix("-us"), let value = member.value as? Int else { return }
            phases[String(member.key.dropLast(3))] = Double(value)
        }
    }

    /// - Returns: the guest's work in the second after the commands as a part of that in the second before, in percent.
    func work(_ commands: [Data]) throws -> Double {
        // All of its memory is mapped again then.
        try awaitRounds(3)
        let begin = (time: Clock.now, count: page.count)
        usleep(1_000_000)
        let before = Double(page.count - begin.count) / (Clock.now - begin.time)
        _ = try pause(commands)
        usleep(UInt32(max(0, answered.time + 1 - Clock.now) * 1e6))
        let after = Double(page.count - answered.count) / (Clock.now - answered.time)
        return after / before * 100
    }
}
