import Foundation
import TestSupport
import Testing

private let canTrace = (try? ChildProcess.run(["strace", "-o", "/dev/null", "true"])) != nil

/// The new VMM is killed at each system call from when it has made guest RAM writable and takes the guest, until it
/// tells the old VMM to end, as the guest is about to run. strace shows which calls these are in an update that
/// succeeds, and kills at one of them in another.
@Suite(
    "Killed after the commit", .serialized,
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: canTrace, "needs strace, and the right to trace processes"))
struct KilledAfterCommitTests {
    /// A system call of the new VMM: the how manieth of its name since the exec.
    private struct Call: CustomStringConvertible {
        let name: String
        let number: Int
        var description: String { "\(name) \(number)" }
    }

    /// What strace has written of a new VMM.
    private struct Trace {
        let lines: [String]

        init(_ path: String) throws {
            lines = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").map(String.init)
        }

        /// The report that the guest is this process' own (`UpdateStage.committed`, behind the eight bytes of the secret).
        var commit: Int? { lines.lastIndex { $0.hasPrefix("write(") && $0.contains("C\", 9") } }
        /// Guest RAM is writable.
        var writable: Int? { commit.flatMap { lines[..<$0].lastIndex { $0.hasPrefix("mprotect(") } } }
        var hasEnded: Bool { lines.last?.hasPrefix("+++") == true }

        func call(_ index: Int) -> Call {
            func name(_ line: String) -> Substring { line.prefix { $0 != "(" } }
            let own = name(lines[index])
            return Call(name: String(own), number: lines[...index].filter { name($0) == own }.count)
        }
    }

    /// Updates a guest to a VMM that runs under strace, with the same PID.
    /// - Returns: why it was refused, else `accepted`.
    private func update(_ guest: CountingGuest, options: [String] = []) -> String {
        let strace = ["strace", "-D", "-q", "-s", "200", "-o", guest.directory.file("trace")] + options
        return refusal {
            try guest.qmp.execute("cpr-update", ["argv": strace + guest.arguments, "preflight": false])
        }
    }

    /// The trace, complete.
    private func trace(_ guest: CountingGuest) throws -> Trace {
        try eventually("the trace ends") { try Trace(guest.directory.file("trace")).hasEnded }
        return try Trace(guest.directory.file("trace"))
    }

    private func calls() throws -> [Call] {
        let guest = try CountingGuest()
        let before = guest.count
        #expect(update(guest) == "accepted")
        try guest.waitForProgress(past: before)
        try guest.qmp.execute("quit")
        let trace = try trace(guest)
        let commit = try #require(trace.commit)
        let writable = try #require(trace.writable)
        return (writable + 1..<commit).map(trace.call)
    }

    @Test("The guest is not lost")
    func isNotLost() throws {
        let calls = try calls()
        var missed: [Call] = []
        for call in calls {
            let guest = try CountingGuest()
            let before = guest.count
            _ = update(guest, options: ["-e", "inject=\(call.name):signal=KILL:when=\(call.number)"])
            let trace = try trace(guest)
            if trace.commit != nil { missed.append(call) }
            #expect(throws: Never.self, "killed at \(call)") {
                let status = try guest.qmp.status()
                #expect(status == "running", "killed at \(call)")
                try guest.waitForProgress(past: before)
            }
        }
        // Every kill was made, and where it should.
        #expect(calls.count > missed.count, "none of \(calls)")
        #expect(missed.count <= calls.count / 4, "\(missed) of \(calls)")
    }
}
