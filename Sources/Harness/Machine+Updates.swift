import Foundation
import ProcessSupport

extension Machine {
    /// Carries out `body`, which may end the connection of a mode that does
    /// not promise to keep any.
    private func reconnecting(_ body: () throws -> Void) throws {
        do {
            try body()
        } catch let refusal as QMPClient.Refusal {
            throw refusal
        } catch {
            guard !keepsConnections else { throw error }
            try reconnect()
        }
    }

    /// `cpr-update`.
    /// - Parameters:
    ///   - timeout: for the new VMM's start, in milliseconds.
    ///   - downtime: for the guest's pause, in milliseconds; the VMM's own limit if nil.
    /// - Returns: why it was refused or taken back; nil when it was done.
    package func update(
        _ argv: [String]? = nil, timeout: Int = 10_000, downtime: Int? = nil, preflight: Bool = false
    ) throws -> String? {
        var request: [String: Any] = [
            "argv": argv ?? arguments, "mode": mode, "timeout-ms": timeout, "preflight": preflight,
        ]
        request["downtime-ms"] = downtime
        do {
            try reconnecting { try execute("cpr-update", request) }
            return nil
        } catch let refusal as QMPClient.Refusal {
            try require(!refusal.text.isEmpty, "cpr-update failed without a reason")
            return refusal.text
        }
    }

    package func save(to path: String? = nil) throws {
        try execute("cpr-save", ["filename": path ?? checkpoint, "mode": mode])
        let status = try status()
        try require(status == "save-vm", "after cpr-save the run state is '\(status)' and not 'save-vm'")
    }

    package func exec(_ argv: [String]? = nil) throws {
        try reconnecting { try execute("cpr-exec", ["argv": argv ?? arguments + ["-S"]]) }
    }

    package func load(from path: String? = nil) throws {
        try execute("cpr-load", ["filename": path ?? checkpoint, "mode": mode])
    }

    /// A VMM that waits for the guest at `channel`.
    package func startWaiting(_ arguments: [String]? = nil) throws -> ChildProcess {
        let new = try start(arguments: (arguments ?? self.arguments) + ["-incoming", incoming])
        try eventually("the new VMM waits at its channel; \(new.report)", by: configuration.startDeadline) {
            try !new.isRunning || ListeningSocket.exists(at: self.channel)
        }
        return new
    }

    private var incoming: String {
        #"{"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": "\#(channel)"}}"#
    }

    /// `cpr-update` with a channel.
    /// - Parameter downtime: for the guest's pause, in milliseconds; the VMM's own limit if nil.
    /// - Returns: why it was refused or taken back; nil when it was done.
    package func transfer(timeout: Int = 10_000, downtime: Int? = nil) throws -> String? {
        var request: [String: Any] = ["channel": channel, "mode": mode, "timeout-ms": timeout]
        request["downtime-ms"] = downtime
        return try refusal("cpr-update", request)
    }

    private func goToWaiting(reconnectsMonitor: Bool) throws {
        let new = try startWaiting()
        if let reason = try transfer() { throw Failure("cpr-update failed: \(reason)") }
        let exit = try process.waitForExit(by: configuration.deadline)
        try require(exit == .status(0), "the old VMM ended with \(exit)")
        try goOn(with: new, reconnectsMonitor: reconnectsMonitor)
    }

    /// Takes the guest to another process.
    /// - Parameter reconnectsMonitor: where the human monitor's connection ends, whether there is to be another.
    func go(_ way: Harness.Way, reconnectsMonitor: Bool = true) throws {
        switch way {
        case .oneStep:
            if let reason = try update() { throw Failure("cpr-update failed: \(reason)") }
        case .threeSteps:
            try save()
            try exec()
            try load()
        case .newProcess:
            try save()
            try quit()
            try startAnew()
            try load()
        case .transfer: try goToWaiting(reconnectsMonitor: reconnectsMonitor)
        }
    }

    /// `quit`, to the end of the process.
    func quit() throws {
        try execute("quit")
        let exit = try process.waitForExit(by: configuration.deadline)
        try require(exit == .status(0), "after quit the VMM ended with \(exit)")
    }

