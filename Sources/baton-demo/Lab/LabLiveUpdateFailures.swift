import Foundation
import ProcessSupport

/// What goes wrong with mode liveupdate on a real orchestrator, with small guests that count: each time the guest goes
/// on, or it is refused with the reason and can be had by another try.
struct LabLiveUpdateFailures {
    private let vmm: String
    private let image: String
    private let shared: String
    private let directory: TemporaryDirectory

    init(_ context: LabCase.Context, directory shared: String) throws {
        vmm = context.vmm
        self.shared = shared
        // Of this Linux only.
        directory = try TemporaryDirectory.scratch()
        image = "\(shared)/\(Self.guest)"
    }

    private static let guest = "counter.bin"
    private static let halfSession = "half-session"

    /// Makes what is needed, outside of the lab.
    static func prepare(directory: TemporaryDirectory) throws {
        try GuestBuilder().build(.counter, to: directory.file(guest))
        try GuestBuilder().buildHalfSession(to: directory.file(halfSession))
    }

    private struct VM {
        let session: Session
        let name: String

        func refusal(_ command: String, _ arguments: [String: Any]) throws -> String {
            do { try session.command(command, arguments, seconds: 120) } catch { return "\(error)" }
            throw Failure("'\(name)': \(command) \(arguments) was not refused")
        }

        func awaitProgress() throws {
            let before = session.console.report?.count ?? 0
            try session.wait(for: "progress of '\(name)'", seconds: 120) {
                (session.console.report?.count ?? 0) > before
            }
        }

        func end() throws {
            try session.command("quit")
            try session.waitForEnd()
        }
    }

    private func arguments(
        _ name: String, socket: String, memory: Int = 16, huge: Bool = false, modes: String = "liveupdate"
    ) -> [String] {
        [
            vmm, "-name", name, "-machine", "virt,memory-backend=ram", "-bios", "none", "-m", "\(memory)M",
            "-object", "memory-backend-memfd,id=ram,size=\(memory)M,share=on\(huge ? ",hugetlb=on" : "")",
            "-kernel", image, "-nographic", "-serial", "stdio", "-monitor", "none", "-cpr-enable", modes,
            "-qmp", "unix:\(socket),server=on,wait=off", "-sandbox", "on,paths=\(shared)",
        ]
    }

    /// - Parameter other: in the names of files, for a second VM of a name.
    private func start(
        _ name: String, other: String? = nil, memory: Int = 16, huge: Bool = false, modes: String = "liveupdate",
        paused: Bool = false
    ) throws -> VM {
        let socket = directory.file(other ?? name)
        let session = try Session(
            arguments: arguments(name, socket: socket, memory: memory, huge: huge, modes: modes)
                + (paused ? ["-S"] : []),
            socketPath: socket, directory: directory.path)
        try session.connect()
        let vm = VM(session: session, name: other ?? name)
        if !paused { try vm.awaitProgress() }
        return vm
    }

    private func file(_ name: String) -> [String: Any] { ["filename": "\(shared)/\(name)", "mode": "liveupdate"] }

    private func expect(_ text: String, _ part: String) throws {
        guard text.contains(part) else { throw Failure("'\(text)' does not say '\(part)'") }
    }

    // MARK: In the Linux that saves

    /// Refusals, after which the guest goes on here.
    func beforeAnyKexec() throws {
        let vm = try start("same")
        // A kexec that does not happen: the guest goes on, and the session is dropped, so that there can be another.
        for _ in 0..<2 {
            try vm.session.command("cpr-save", file("same"))
            try vm.session.command("cont")
            try vm.awaitProgress()
        }
        // A file that is not the sandbox' to write: nothing is kept of the guest.
        let elsewhere: [String: Any] = ["filename": directory.file("checkpoint"), "mode": "liveupdate"]
        try expect(try vm.refusal("cpr-save", elsewhere), "-sandbox paths=\(directory.path)")
        try vm.awaitProgress()
        try vm.session.command("cpr-save", file("same"))
        let twin = try start("same", other: "twin")
        try expect(try twin.refusal("cpr-save", file("twin")), "exists already")
        try twin.awaitProgress()
        for one in [twin, vm] { try one.end() }
        try Data("16\n".utf8).write(to: URL(fileURLWithPath: "/proc/sys/vm/nr_hugepages"))
        let huge = try start("huge", huge: true)
        try expect(try huge.refusal("cpr-save", file("huge")), "huge pages")
        try huge.awaitProgress()
        try huge.end()
        try Data("0\n".utf8).write(to: URL(fileURLWithPath: "/proc/sys/vm/nr_hugepages"))
        try enableLate()
    }

