import Foundation
import TestSupport
import Testing

/// Each VMM of an update is killed or stopped at its system calls, one after the other, from its start to where the
/// guest changes hands for good. `BATON_EVERY_CALL` has every call tried, instead of some and all around the commit.
@Suite(
    "Killed at a system call", .serialized,
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: canTrace, "needs the right to trace processes"))
struct KilledAtACallTests {
    fileprivate enum Role: String { case old, new }
    fileprivate enum Action: String { case kill, stop }

    /// What the tracer says of one update.
    private struct Outcome {
        /// `done`, `late` or `ended`, see Tests/CallTracer.
        let word: Substring
        let number: Int
        /// The answer to the update; nil when the VMM has ended instead.
        let answer: String?
    }

    private static let tracer = "\(Products.directory)/call-tracer"
    private static let every = ProcessInfo.processInfo.environment["BATON_EVERY_CALL"] != nil

    /// Updates a guest, and has one VMM stopped or killed at a call.
    private func update(_ guest: CountingGuest, _ role: Role, _ action: Action, at call: Int) throws -> Outcome {
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        let pid = try #require(query["pid"] as? Int)
        let tracer = try ChildProcess([Self.tracer, "\(pid)", role.rawValue, action.rawValue, "\(call)"])
        try tracer.waitForOutput("ready")
        // Long enough for a VMM that is traced; one that is stopped is waited for that long.
        let (start, downtime) = action == .stop ? (700, 300) : (20_000, 20_000)
        let arguments: [String: Any] = [
            "argv": guest.arguments, "preflight": false, "timeout-ms": start, "downtime-ms": downtime,
        ]
        var answer: String?
        do {
            try guest.qmp.execute("cpr-update", arguments)
            answer = "accepted"
        } catch let refusal as QMPClient.Refusal {
            answer = refusal.text
        } catch { answer = nil }
        try tracer.waitForExit()
        let words = tracer.output.split(separator: "\n").last?.split(separator: " ") ?? []
        guard words.count == 2, let number = Int(words[1]) else {
            throw TestError("the tracer says '\(tracer.output)', \(tracer.errors)")
        }
        return Outcome(word: words[0], number: number, answer: answer)
    }

    /// How many calls a VMM makes up to where the guest is the new one's.
    private func length(_ role: Role) throws -> Int {
        let guest = try CountingGuest()
        let outcome = try update(guest, role, .kill, at: Int.max)
        #expect(outcome.answer == "accepted" && outcome.word == "ended")
        try guest.qmp.execute("quit")
        return outcome.number
    }

    private func step(_ length: Int, about samples: Int) -> Int { Self.every ? 1 : max(1, length / samples) }

    @Test("A new VMM that is killed at any call before it has the guest does not take it along")
    func newKilled() throws { try endNew(.kill, about: 40, last: 30) }

    @Test("A new VMM that is stopped at any call before it has the guest does not keep it")
    func newStopped() throws { try endNew(.stop, about: 4, last: 16) }

    /// The calls to try: all, or about so many, and the last ones.
    private func endNew(_ action: Action, about samples: Int, last: Int) throws {
        let length = try length(.new)
        let calls =
            Array(stride(from: 1, to: length - last, by: step(length, about: samples)))
            + Array(max(1, length - last)...length)
        var guest = try CountingGuest()
        var done = 0
        for call in calls {
            let before = guest.count
            let outcome = try update(guest, .new, action, at: call)
            if outcome.word == "done" {
                done += 1
                #expect(outcome.answer?.contains("taken back") == true, "call \(call): \(outcome)")
            } else {
                // It had the guest by then, which went well; or it was late by itself, on a busy machine.
                let isLate = action == .stop && outcome.answer?.contains(" within ") == true
                #expect(outcome.answer == "accepted" || isLate, "call \(call): \(outcome)")
            }
            try guest.waitForProgress(past: before)
            #expect(try guest.qmp.status() == "running", "call \(call): \(outcome)")
            if outcome.word != "done" { guest = try CountingGuest() }
        }
        // How often it looks for the state before it sleeps differs, so that the last calls are there in some updates only.
        #expect(done >= calls.count / 4, "only \(done) of \(calls.count)")
    }

    @Test("When the old VMM is killed at any call the new one has the guest, or ends and says why")
    func oldKilled() throws {
        // How many there are depends on how often it waits: some sixty do not.
        var done = 0
        for call in stride(from: 1, to: 1000, by: Self.every ? 1 : 5) {
            let guest = try CountingGuest()
            let before = guest.count
            let outcome = try update(guest, .old, .kill, at: call)
            if outcome.answer == "accepted" {
                try guest.waitForProgress(past: before)
                #expect(guest.process.isRunning)
                try guest.qmp.execute("quit")
                #expect(try guest.process.waitForExit() == .status(0), "call \(call): \(outcome)")
            } else {
                // The guest was the old one's, and both have ended.
                #expect(outcome.word == "done" && outcome.answer == nil, "call \(call): \(outcome)")
                #expect(try guest.process.waitForExit() != .status(0), "call \(call): \(outcome)")
                #expect(guest.process.errors.contains("given this one up, or has ended"), "\(guest.process.errors)")
            }
            if outcome.word == "ended" { break }
            done += 1
        }
        #expect(done >= 5)
    }
}

private let canTrace: Bool = {
    // A call of a process that is nobody's child.
    guard let process = try? ChildProcess(["sleep", "1000"]) else { return false }
    defer { process.signal(SIGKILL) }
    guard let tracer = try? ChildProcess(["\(Products.directory)/call-tracer", "\(process.pid)", "new", "kill", "1"])
    else { return false }
    defer { tracer.signal(SIGKILL) }
    return (try? tracer.waitForOutput("ready")) != nil
}()
