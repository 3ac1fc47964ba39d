import Foundation
import ProcessSupport

/// Replaces the VMM under a working guest, again and again, and checks each time.
final class Demonstration {
    private let session: Session
    private let guest: Guest
    private let arguments: [String]
    private let progress: Progress
    private let checker: ReportChecker

    /// `arguments` is the command line the session was started with.
    init(session: Session, guest: Guest, arguments: [String], progress: Progress) {
        self.session = session
        self.guest = guest
        self.arguments = arguments
        self.progress = progress
        checker = ReportChecker(model: guest.model)
        session.console.onReport = { [checker] in checker.check($0) }
    }

    var reportsChecked: Int { checker.checked }

    /// Waits until the guest works.
    func boot(seconds: Double) throws {
        let start = Clock.now
        let console = session.console
        session.onWait = { [progress] in
            progress.update("booting, \(Int(Clock.now - start)) s: \(console.recentLines.last ?? "")")
        }
        try session.connect()
        try session.wait(for: "report of the guest's program", seconds: seconds) { console.report != nil }
        session.onWait = { [progress] in
            progress.update("running: count \(console.report?.count ?? 0)")
        }
        try awaitReports(2)
        _ = try verifyDisk()
        progress.say(String(format: "guest works after %.1f s", Clock.now - start))
    }

    /// One update, with every check that this program knows.
    func restart(number: Int) throws {
        let pidBefore = try session.peerProcess()
        try awaitReports(2)
        let before = session.console.report

        let start = Clock.now
        let name = "baton-demo-\(number)"
        try session.command("cpr-update", ["argv": arguments + ["-name", name]])
        let status = try session.status()
        let outside = (Clock.now - start) * 1000
        guard status == "running" else { throw Failure("the VMM is \(status) after cpr-update, not running") }
        try checkReplaced(name)
        let pidAfter = try session.peerProcess()
        guard pidAfter == pidBefore, pidAfter == session.process.pid else {
            throw Failure("the PID was \(pidBefore) and is \(pidAfter)")
        }

        try awaitReports(2)
        let records = try verifyDisk()
        let disk = records.map { "disk intact (\($0) records)" } ?? "no disk"
        let pause = session.pause() ?? String(format: "pause %.1f ms (from outside)", outside)
        progress.say(
            "restart \(number): PID \(pidBefore) -> \(pidAfter) (same), \(pause), "
                + "guest count \(before?.count ?? 0) -> \(session.console.report?.count ?? 0), \(disk), memory intact")
    }

    /// Types at the guest's shell, which has to answer; its program is quiet from then on.
    func tryShell() throws {
        guard guest.hasShell else { return }
        let console = session.console
        // The sum keeps the echo of what is typed from looking like the answer.
        console.type(Array("touch /run/baton-demo.quiet; echo baton-shell-$((6 * 7))\n".utf8))
        try session.wait(for: "answer of the guest's shell", seconds: 120) {
            console.recentLines.contains { $0.contains("baton-shell-42") }
        }
        progress.say("the guest's shell answers")
    }

    /// Waits until the guest reported `count` times more, all of it right.
    private func awaitReports(_ count: Int) throws {
        let target = checker.checked + count
        try session.wait(for: "further report of the guest", seconds: 120) {
            if let error = checker.error { throw Failure(error) }
            return checker.checked >= target
        }
    }

    /// Reads the disk image with the guest stopped: between stop and cont nothing is in flight.
    private func verifyDisk() throws -> Int? {
        guard let disk = guest.disk, let model = guest.model as? DemoModel, let report = session.console.report else {
            return nil
        }
        try session.command("stop")
        let records = try disk.verify(model: model, atLeast: report.count)
        try session.command("cont")
        try awaitReports(1)
        return records
    }

    /// The process must run the new command line, in which the VM has another name.
    private func checkReplaced(_ name: String) throws {
        let path = "/proc/\(session.process.pid)/cmdline"
        let line = FileManager.default.contents(atPath: path) ?? Data()
        guard line.split(separator: 0).contains(Data(name.utf8)) else {
            throw Failure("the process still runs its old command line")
        }
    }
}

extension Session {
    /// The phases of the last update, as the VMM measured them; nil if it does not know.
    func lastUpdate() -> [String: Any]? {
        (try? command("query-cpr") as? [String: Any])?["last-update"] as? [String: Any]
    }

    /// The guest's pause as the VMM measured it, from the last instruction before to the
    /// first after, with its parts; nil if the VMM does not know.
    func pause() -> String? {
        guard let phases = lastUpdate(), let total = phases["pause-us"] as? Int else { return nil }
        let ran = (phases["ran-us"] as? Int ?? 0) > 0
        let names =
            ran
            ? ["exec-pause", "drain", "save", "wait-load", "load", "resume"]
            : ["save", "wait-exec", "exec", "start-up", "wait-load", "load", "resume"]
        let parts = names.compactMap { name in
            (phases["\(name)-us"] as? Int).map { String(format: "%@ %.1f", name as NSString, Double($0) / 1000) }
        }
        return String(format: "pause %.1f ms (%@)", Double(total) / 1000, parts.joined(separator: ", ") as NSString)
    }
}
