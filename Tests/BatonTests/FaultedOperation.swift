import Foundation
import TestSupport

/// What is done to a VM while system calls of one of its processes fail, and how the guest goes on then, whatever came
/// of it.
enum FaultedOperation: String, CaseIterable {
    /// `cpr-update`: calls of the old VMM, in the process that executes the new one and in its child; or of the new one.
    case updateOld, updateNew
    /// `cpr-update` in the mode `transfer`: of the VMM that has the guest, or of the one that waits, from its start.
    case transferOld, transferNew
    /// The mode `reboot`: of the process that saves, or of the one that loads, from its start.
    case rebootSave, rebootLoad
    /// QEMU's three steps: of the process that saves, of the one that executes, or of the one that loads.
    case stepsSave, stepsExec, stepsNew

    var mode: String {
        switch self {
        case .updateOld, .updateNew, .stepsSave, .stepsExec, .stepsNew: "restart"
        case .transferOld, .transferNew: "transfer"
        case .rebootSave, .rebootLoad: "reboot"
        }
    }
}

/// A guest on which an operation is carried out under strace.
final class FaultedRun {
    let guest: CountingGuest
    /// What the operation's command was answered: the refusal, or "accepted".
    private(set) var answer = ""
    private let operation: FaultedOperation
    /// strace's options for the fault.
    private let options: [String]
    /// Whether faults go on until strace lets go, so that an answer may have to wait for that.
    private let isLasting: Bool
    private var attached: ChildProcess?
    /// The VMM that waits for a transfer.
    private var waiting: ChildProcess?

    private var trace: String { guest.directory.file("trace") }
    private var channel: String { guest.directory.file("cpr") }

    init(_ operation: FaultedOperation, _ options: [String], isLasting: Bool = false) throws {
        self.operation = operation
        self.options = options
        self.isLasting = isLasting
        // A tracer cannot be executed in a sandbox. Others are attached from outside.
        let executesTracer = [.updateNew, .stepsNew].contains(operation)
        guest = try CountingGuest(
            extra: ["-cpr-enable", operation.mode] + (executesTracer ? ["-sandbox", "off"] : []))
    }

    /// The lines of the trace, up to where the guest is the new VMM's for good.
    func lines() throws -> [Substring] {
        let lines = try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n")
        guard [.updateNew, .transferNew].contains(operation) else { return lines }
        // The last of the stages that a new VMM reports: a byte behind the eight of the channel's secret.
        return Array(lines.prefix { !($0.contains("write(") && $0.contains("C\", 9)")) })
    }

    /// Carries it out, and has the guest run on, here or there.
    func carryOut() throws {
        switch operation {
        case .updateOld, .updateNew: try update()
        case .transferOld, .transferNew: try transfer()
        case .rebootSave, .rebootLoad: try reboot()
        case .stepsSave, .stepsExec, .stepsNew: try steps()
        }
    }

    // MARK: strace

    /// Traces a process, which is let go of when it executes something else.
    private func attach(to pid: pid_t) throws {
        let process = try ChildProcess(["strace", "-f", "-b", "execve", "-o", trace, "-p", "\(pid)"] + options)
        try process.waitForErrors("attached")
        attached = process
    }

    /// A command that is traced from its start, by a process that is no parent of it: its PID is the one that was started.
    private func traced(_ command: [String]) -> [String] {
        ["strace", "-D", "-f", "-q", "-o", trace] + options + command
    }

    private func tracer(of pid: pid_t) -> pid_t? {
        let status = (try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix("TracerPid:") }
        return line?.split(separator: "\t").last.flatMap { pid_t($0) }.flatMap { $0 == 0 ? nil : $0 }
    }

    /// Nothing fails from here on.
    private func letGo() throws {
        if let attached {
            attached.signal(SIGINT)
            try attached.waitForExit()
        }
        attached = nil
        // The trace of a run without a fault goes on to the end.
        guard options.contains(where: { $0.hasPrefix("inject=") }) else { return }
        // A tracer that was executed as a command has all that the VMM inherits, connections too.
        for pid in try vmms() {
            guard let tracer = tracer(of: pid) else { continue }
            // A VMM blocks other signals while it executes another, and so does what it executes.
            kill(tracer, SIGKILL)
            try eventually("strace lets go of \(pid)") { self.tracer(of: pid) == nil }
        }
    }

