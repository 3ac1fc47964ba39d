import Foundation
import TestSupport
import Testing

/// `baton-ctl update`, from a shell.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct UpdateToolTests {
    private let directory: TemporaryDirectory
    private let guest: CountingGuest
    private var socket: String { directory.file("tool") }

    init() throws {
        directory = try TemporaryDirectory()
        guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-qmp", "unix:\(directory.file("tool")),server=on,wait=off",
        ])
    }

    private func tool(_ arguments: [String]) throws -> ChildProcess {
        let process = try ChildProcess(["\(Products.directory)/baton-ctl", "update", "--qmp", socket] + arguments)
        _ = try process.waitForExit()
        return process
    }

    @Test func aVMMIsReplacedByItsOwnCommandLine() throws {
        defer { _ = try? guest.qmp.execute("quit") }
        let count = guest.count
        let process = try tool([])
        #expect(try process.waitForExit() == .status(0), "\(process.errors)")
        #expect(process.output.contains("updated: process \(guest.process.pid), update 1 of this guest"))
        for phase in ["pause", "stop", "drain", "save", "exec", "start-up", "map", "load", "resume"] {
            #expect(process.output.contains(phase), "\(process.output)")
        }
        #expect(process.errors.contains("preflight > save > exec > load > commit"), "\(process.errors)")
        try guest.waitForProgress(past: count)
    }

    @Test func anotherBinaryAndCommandLineCanBeGiven() throws {
        defer { _ = try? guest.qmp.execute("quit") }
        let link = guest.directory.file("baton.new")
        try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: Products.baton)
        #expect(try tool(["--binary", link]).waitForExit() == .status(0))
        #expect(((try guest.qmp.execute("query-cpr") as? [String: Any])?["argv"] as? [String])?.first == link)
        #expect(try tool(["--"] + guest.arguments + ["-name", "renamed"]).waitForExit() == .status(0))
        #expect((try guest.qmp.execute("query-name") as? [String: Any])?["name"] as? String == "renamed")
    }

    @Test func aFailureIsToldWithWhoHasTheGuest() throws {
        defer { _ = try? guest.qmp.execute("quit") }
        let count = guest.count
        let refused = try tool(["--binary", "/bin/false"])
        #expect(try refused.waitForExit() == .status(1))
        #expect(
            refused.errors.contains("preflight failed: the new VMM ended during its start, with status 1"),
            "\(refused.errors)")
        #expect(refused.errors.contains("still with the old VMM (process \(guest.process.pid))"))
        let back = try tool(["--no-preflight", "--binary", "/bin/false"])
        #expect(try back.waitForExit() == .status(1))
        #expect(back.errors.contains("taken back: the new VMM ended during its start"), "\(back.errors)")
        try guest.waitForProgress(past: count)
    }

    @Test func aCheckOnlyTries() throws {
        defer { _ = try? guest.qmp.execute("quit") }
        let process = try tool(["--check"])
        #expect(try process.waitForExit() == .status(0))
        #expect(process.output.contains("the new VMM could take the guest over"))
        #expect((try guest.qmp.execute("query-cpr") as? [String: Any])?["generation"] as? Int == 0)
    }

    /// The VMM lets the tool wait, as the monitor has a client: without a limit, for ever and without a word.
    @Test func aMonitorThatHasAnotherClientIsNotWaitedForInVain() throws {
        defer { _ = try? guest.qmp.execute("quit") }
        let other = try QMPClient(path: socket)
        try other.execute("query-status")
        let process = try tool(["--timeout-ms", "300"])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("the VMM at \(socket) did not answer within 300 ms"), "\(process.errors)")
        #expect(process.errors.contains("one client at a time"))
        // And a path without a VMM is refused at once.
        let nobody = try ChildProcess([
            "\(Products.directory)/baton-ctl", "update", "--qmp", directory.file("nobody"),
        ])
        #expect(try nobody.waitForExit() == .status(1))
        #expect(nobody.errors.contains("No such file or directory"), "\(nobody.errors)")
    }
}
