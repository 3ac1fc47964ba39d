import Foundation
import TestSupport
import Testing

/// A client that does not wait for the answer to `cpr-load` before its next command. By then the guest is the new VMM's
/// for good: the old one must neither come back nor stay.
@Suite(
    "What follows cpr-load at once",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct PipelinedLoadTests {
    /// The old VMM, while the new one waits for `cpr-load`.
    private func oldVMM(_ guest: CountingGuest) throws -> pid_t {
        let pid = guest.process.pid
        let children = try String(contentsOfFile: "/proc/\(pid)/task/\(pid)/children", encoding: .utf8)
        return try #require(pid_t(children.trimmingCharacters(in: .whitespaces)), "'\(children)' is not one process")
    }

    /// Sooner than the 10 s for which an old VMM waits for its successor. Whoever has it as a child may wait for it later.
    private func awaitEnd(of pid: pid_t) throws {
        try eventually("process \(pid) has ended", by: .seconds(8)) {
            let status = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8)
            return status?.contains(") Z ") != false
        }
    }

    /// Sends commands in one write, so that they are carried out in one turn of the event loop.
    private func send(_ commands: [(String, [String: Any])], to guest: CountingGuest) throws {
        var data = Data()
        for (name, arguments) in commands {
            data += try JSONSerialization.data(withJSONObject: ["execute": name, "arguments": arguments, "id": name])
            data += Data("\n".utf8)
        }
        try guest.qmp.send(data)
    }

    /// Waits for the answer to a command, which must be no error.
    private func awaitAnswer(to name: String, of guest: CountingGuest) throws {
        while let message = try guest.qmp.receive() {
            guard message["id"] as? String == name else { continue }
            #expect(message["return"] != nil, "\(message)")
            return
        }
        Issue.record("the connection was closed before '\(name)' was answered")
    }

    private func load(_ guest: CountingGuest) -> (String, [String: Any]) {
        ("cpr-load", ["filename": guest.checkpoint, "mode": "restart"])
    }

    @Test("quit ends the VM, and does not give it back to the old VMM")
    func quit() throws {
        let guest = try CountingGuest()
        try guest.save()
        try guest.exec()
        let stopped = guest.count
        let old = try oldVMM(guest)
        try send([load(guest), ("quit", [:])], to: guest)
        #expect(try guest.process.waitForExit() == .status(0))
        try awaitEnd(of: old)
        #expect(guest.count == stopped)
    }

    @Test("stop leaves the guest paused, and the old VMM ends")
    func stop() throws {
        let guest = try CountingGuest()
        try guest.save()
        try guest.exec()
        let old = try oldVMM(guest)
        try send([load(guest), ("stop", [:])], to: guest)
        try awaitAnswer(to: "stop", of: guest)
        try awaitEnd(of: old)
        #expect(try guest.qmp.status() == "paused")
        let count = guest.count
        try guest.qmp.execute("cont")
        try guest.waitForProgress(past: count)
    }

    @Test("The next update begins with two processes, and not with three")
    func saveAndExec() throws {
        let guest = try CountingGuest()
        try guest.save()
        try guest.exec()
        let first = try oldVMM(guest)
        let exec: (String, [String: Any]) = ("cpr-exec", ["argv": guest.arguments + ["-S"]])
        try send(
            [load(guest), ("cpr-save", ["filename": guest.checkpoint, "mode": "restart"]), exec], to: guest)
        try awaitAnswer(to: "cpr-exec", of: guest)
        try awaitEnd(of: first)
        let count = guest.count
        try guest.load()
        try guest.waitForProgress(past: count)
    }
}