    // MARK: Commands

    /// Has a command carried out, whose faults may last until the end of the tracing.
    private func execute(_ command: String, _ arguments: [String: Any]) throws -> String {
        do {
            try guest.qmp.executeWithoutAnswer(command, arguments)
            while true {
                let message: [String: Any]?
                do { message = try guest.qmp.receive(by: isLasting ? .seconds(4) : .patient) } catch {
                    guard isLasting else { throw error }
                    try letGo()
                    message = try guest.qmp.receive()
                }
                guard let message else { return "the connection was closed" }
                if let error = message["error"] as? [String: Any] { return error["desc"] as? String ?? "" }
                if message["return"] != nil { return "accepted" }
            }
        } catch let failure as Failure { return "no answer: \(failure)" }
    }

    private func update(_ argv: [String], _ more: [String: Any] = [:]) throws -> String {
        let arguments: [String: Any] = [
            "argv": argv, "preflight": false, "timeout-ms": 20_000, "downtime-ms": 20_000,
        ]
        return try execute("cpr-update", arguments.merging(more) { $1 })
    }

    // MARK: Operations

    private func update() throws {
        if operation == .updateOld { try attach(to: guest.process.pid) }
        answer = try update(operation == .updateNew ? traced(guest.arguments) : guest.arguments)
        try letGo()
        try settle()
    }

    private func transfer() throws {
        let command = operation == .transferNew ? traced(guest.arguments) : guest.arguments
        waiting = try CountingGuest.startWaiting(command, at: channel)
        if operation == .transferOld { try attach(to: guest.process.pid) }
        let request: [String: Any] = [
            "mode": "transfer", "channel": channel, "timeout-ms": 20_000, "downtime-ms": 20_000,
        ]
        answer = try execute("cpr-update", request)
        try letGo()
        let old = guest.process
        if answer == "accepted" {
            try old.waitForExit()
        } else {
            // Whoever was told that it is not to have the guest ends; one that was never spoken to waits on.
            try eventually("one VMM has the guest") { try vmms().count == 1 || ListeningSocket.exists(at: channel) }
            if try vmms().count > 1 {
                let second = try execute("cpr-update", request)
                guard second == "accepted" else { throw TestError("after '\(answer)', once more: \(second)") }
                try old.waitForExit()
            }
        }
        try settle()
    }

    private func reboot() throws {
        if operation == .rebootSave { try attach(to: guest.process.pid) }
        let save: [String: Any] = ["filename": guest.checkpoint, "mode": "reboot"]
        let said = try execute("cpr-save", save)
        if operation == .rebootSave {
            answer = said
            try letGo()
            try settle()
            let files = try FileManager.default.contentsOfDirectory(atPath: guest.directory.path)
                .filter { $0.hasPrefix("checkpoint") && $0 != "checkpoint" }
            guard files.isEmpty else { throw TestError("the save has left \(files)") }
        }
        guard said == "accepted" else { return try expectRefusedSave(said) }
        try guest.qmp.execute("quit")
        if operation == .rebootLoad {
            let isThere = try guest.startAgain(
                traced(guest.arguments + ["-S"]), by: isLasting ? .seconds(4) : .patient)
            answer = try isThere ? execute("cpr-load", save) : "the start failed"
            try letGo()
            if answer == "accepted" { return }
            // The warden that one has made which ended at its start has its words for a moment.
            if !guest.process.isRunning { try eventually("its warden has ended") { try vmms().isEmpty } }
            if try !vmms().isEmpty {
                try settle()
                // Loaded, and only the answer was lost; or the file loads now.
                if try guest.qmp.status() != "running" { try guest.qmp.execute("cpr-load", save) }
                return
            }
        }
        try guest.restart(["-S"])
        try guest.qmp.execute("cpr-load", save)
    }

