import Foundation
import ProcessSupport
import Soak

/// Replaces the VMM every second, for a long time, now and then by one that has a fault; at the end
/// nothing may be lost, and the VMM may have grown by nothing.
struct Endurance {
    private let demonstration: PeersDemonstration
    private let session: Session
    private let arguments: [String]
    private let faults: Int
    private let progress: Progress
    private let seed: UInt64
    private var random: SeededGenerator
    private var outcomes: [SuccessorFault: Int] = [:]
    private var updates = 0
    private var rollbacks = 0

    init(
        _ demonstration: PeersDemonstration, session: Session, arguments: [String], faults: Int, seed: UInt64,
        progress: Progress
    ) {
        self.demonstration = demonstration
        self.session = session
        self.arguments = arguments
        self.faults = faults
        self.seed = seed
        self.progress = progress
        random = SeededGenerator(seed: seed)
    }

    /// - Parameter seconds: how long; nil for a number of updates.
    mutating func run(seconds: Double?, updates count: Int) throws {
        progress.say("an update every second, one in \(faults) with a fault in the new VMM, seed \(seed)")
        let start = Clock.now
        var before: Footprint?
        while seconds.map({ Clock.now - start < $0 }) ?? (updates + rollbacks < count) {
            let next = Clock.now + 1
            try step()
            // The first ones fill caches.
            if updates + rollbacks == 20 { before = try Footprint(session.process.pid) }
            if (updates + rollbacks) % 100 == 0 {
                progress.say(
                    "\(Int(Clock.now - start)) s: \(updates) updates, \(rollbacks) of others taken back, "
                        + "\(try Footprint(session.process.pid)), last pause \(session.pause() ?? "unknown")")
            }
            try session.wait(for: "the next second", seconds: 60) { Clock.now >= next }
        }
        if let before {
            // The last one's old VMM ends beside the guest, and is waited for now and then.
            try session.wait(for: "the end of what the last update has left", seconds: 30) {
                try Footprint(session.process.pid).children == before.children
            }
            let after = try Footprint(session.process.pid)
            progress.say("at first \(before), in the end \(after)")
            guard after.descriptors == before.descriptors, after.threads == before.threads,
                after.children == before.children
            else { throw Failure("the VMM has grown: \(before), now \(after)") }
        }
        let list = outcomes.map { "\($0.key.rawValue) \($0.value)" }.sorted().joined(separator: ", ")
        progress.say("faults of new VMMs: \(list)")
        try demonstration.finish(updates: updates)
    }

    private mutating func step() throws {
        guard faults > 0, Int.random(in: 0..<faults, using: &random) == 0,
            let fault = SuccessorFault.possible.randomElement(using: &random)
        else {
            updates += 1
            return try demonstration.update(number: nil)
        }
        rollbacks += 1
        outcomes[fault, default: 0] += 1
        let command = fault.command(arguments, using: &random)
        let reason = try demonstration.rollback(command, milliseconds: fault.milliseconds)
        progress.say("\(updates + rollbacks): \(fault.rawValue): \(reason.prefix(160))")
    }

    /// What a process has that must not grow.
    private struct Footprint: CustomStringConvertible {
        let descriptors: Int
        let threads: Int
        let children: Int
        /// Memory of its own, guest RAM not among it.
        let kilobytes: Int

        init(_ pid: pid_t) throws {
            descriptors = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd").count
            threads = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task").count
            children = try ProcFile.children(of: pid).count
            let status = try String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8)
            let line = status.split(separator: "\n").first { $0.hasPrefix("RssAnon:") }
            kilobytes = line.flatMap { Int($0.split(separator: " ").dropFirst().first ?? "") } ?? 0
        }

        var description: String {
            "\(descriptors) descriptors, \(threads) threads, \(children) children, \(kilobytes) kB of its own"
        }
    }
}
