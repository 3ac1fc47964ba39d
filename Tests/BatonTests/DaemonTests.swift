import Foundation
import TestSupport
import Testing

/// `-daemonize` and `-pidfile`.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct DaemonTests {
    @Test func theParentEndsWhenTheMachineStandsAndTheDaemonCanBeUpdated() throws {
        let directory = try TemporaryDirectory()
        let arguments = try CountingGuest.daemonArguments(in: directory)
        let parent = try ChildProcess(arguments)
        #expect(try parent.waitForExit() == .status(0))
        let qmp = try QMPClient(path: directory.file("qmp"))
        #expect(try qmp.status() == "running")
        let pid = try String(contentsOfFile: directory.file("pid"), encoding: .utf8)
        try qmp.execute("cpr-update", ["argv": arguments])
        #expect(try qmp.status() == "running")
        #expect(try String(contentsOfFile: directory.file("pid"), encoding: .utf8) == pid)
        try qmp.execute("quit")
        try eventually("the daemon ends") { !FileManager.default.fileExists(atPath: directory.file("pid")) }
    }

    @Test func aStartThatFailsIsTheParentsExitStatus() throws {
        let process = try ChildProcess([Products.baton, "-daemonize", "-kernel", "/nonexistent"])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("could not load kernel '/nonexistent'"))
    }

    @Test func aPIDFileInUseIsRefused() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("pid")
        let guest = try CountingGuest(extra: ["-pidfile", file])
        let second = try ChildProcess([Products.baton, "-S", "-pidfile", file, "-nodefaults"])
        #expect(try second.waitForExit() == .status(1))
        #expect(second.errors.contains("Cannot lock pid file"))
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
        #expect(!FileManager.default.fileExists(atPath: file))
    }

    @Test("An update may name another PID file, which is there when the guest has changed hands, and not before")
    func anotherPIDFile() throws {
        let directory = try TemporaryDirectory()
        let (first, second) = (directory.file("first"), directory.file("second"))
        func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-pidfile", first])
        let others = guest.arguments.map { $0 == first ? second : $0 }
        #expect(guest.update(others + ["-m", "32M"]) != "accepted")
        #expect(exists(first) && !exists(second))
        try guest.qmp.execute("cpr-update", ["argv": others])
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(try String(contentsOfFile: second, encoding: .utf8) == "\(try #require(query["pid"] as? Int))\n")
        #expect(!exists(first))
        // Another VMM has it locked; and then none does.
        let holder = try ChildProcess([Products.baton, "-S", "-pidfile", first, "-nodefaults"])
        try eventually("the other VMM has its file") { exists(first) }
        #expect(guest.update(guest.arguments).contains("Cannot lock pid file"))
        holder.signal(SIGTERM)
        try holder.waitForExit()
        let none = guest.arguments.filter { $0 != "-pidfile" && $0 != first }
        try guest.qmp.execute("cpr-update", ["argv": none])
        #expect(!exists(first) && !exists(second))
        try guest.qmp.execute("quit")
    }

    /// Whoever knows the VM by its PID file must find that somewhere.
    @Test(
        "A VM keeps its PID file when there is no room for another one",
        .enabled(if: geteuid() == 0, "needs root, for a small file system"))
    func fullPIDFile() throws {
        let small = try SmallFileSystem()
        let directory = try TemporaryDirectory()
        let (first, second) = (directory.file("first"), small.file("second"))
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-pidfile", first])
        func pid(_ path: String) throws -> Int? {
            Int(try String(contentsOfFile: path, encoding: .utf8).trimmingCharacters(in: .newlines))
        }
        func queried() throws -> Int? { (try guest.qmp.execute("query-cpr") as? [String: Any])?["pid"] as? Int }
        let others = guest.arguments.map { $0 == first ? second : $0 }
        try small.fill()
        try guest.qmp.execute("cpr-update", ["argv": others])
        #expect(try pid(first) == queried())
        #expect(!FileManager.default.fileExists(atPath: second))
        try guest.process.waitForErrors("the VM's PID stays in \(first)")
        // It is locked, and goes on to be the VM's.
        let other = try ChildProcess([Products.baton, "-S", "-pidfile", first, "-nodefaults"])
        #expect(try other.waitForExit() == .status(1))
        #expect(guest.update(["false"]).contains("taken back"))
        #expect(try pid(first) == queried())
        // With room it is what the command line says.
        small.empty()
        try guest.qmp.execute("cpr-update", ["argv": others])
        #expect(try pid(second) == queried())
        #expect(!FileManager.default.fileExists(atPath: first))
        // One that is there is written over, which needs no room.
        try small.fill()
        try guest.qmp.execute("cpr-update", ["argv": others])
        #expect(try pid(second) == queried())
        // A start that fails leaves nothing.
        let third = small.file("third")
        let start = try ChildProcess([Products.baton, "-S", "-pidfile", third, "-nodefaults"])
        #expect(try start.waitForExit() == .status(1))
        #expect(!FileManager.default.fileExists(atPath: third))
        try guest.qmp.execute("quit")
    }
}
