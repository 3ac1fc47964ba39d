import Foundation
import ProcessSupport

/// Replaces the VMM under a guest at work on a disk, a shared directory and the network, and looks at
/// all three from outside.
final class PeersDemonstration {
    private let session: Session
    private let arguments: [String]
    private let backEnds: BackEnds
    private let flood: PingFlood
    private let progress: Progress
    private let work = PeersWork()
    private var connections: Set<String> = []

    init(session: Session, arguments: [String], backEnds: BackEnds, flood: PingFlood, progress: Progress) {
        self.session = session
        self.arguments = arguments
        self.backEnds = backEnds
        self.flood = flood
        self.progress = progress
        session.console.onLine = { [work] in work.take($0) }
    }

    /// Waits until the guest works, and starts the flood.
    func boot(seconds: Double) throws {
        let start = Clock.now
        try session.connect()
        session.onWait = { [session, progress] in
            progress.update("booting, \(Int(Clock.now - start)) s: \(session.console.recentLines.last ?? "")")
        }
        try awaitRounds(1, seconds: seconds)
        session.onWait = { [work, progress] in
            progress.update("running: \(work.diskRounds) blocks, \(work.shareRounds) files")
        }
        try flood.keepUp()
        try awaitRounds(1)
        connections = try backEnds.connections()
        progress.say(String(format: "guest works after %.1f s", Clock.now - start))
    }

    /// An update to a VMM that cannot go on with the guest, which goes on in the old one.
    /// - Returns: the error.
    func rollback(_ argv: [String], milliseconds: Int) throws -> String {
        try flood.keepUp()
        let reason = try session.rollback(argv, milliseconds: milliseconds)
        try awaitRounds(1)
        guard try backEnds.connections() == connections else {
            throw Failure("a back end has other connections than before: \(reason)")
        }
        return reason
    }

    /// One update with the guest at work and a flood of pings under way, after which all goes on.
    /// - Parameter number: how many generations of the VMM there have been; nil where updates have failed.
    func update(number: Int?) throws {
        let pid = session.process.pid
        let before = (work.diskRounds, work.shareRounds)
        try flood.keepUp()
        try session.command("cpr-update", ["argv": arguments])
        let cpr = try session.command("query-cpr") as? [String: Any]
        guard number == nil || cpr?["generation"] as? Int == number else {
            throw Failure("the VMM has not been replaced \(number ?? 0) times: \(cpr ?? [:])")
        }
        guard session.process.isRunning, pid == session.process.pid else {
            throw Failure("the PID was \(pid) and is \(session.process.pid)")
        }
        try awaitRounds(1)
        guard try backEnds.connections() == connections else {
            throw Failure("a back end has other connections than before")
        }
        guard let number else { return }
        progress.say(
            "update \(number): PID \(pid) (same), \(session.pause() ?? "pause unknown"), disk block "
                + "\(before.0) -> \(work.diskRounds), file \(before.1) -> \(work.shareRounds), same connections")
    }

    /// Lets the flood end, and compares disk and files with what the guest has said.
    func finish(updates: Int) throws {
        try session.wait(for: "answer to the last ping", seconds: 120) { !flood.isRunning }
        try flood.judge()
        try session.command("stop")
        session.console.drain()
        let compared = try work.verify(backEnds, scratch: try TemporaryDirectory.scratch())
        try session.command("cont")
        try awaitRounds(1)
        guard try backEnds.connections() == connections else {
            throw Failure("a back end has other connections than before")
        }
        try session.command("quit")
        try session.waitForEnd()
        progress.say(
            "\(updates) updates, nothing lost: \(work.diskRounds) blocks written and read back "
                + "and \(work.shareRounds) files copied, "
                + "of which \(compared.blocks) and \(compared.files) were compared on the host, "
                + "\(flood.answered) pings, each answered once")
    }

    /// Waits until the guest has written `count` more blocks and files.
    private func awaitRounds(_ count: Int, seconds: Double = 120) throws {
        let (disk, share) = (work.diskRounds + count, work.shareRounds + count)
        try session.wait(for: "further block and file of the guest", seconds: seconds) {
            if let error = work.error { throw Failure(error) }
            return work.diskRounds >= disk && work.shareRounds >= share
        }
    }
}