    // MARK: Checks of the guest

    /// The guest runs, has got past `count`, in order, and has found nothing
    /// changed.
    /// - Parameter before: is checked first, when the run state is known.
    package func expectProgress(past count: UInt64, before check: () throws -> Void = {}) throws {
        let found = try status()
        try require(found == "running", "the run state is '\(found)' and not 'running'")
        try check()
        try eventually("the guest counts on from \(count)", by: configuration.deadline) {
            try self.expectNothingFound()
            // A guest whose lines nobody takes waits for that.
            try self.serial?.read()
            return try self.count() > count
        }
        try expectOrder()
    }

    /// The checksum that goes with every count, with the guest stopped for a
    /// moment.
    private func expectOrder() throws {
        let count = try stop()
        let sum = try word(guest.page + (count & 1 == 0 ? 16 : 24))
        try require(
            sum == Counting.checksum(after: count),
            "the guest's checksum is not that of its count \(count): steps were lost")
        try execute("cont")
    }

    /// Lets the guest look after its machine, which it does once a line.
    package func expectLooksFine() throws {
        let line = try word(guest.page + 40)
        try eventually("the guest writes two more lines", by: configuration.deadline) {
            try self.expectNothingFound()
            try self.serial?.read()
            return try self.word(guest.page + 40) >= line + 2
        }
    }

    package func expectNothingFound() throws {
        let finding = try word(guest.page + 32)
        guard finding != 0 else { return }
        let text = Finding(rawValue: finding)?.text ?? "something (\(finding))"
        throw Failure("the guest found changed: \(text)")
    }

    /// The guest stands still.
    package func expectStopped(at count: UInt64, _ state: String) throws {
        let found = try status()
        try require(found == state, "the run state is '\(found)' and not '\(state)'")
        // Two answers later a guest that runs would have got on.
        for _ in 0..<2 { _ = try status() }
        let now = try self.count()
        try require(now == count, "the guest stood at \(count) and is at \(now)")
    }

    // MARK: Checks of what surrounds it

    /// Every client is connected and answered.
    package func expectConnections() throws {
        try serial?.exchange(Array("HARNESS".utf8).filter { (71...90).contains($0) }, by: configuration.deadline)
        try monitor?.send("info status\n")
        let answer = try monitor?.expect("(baton) ") ?? ""
        try require(answer.contains("VM status: running"), "the human monitor said '\(answer)'")
    }

    /// Exactly one process is left, it is the one that the PID file names, and
    /// it has the guest; beside it only its placeholder, which is the first process.
    func expectOneProcess() throws -> pid_t {
        let pid = try statedPID()
        var expected: Set = [pid]
        if let placeholder = try query("query-cpr")["placeholder-pid"] as? Int {
            try require(placeholder == Int(process.pid), "the placeholder is \(placeholder), not \(process.pid)")
            expected.insert(process.pid)
        }
        try eventually(
            "of the processes \(processes()) only \(expected) are left; the PID file names \(pid)",
            by: configuration.deadline
        ) {
            Set(self.processes()) == expected
        }
        return pid
    }

    /// Open descriptors of the VMM by what they are, and how many of each.
    package func descriptors() throws -> [String: Int] {
        // An answer first: what was in hand is done then.
        _ = try status()
        let names = try Descriptors.links(of: try statedPID()).values.map { link in
            // Sockets, pipes and inotify have numbers of their own.
            link.hasPrefix("/") ? link : String(link.prefix { $0 != "[" })
        }
        return Dictionary(names.map { ($0, 1) }, uniquingKeysWith: +)
    }

    /// Waits until the descriptors are those again.
    package func expectDescriptors(_ expected: [String: Int]) throws {
        var found: [String: Int] = [:]
        do {
            try eventually("", by: configuration.deadline) {
                found = try self.descriptors()
                return found == expected
            }
        } catch {
            let more = found.filter { $0.value > expected[$0.key] ?? 0 }.keys.sorted()
            let fewer = expected.filter { $0.value > found[$0.key] ?? 0 }.keys.sorted()
            throw Failure("open descriptors: too many of \(more), too few of \(fewer)")
        }
    }
}