    private func steps() throws {
        if operation == .stepsSave { try attach(to: guest.process.pid) }
        let save: [String: Any] = ["filename": guest.checkpoint, "mode": "restart"]
        let said = try execute("cpr-save", save)
        if operation == .stepsSave {
            answer = said
            try letGo()
            try settle()
        }
        guard said == "accepted" else { return try expectRefusedSave(said) }
        if operation == .stepsExec { try attach(to: guest.process.pid) }
        let argv = guest.arguments + ["-S"]
        let executed = try execute("cpr-exec", ["argv": operation == .stepsNew ? traced(argv) : argv])
        if operation == .stepsExec {
            answer = executed
            try letGo()
            // The old VMM waits for the load, too.
            if executed == "accepted" { try reconnectIfNeeded() } else { try settle() }
        }
        let loaded = try executed == "accepted" ? execute("cpr-load", save) : executed
        if operation == .stepsNew {
            answer = loaded
            try letGo()
            // A load that was refused can be tried again, and the old VMM waits for that.
            try reconnectIfNeeded()
        }
        guard loaded != "accepted", try guest.qmp.status() != "running" else { return }
        // In the old VMM, which has the guest as it was saved, or in the new one, which can try again.
        let query = try guest.qmp.execute("query-cpr") as? [String: Any]
        let isOld = query?["generation"] as? Int == 0
        try guest.qmp.execute(isOld ? "cont" : "cpr-load", isOld ? [:] : save)
    }

    /// A save that failed, of which the answer may have been lost, has the guest run on.
    private func expectRefusedSave(_ said: String) throws {
        if try guest.qmp.status() == "running" { return }
        guard said.hasPrefix("no answer") || said.hasPrefix("the connection") else {
            throw TestError("after '\(said)' the guest is \(try guest.qmp.status())")
        }
        try guest.qmp.execute("cont")
    }

    /// Finds the VMM that has the guest, by a new connection if the one before was lost.
    private func settle() throws {
        try eventually("there is one VMM, and not \((try? vmms()) ?? [])") { try vmms().count == 1 }
        try reconnectIfNeeded()
    }

    private func reconnectIfNeeded() throws {
        do { _ = try guest.qmp.status() } catch let wrong as QMPClient.WrongAnswer { throw wrong } catch {
            try guest.reconnect()
        }
    }

    // MARK: Afterwards

    /// VMMs of this guest. A placeholder has none of its arguments, and one that has ended none at all.
    private func vmms() throws -> [pid_t] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { name in
            guard let pid = pid_t(name),
                let text = try? String(contentsOfFile: "/proc/\(name)/cmdline", encoding: .utf8)
            else { return nil }
            let words = text.split(separator: "\0")
            let isOurs = words.first.map(String.init) == Products.baton && words.contains { $0.contains(guest.ramFile) }
            return isOurs ? pid : nil
        }
    }

    func descriptorCount() throws -> Int {
        let query = try guest.qmp.execute("query-cpr") as? [String: Any]
        guard let pid = query?["pid"] as? Int else { throw TestError("query-cpr has no 'pid'") }
        return try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd").count
    }

    /// One VMM runs the guest, in order, and has nothing that it should not have.
    /// - Parameter descriptors: how many it may have; any number if empty.
    func expectUnharmed(descriptors: Set<Int>) throws {
        try guest.waitForProgress(past: guest.count)
        guard try guest.qmp.status() == "running" else { throw TestError("the guest is \(try guest.qmp.status())") }
        try guest.expectRightSum()
        try guest.waitForProgress(past: guest.count)
        try eventually("there is one VMM, and not \((try? vmms()) ?? [])") { try vmms().count == 1 }
        try eventually("the VMM has \(descriptors) descriptors, and not \((try? descriptorCount()) ?? -1)") {
            try descriptors.isEmpty || descriptors.contains(descriptorCount())
        }
    }

    /// Ends the VMM, which may still be traced: its fault may be that of the answer.
    func end() throws {
        do { try guest.qmp.execute("quit") } catch is Failure {}
        try eventually("all VMMs of the guest have ended") { try vmms().isEmpty }
    }
}
