import Foundation
import TestSupport
import Testing

/// `baton-ctl` on the VMs of a directory: list, top, console, update of all, shutdown.
@Suite(
    "VMs of a host", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct MachineToolTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    /// A VM as the service starts it.
    private func machine(_ name: String, guest: String = "counter") throws -> CountingGuest {
        let place = directory.file(name)
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        return try CountingGuest(
            extra: [
                "-cpr-enable", "restart", "-name", name, "-qmp", "unix:\(place)/qmp,server=on,wait=off",
                "-chardev", "socket,id=console,path=\(place)/console,server=on,wait=off",
                "-device", "virtio-serial-device", "-device", "virtconsole,chardev=console",
            ], guest: guest)
    }

    private func tool(_ arguments: [String], succeeds: Bool = true) throws -> ChildProcess {
        let process = try ChildProcess(
            ["\(Products.directory)/baton-ctl"] + arguments + ["--directory", directory.path])
        let exit = try process.waitForExit()
        #expect((exit == .status(0)) == succeeds, "\(process.output)\(process.errors)")
        return process
    }

    private func objects(_ process: ChildProcess) throws -> [[String: Any]] {
        try process.output.split(separator: "\n").map {
            try #require(try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])
        }
    }

    @Test("VMs are listed by name, with what they are; one that does not answer is an error beside the others")
    func list() throws {
        let first = try machine("one")
        let second = try machine("two")
        defer { for guest in [first, second] { _ = try? guest.qmp.execute("quit") } }
        try second.qmp.execute("stop")
        let table = try tool(["list"]).output.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        #expect(table.map { $0[0] } == ["NAME", "one", "two"])
        #expect(table[1][1...5] == ["\(first.process.pid)", "running", "1", "16M", "tcg"])
        #expect(table[2][2] == "paused")
        let json = try objects(try tool(["list", "one", "--json"]))
        #expect(json.count == 1 && json[0]["memory"] as? Int == 16 << 20 && json[0]["updates"] as? Int == 0)

        // A monitor that has a client already.
        let other = try QMPClient(path: "\(directory.path)/two/qmp")
        try other.execute("query-status")
        let partial = try tool(["list", "--timeout-ms", "300"], succeeds: false)
        #expect(
            partial.output.split(separator: "\n").contains {
                $0.split(separator: " ").prefix(2) == ["two", "-"] && $0.contains("no answer")
            })
        #expect(partial.output.contains("running") && partial.errors.contains("two: the VMM at "))
        #expect(try tool(["list", "three"], succeeds: false).errors.contains("there is no VM 'three'"))
    }

    @Test("What VMs are busy with is shown as rates")
    func top() throws {
        let guest = try machine("one")
        defer { _ = try? guest.qmp.execute("quit") }
        let json = try objects(try tool(["top", "--json", "--count", "2", "--interval", "0.2"]))
        #expect(json.count == 2)
        for object in json {
            #expect(object["cpu-percent"] as? Double ?? 0 > 1, "\(object)")
            #expect(object["memory"] as? Double ?? 0 > 1e6)
        }
        let table = try tool(["top", "--count", "1", "--interval", "0.1"]).output
        #expect(table.hasPrefix("NAME  STATE") && table.contains("one   running"))
    }

    @Test("All VMs are updated one after the other, and a failure stops the rest")
    func updateAll() throws {
        let guests = try ["one", "two", "three"].map { try machine($0) }
        defer { for guest in guests { _ = try? guest.qmp.execute("quit") } }
        #expect(try tool(["update", "--all", "--check"]).output.contains("could be updated"))
        let table = try tool(["update", "--all", "--jobs", "2"]).output.split(separator: "\n")
        #expect(table.count == 4 && table.dropFirst().allSatisfy { $0.contains(" updated ") && $0.contains(" ms ") })
        for guest in guests {
            #expect((try guest.qmp.execute("query-cpr") as? [String: Any])?["generation"] as? Int == 1)
            try guest.waitForProgress(past: guest.count)
        }
        // By name: one, three, two.
        let failed = try tool(["update", "--all", "--binary", "/bin/false"], succeeds: false)
        let results = failed.output.split(separator: "\n").dropFirst().map(String.init)
        #expect(results[0].contains("FAILED") && results[1].contains("not tried") && results[2].contains("not tried"))
        #expect(failed.errors.contains("one: preflight failed"))
        let all = try objects(
            try tool(["update", "--all", "--keep-going", "--json", "--binary", "/bin/false"], succeeds: false))
        #expect(all.count == 3 && all.allSatisfy { $0["result"] as? String == "failed" })
        #expect(try tool(["update", "--all", "--outdated-only"]).output.contains("up to date"))
        let one = try objects(try tool(["update", "one", "--json"]))
        #expect(one[0]["update"] as? Int == 2 && one[0]["result"] as? String == "updated")
        #expect(try tool(["update", "one", "--all"], succeeds: false).errors.contains("--all takes neither"))
    }

    @Test("A guest that does not heed its power button is ended after the limit")
    func shutdown() throws {
        let guest = try machine("one")
        let process = try tool(["shutdown", "one", "--limit", "0.3"])
        #expect(process.output == "one: ended without its guest\n")
        #expect(try guest.process.waitForExit() == .status(0))
        let paused = try machine("two")
        try paused.qmp.execute("stop")
        let json = try objects(try tool(["shutdown", "two", "--json"]))
        #expect(json[0]["forced"] as? Bool == true)
        #expect(try paused.process.waitForExit() == .status(0))
    }

    @Test("The terminal is the guest's until Ctrl-], also over an update")
    func console() throws {
        let guest = try machine("one")
        defer { _ = try? guest.qmp.execute("quit") }
        var ends: (Int32, Int32) = (-1, -1)
        try #require(openpty(&ends.0, &ends.1, nil, nil, nil) == 0)
        defer { for fd in [ends.0, ends.1] { close(fd) } }
        for fd in [ends.0, ends.1] { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
        let process = try ChildProcess(
            [
                "\(Products.directory)/baton-ctl", "console", "one", "--chardev", "console", "--directory",
                directory.path,
            ], descriptors: [0: ends.1, 1: ends.1])
        func filename() throws -> String? {
            let all = try guest.qmp.execute("query-chardev") as? [[String: Any]]
            return all?.first { $0["label"] as? String == "console" }?["filename"] as? String
        }
        try eventually("the console is connected") { try filename()?.hasPrefix("unix:") == true }
        try process.waitForErrors("Connected to one.")
        #expect(
            try tool(["console", "one", "--chardev", "console"], succeeds: false).errors
                .contains("the console is in use"))
        #expect(
            try tool(["console", "one", "--chardev", "none"], succeeds: false).errors.contains("It has: "))
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        #expect(process.isRunning)
        #expect(try filename()?.hasPrefix("unix:") == true)
        #expect(write(ends.0, "x\u{1d}", 2) == 2)
        #expect(try process.waitForExit() == .status(0))
    }
}
