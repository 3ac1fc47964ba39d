import Foundation
import ProcessSupport

/// Does steps to machines until one fails, and then looks for a short list that fails in the same way.
package struct Soak {
    private let configuration: SoakMachine.Configuration
    /// Where logs and scripts of a failure go.
    private let directory: String
    private let shrinking: Shrinking
    private let interruption: Interruption
    private let say: (String) -> Void

    /// What may be spent on a shorter list.
    package struct Shrinking {
        package var tries: Int
        package var seconds: Double

        package init(tries: Int, seconds: Double) {
            self.tries = tries
            self.seconds = seconds
        }
    }

    package init(
        _ configuration: SoakMachine.Configuration, directory: String, shrinking: Shrinking,
        interruption: Interruption, say: @escaping (String) -> Void
    ) {
        self.configuration = configuration
        self.directory = directory
        self.shrinking = shrinking
        self.interruption = interruption
        self.say = say
    }

    private static func seconds(since start: ContinuousClock.Instant) -> Double {
        let (seconds, attoseconds) = start.duration(to: .now).components
        return Double(seconds) + Double(attoseconds) / 1e18
    }

    /// - Parameters:
    ///   - heading: of the scripts that are kept, a line each.
    ///   - next: the next step, by the seconds that are over; nil at the end.
    /// - Throws: what failed, and where to read about it.
    package func run(
        _ kinds: [SoakMachine.Kind], heading: [String], _ next: (_ seconds: Double) -> SoakStep?
    ) throws {
        let start = ContinuousClock.now
        var run: SoakRun? = try interruptible { try SoakRun(kinds, configuration) }
        while let step = next(Self.seconds(since: start)) {
            let begin = ContinuousClock.now
            do {
                try interruptible { try run?.perform(step) }
            } catch let failure as SoakFailure {
                let steps = run?.steps ?? []
                try keep(run, steps, failure, heading)
                run = nil
                throw Failure(try report(failure, steps, heading))
            }
            say("step \(run?.steps.count ?? 0): " + String(format: "%.1f s: ", Self.seconds(since: begin)) + "\(step)")
        }
        for line in run?.summary ?? [] { say(line) }
        say("\(run?.steps.count ?? 0) steps in \(Int(Self.seconds(since: start))) s, nothing lost")
    }

    /// A failure while the machines are being ended is none.
    @discardableResult
    private func interruptible<T>(_ body: () throws -> T) throws -> T {
        do {
            let result = try body()
            try interruption.check()
            return result
        } catch {
            try interruption.check()
            throw error
        }
    }

    // MARK: A failure

    private func keep(_ run: SoakRun?, _ steps: [SoakStep], _ failure: SoakFailure, _ heading: [String]) throws {
        say("step \(steps.count) failed: \(steps.last?.description ?? "")\n\(failure)")
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        run?.keepLogs(in: directory)
        try write("all.soak", steps, heading)
        try "\(failure)\n".write(toFile: "\(directory)/failure.txt", atomically: false, encoding: .utf8)
    }

    private func write(_ name: String, _ steps: [SoakStep], _ heading: [String]) throws {
        try SoakScript.text(steps, heading: heading).write(
            toFile: "\(directory)/\(name)", atomically: false, encoding: .utf8)
    }

    /// Looks for a short script.
    /// - Returns: what failed, and where to read about it.
    private func report(_ failure: SoakFailure, _ steps: [SoakStep], _ heading: [String]) throws -> String {
        let (shortest, tries) = try shorten(steps, failure)
        try interruption.check()
        let found = shortest.count < steps.count
        try write("shortest.soak", shortest, heading + ["fails with: \(failure.check)"])
        let list = shortest.count <= 12 ? ":\n" + SoakScript.text(shortest) : "\n"
        return "step \(steps.count) failed: \(failure)\n"
            + (found ? "the shortest list that was found" : "no shorter list failed in \(tries) tries")
            + ": \(shortest.count) of \(steps.count) steps" + list
            + "again: baton-demo soak --script \(directory)/shortest.soak\nlogs: \(directory)"
    }

    private func shorten(_ steps: [SoakStep], _ failure: SoakFailure) throws -> ([SoakStep], tries: Int) {
        let start = ContinuousClock.now
        var shrinker = Shrinker<SoakStep>(
            mayGoOn: { tries in
                tries < shrinking.tries && Self.seconds(since: start) < shrinking.seconds && interruption.signal == nil
            },
            fails: { part in
                let found = outcome(of: part)
                say("\(part.count) of \(steps.count) steps: \(found.map { "\($0.check) failed" } ?? "nothing failed")")
                return found?.check == failure.check
            })
        let machine = steps.last?.machine
        let guesses = [1, 2, 4, 8].map { Array(steps.suffix($0)) } + [steps.filter { $0.machine == machine }]
        return (try shrinker.shortest(of: steps, guesses: guesses), shrinker.tries)
    }

    /// Does steps to machines of their own. That these do not start is a failure of another kind.
    private func outcome(of steps: [SoakStep]) -> SoakFailure? {
        do {
            let run = try SoakRun(for: steps, configuration)
            for step in steps { try run.perform(step) }
            return nil
        } catch let failure as SoakFailure { return failure } catch {
            return SoakFailure(check: "start", text: "\(error)")
        }
    }
}