    /// The mode comes with an update, to a VM whose sandbox was put on without it.
    private func enableLate() throws {
        let late = try start("late", modes: "restart")
        try expect(try late.refusal("cpr-save", file("late")), "-cpr-enable")
        let next = arguments("late", socket: directory.file("late"), modes: "restart,liveupdate")
        try late.session.command("cpr-update", ["argv": next, "timeout-ms": 100_000, "downtime-ms": 20_000])
        try late.awaitProgress()
        try late.session.command("cpr-save", file("late"))
        try late.session.command("cont")
        try late.awaitProgress()
        try late.end()
    }

    /// Guests that are to be found in the next Linux.
    /// - Returns: what holds their VMMs, whose end would be that of their sessions.
    func beforeLastKexec() throws -> [AnyObject] {
        let vms = try ["other", "loads-itself"].map { name in
            let vm = try start(name)
            try vm.session.command("cpr-save", file(name))
            return vm
        }
        let old = try start("old")
        try old.session.command("cpr-save", file("old-before"))
        try old.session.command("cont")
        try old.awaitProgress()
        try old.session.command("cpr-save", file("old"))
        let half = try BackgroundProcess(["\(shared)/\(Self.halfSession)", "baton-half"])
        try old.session.wait(for: "half a session", seconds: 60) {
            guard half.isRunning else { throw Failure("half a session: \(half.said)") }
            return half.said.contains("kept")
        }
        return (vms + [old]).map(\.session) + [half]
    }

    // MARK: In the Linux that loads

    /// - Returns: what was seen.
    func afterLastKexec() throws -> String {
        // A VM that nobody saved.
        let nobody = try start("nobody", paused: true)
        try expect(try nobody.refusal("cpr-load", file("other")), "none of this VM was found")
        try nobody.end()
        // The guest of another VM; then the right one, which is there still.
        do {
            _ = try start("other", memory: 32, paused: true)
            throw Failure("a VM of another size was not refused")
        } catch {
            try expect("\(error)", "16777216")
        }
        // Half of it.
        do {
            _ = try start("half", paused: true)
            throw Failure("half a session was not refused")
        } catch {
            try expect("\(error)", "lacks the guest's state")
        }
        // A VMM that ends before it has loaded.
        let killed = try start("other", paused: true)
        killed.session.process.end()
        let other = try start("other", paused: true)
        try other.session.command("cpr-load", ["filename": "/there-is-no-file", "mode": "liveupdate"])
        try other.awaitProgress()
        // A second load, while the first runs and after it.
        let second = try start("other", other: "other-again", paused: true)
        try expect(try second.refusal("cpr-load", file("other")), "none of this VM was found")
        try second.end()
        try other.end()
        // An old checkpoint with new RAM; then the right one.
        let old = try start("old", paused: true)
        try expect(try old.refusal("cpr-load", file("old-before")), "is of another save")
        try old.session.command("cpr-load", file("old"))
        try old.awaitProgress()
        try old.end()
        // Without -S the guest goes on by itself.
        let itself = try start("loads-itself")
        try itself.end()
        return "a taken name, a file outside of the sandbox, huge pages, a kexec that did not happen, no session, half "
            + "of one, one of another VM, a VMM that ends early, a second load and an old checkpoint: each guest goes on, "
            + "or is there for another try; one got the mode by an update"
    }
}
