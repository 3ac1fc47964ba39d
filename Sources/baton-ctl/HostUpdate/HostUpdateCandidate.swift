import BatonRuntime
import Foundation

/// A VM that is to come through an update of the host. Used by one thread at a time.
final class HostUpdateCandidate: @unchecked Sendable {
    let machine: Machine
    /// What has become of it, in a word or two.
    private(set) var result = "not tried"
    /// Why it would not come through, or has not been saved.
    private(set) var failure: String?
    /// Microseconds that the save took.
    private(set) var savedIn: Int64?
    /// Whether its guest may stand still, saved, by this program's will.
    private(set) var isStopped = false

    private let milliseconds: Int64
    private var monitor: MonitorConnection?
    /// By which it is to be saved.
    private var mode: String?

    /// - Parameter milliseconds: within which it must answer.
    init(_ machine: Machine, milliseconds: Int64) {
        self.machine = machine
        self.milliseconds = milliseconds
    }

    func attempt(_ step: (HostUpdateCandidate) throws -> Void) {
        do { try step(self) } catch {
            failure = failure ?? Complaint.text(error) ?? "\(error)"
            if result == "not tried" || !isStopped { result = "FAILED" }
        }
    }

    private func connection() throws -> MonitorConnection {
        if let monitor { return monitor }
        let new = try machine.connect(milliseconds: milliseconds)
        new.answerLimit = milliseconds * 1_000_000
        monitor = new
        return new
    }

    /// - Throws: why it would not come through.
    func check() throws {
        let monitor = try connection()
        let modes = try monitor.execute("query-cpr").objectValue?["modes"]?.arrayValue ?? []
        let fitting = modes.compactMap(\.objectValue).filter { $0["survives-host-update"]?.boolValue == true }
        guard let mode = fitting.first, let name = mode["name"]?.stringValue else {
            throw VMMError(
                "no mode is enabled that keeps a guest while the host's kernel is replaced",
                hint: "Start it with -cpr-enable liveupdate; a VM with -cpr-enable restart can be given that by "
                    + "'baton-ctl update' with a new command line.")
        }
        if let blocker = mode["blockers"]?.arrayValue?.first?.stringValue { throw VMMError(blocker) }
        let status = try monitor.execute("query-status").objectValue
        guard status?["status"]?.stringValue != "save-vm" else {
            throw VMMError(
                "it has been saved already",
                hint: "Execute the new kernel, or have the VM go on by 'baton-ctl host-update --undo'.")
        }
        self.mode = name
        result = "would come through"
    }

    /// - Throws: why it has not been saved; its guest may still be by and by, unless `goOn` follows.
    func save(to records: String, by deadline: Int64) throws {
        guard let mode else { return }
        let monitor = try connection(), start = EventLoop.now
        result = "not saved"
        isStopped = true
        monitor.answerLimit = max(1, deadline - start)
        defer { monitor.answerLimit = milliseconds * 1_000_000 }
        let name = machine.name.split(separator: "/").joined(separator: "-")
        do {
            try monitor.save(to: "\(records)/\(name).checkpoint", mode: mode)
        } catch let error as MonitorConnection.Late {
            // The command will be carried out, and so has to be taken back by the next one.
            throw VMMError("it was not saved within the limit", hint: error.error.message)
        } catch {
            isStopped = false
            throw error
        }
        savedIn = (EventLoop.now - start) / 1000
        result = "saved"
    }

    /// Has its guest go on, if it ran when it was saved, and else be as it was.
    func goOn() throws {
        let monitor = try connection()
        let before = try monitor.execute("query-cpr").objectValue?["saved-run-state"]?.stringValue
        savedIn = nil
        guard let before else {
            // Its save has failed, or was none of this program's.
            if failure == nil { result = "was not prepared" }
            return
        }
        try monitor.execute(before == "running" ? "cont" : "migrate_cancel")
        let status = try monitor.execute("query-status").objectValue?["status"]?.stringValue
        guard status != "save-vm" else {
            // Of a version that can only have it run.
            throw VMMError(
                "it is still saved, as it was \(before) before, and its VMM cannot have it be that again",
                hint: "'cont' and 'stop' have it run for a moment.")
        }
        isStopped = false
        if failure == nil { result = before == "running" ? "goes on" : "is \(before) again" }
    }
}
