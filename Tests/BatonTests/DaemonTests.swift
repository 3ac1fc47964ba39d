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
}
