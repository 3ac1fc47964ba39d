import Foundation
import TestSupport
import Testing

/// QEMU's vocabulary: `migrate` in the modes cpr-exec and cpr-reboot, and
/// `-incoming`.
@Suite("Migration commands", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct MigrationTests {
    private static let shared = ["-machine", "aux-ram-share=on"]

    private func status(_ guest: CountingGuest) throws -> String {
        (try guest.qmp.execute("query-migrate") as? [String: Any])?["status"] as? String ?? "none"
    }

    private func waitForStatus(_ guest: CountingGuest, _ status: String) throws {
        try eventually("the migration status \(status)") { try self.status(guest) == status }
    }

    private func set(_ guest: CountingGuest, mode: String, command: [String] = [], sendsEvents: Bool = true) throws {
        try guest.qmp.execute(
            "migrate-set-capabilities", ["capabilities": [["capability": "events", "state": sendsEvents]]])
        var parameters: [String: Any] = ["mode": mode]
        if !command.isEmpty { parameters["cpr-exec-command"] = command }
        try guest.qmp.execute("migrate-set-parameters", parameters)
    }

    /// Until the server closes; what MIGRATION said meanwhile.
    private func statusesUntilClosed(_ guest: CountingGuest) throws -> [String] {
        var messages = guest.qmp.events
        while let message = try guest.qmp.receive() { messages.append(message) }
        return messages.filter { $0["event"] as? String == "MIGRATION" }
            .compactMap { ($0["data"] as? [String: Any])?["status"] as? String }
    }

    // MARK: The same script for QEMU and for Baton

    /// As a script written for QEMU updates a VM: by executing the new VMM,
    /// twice, then by quitting and starting it. The guest must count on.
    private func updateAsQEMU(_ vmm: [String]) throws {
        let guest = try CountingGuest(extra: Self.shared, vmm: vmm)
        let state = "file:" + guest.directory.file("state")

        // cpr-exec, with the state's file on the command line.
        var before = guest.count
        try set(guest, mode: "cpr-exec", command: guest.arguments + ["-incoming", state])
        try guest.qmp.execute("migrate", ["uri": state])
        let statuses = try statusesUntilClosed(guest)
        #expect(statuses.first == "setup" && statuses.last == "completed", "\(statuses)")
        try guest.reconnect()
        try eventually("the guest runs in the new VMM") { try guest.qmp.status() == "running" }
        try guest.waitForProgress(past: before)
        try guest.expectRightSum()
        try waitForStatus(guest, "completed")

        // cpr-exec, with the state's file named later.
        before = guest.count
        try set(guest, mode: "cpr-exec", command: guest.arguments + ["-incoming", "defer"])
        let channel: [String: Any] = [
            "channel-type": "main",
            "addr": ["transport": "file", "filename": guest.directory.file("state"), "offset": 0] as [String: Any],
        ]
        try guest.qmp.execute("migrate", ["channels": [channel]])
        _ = try statusesUntilClosed(guest)
        try guest.reconnect()
        #expect(try guest.qmp.status() == "inmigrate")
        let stopped = guest.count
        #expect(stopped >= before)
        try guest.qmp.execute("migrate-incoming", ["uri": state])
        try eventually("the guest runs again") { try guest.qmp.status() == "running" }
        try guest.waitForProgress(past: stopped)
        try guest.expectRightSum()

        // cpr-reboot.
        try set(guest, mode: "cpr-reboot")
        let ignored: [String: Any] = ["capabilities": [["capability": "x-ignore-shared", "state": true]]]
        try guest.qmp.execute("migrate-set-capabilities", ignored)
        try guest.qmp.execute("migrate", ["uri": state])
        try eventually("postmigrate") { try guest.qmp.status() == "postmigrate" }
        #expect(try status(guest) == "completed")
        let last = guest.count
        try guest.qmp.execute("quit")
        try guest.restart(["-incoming", "defer"])
        try set(guest, mode: "cpr-reboot")
        try guest.qmp.execute("migrate-set-capabilities", ignored)
        #expect(guest.count == last)
        try guest.qmp.execute("migrate-incoming", ["uri": state])
        try eventually("the guest runs once more") { try guest.qmp.status() == "running" }
        try guest.waitForProgress(past: last)
        try guest.expectRightSum()
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    @Test("A script written for QEMU updates a VM of Baton's")
    func drivesBaton() throws { try updateAsQEMU([Products.baton]) }

    // QEMU 10.2 and later: the installed one, or the one that make bench has downloaded.
    @Test("The same script updates a VM of QEMU's", .enabled(if: QEMU.command != nil, "no QEMU with cpr-exec"))
    func drivesQEMU() throws { try updateAsQEMU(try #require(QEMU.command)) }

    // MARK: What can go wrong

    @Test("A new VMM that fails leaves the guest running, the connection open, and the reason in query-migrate")
    func rollsBack() throws {
        let guest = try CountingGuest(extra: Self.shared)
        defer { _ = try? guest.qmp.execute("quit") }
        let state = "file:" + guest.directory.file("state")
        let smaller = guest.arguments.map { $0.replacingOccurrences(of: "16M", with: "8M") }
        for (command, reason) in [
            (["/nonexistent"], "execvp '/nonexistent' failed: No such file or directory"),
            (["/bin/false"], "the new VMM ended during its start"),
            (smaller + ["-incoming", state], "RAM block 'ram' has length"),
            (guest.arguments + ["-incoming", "file:/nonexistent"], "Could not open '/nonexistent'"),
            (guest.arguments + ["-incoming", "file:\(guest.directory.file("serial"))"], "is not a vmstate file"),
            (guest.arguments + ["-incoming", "tcp:0:1"], "unknown migration protocol: tcp:0:1"),
        ] {
            try set(guest, mode: "cpr-exec", command: command)
            try guest.qmp.execute("migrate", ["uri": state])
            try waitForStatus(guest, "failed")
            let report = try #require(try guest.qmp.execute("query-migrate") as? [String: Any])
            #expect((report["error-desc"] as? String ?? "").contains(reason), "\(report)")
            #expect(try guest.qmp.status() == "running")
            try guest.waitForProgress(past: guest.count)
            try guest.expectRightSum()
        }
        // And a good one still works.
        try set(guest, mode: "cpr-exec", command: guest.arguments + ["-incoming", state])
        try guest.qmp.execute("migrate", ["uri": state])
        _ = try statusesUntilClosed(guest)
        try guest.reconnect()
        try guest.waitForProgress(past: guest.count)
    }

    @Test("A state that the new VMM refuses when it is named leads back, too")
    func rollsBackLate() throws {
        let guest = try CountingGuest(extra: Self.shared)
        defer { _ = try? guest.qmp.execute("quit") }
        try set(guest, mode: "cpr-exec", command: guest.arguments + ["-incoming", "defer"])
        try guest.qmp.execute("migrate", ["uri": "file:" + guest.directory.file("state")])
        _ = try statusesUntilClosed(guest)
        try guest.reconnect()
        let stopped = guest.count
        #expect(
            refusal { try guest.qmp.execute("migrate-incoming", ["uri": "file:/nonexistent"]) }
                == "Could not open '/nonexistent': No such file or directory")
        let serial = "file:" + guest.directory.file("serial")
        try guest.qmp.execute("migrate-incoming", ["uri": serial, "exit-on-error": false])
        try waitForStatus(guest, "failed")
        #expect(try guest.qmp.status() == "inmigrate")
        try guest.qmp.execute("migrate-incoming", ["uri": serial])
        _ = try statusesUntilClosed(guest)
        try guest.reconnect()
        try guest.waitForProgress(past: stopped)
        try waitForStatus(guest, "failed")
        #expect(try guest.qmp.status() == "running")
        try guest.expectRightSum()
    }

    @Test("What cannot be done is refused with QEMU's words, and the guest runs on")
    func refusals() throws {
        let guest = try CountingGuest(extra: Self.shared)
        func refused(_ command: String, _ arguments: [String: Any]) -> String {
            refusal { try guest.qmp.execute(command, arguments) }
        }
        let uri = "file:" + guest.directory.file("state")
        #expect(
            refused("migrate-set-parameters", ["mode": "cpr-nothing"])
                == "Parameter 'mode' does not accept value 'cpr-nothing'")
        #expect(refused("migrate-set-parameters", ["multifd": 1]) == "Parameter 'multifd' is unexpected")
        #expect(refused("migrate", ["uri": uri]) == "migration mode 'normal' is not supported")
        try set(guest, mode: "cpr-exec")
        #expect(refused("migrate", ["uri": uri]) == "cpr-exec mode requires setting cpr-exec-command")
        try set(guest, mode: "cpr-reboot")
        #expect(refused("migrate", ["uri": "bogus"]) == "unknown migration protocol: bogus")
        #expect(refused("migrate", [:]) == "need either 'uri' or 'channels' argument")
        #expect(refused("migrate", ["channels": [Any]()]) == "Channel list has no main entry")
        #expect(refused("migrate", ["uri": uri, "channels": [Any]()]).contains("mutually exclusive"))
        #expect(refused("migrate", ["uri": uri, "resume": true]) == "Cannot resume if there is no paused migration")
        #expect(refused("migrate", ["uri": "\(uri),offset=4096"]).hasPrefix("the offset in a migration file must be 0"))
        #expect(
            refused("migrate", ["uri": "file:/nonexistent/x"])
                == "Could not create '/nonexistent/x': No such file or directory")
        #expect(refused("migrate-incoming", ["uri": uri]) == "'-incoming' was not specified on the command line")
        #expect(try status(guest) == "none")
        try guest.waitForProgress(past: guest.count)

        try guest.qmp.execute("migrate", ["uri": uri])
        try eventually("postmigrate") { try guest.qmp.status() == "postmigrate" }
        #expect(refused("migrate", ["uri": uri]) == "Can't migrate the vm that was paused due to previous migration")
        try guest.qmp.execute("cont")
        try guest.waitForProgress(past: guest.count)
        // One that is called off before it has begun.
        try guest.qmp.send(
            "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"\(uri)\"}}\n{\"execute\":\"migrate_cancel\"}\n")
        while let message = try guest.qmp.receive(), message["event"] != nil {}
        while let message = try guest.qmp.receive(), message["event"] != nil {}
        #expect(try status(guest) == "cancelled")
        try guest.waitForProgress(past: guest.count)
    }

    @Test("Memory that would be lost is refused before the guest stops")
    func refusesPrivateMemory() throws {
        let directory = try TemporaryDirectory()
        let process = try ChildProcess([
            Products.baton, "-m", "16M", "-nodefaults", "-nographic", "-S", "-qmp",
            "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
        ])
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        try qmp.execute("migrate-set-parameters", ["mode": "cpr-exec", "cpr-exec-command": ["/bin/true"]])
        let text = refusal { try qmp.execute("migrate", ["uri": "file:" + directory.file("state")]) }
        #expect(text.hasPrefix("Memory region "), "\(text)")
        #expect(text.contains("is volatile"), "\(text)")
        let report = try qmp.execute("query-migrate") as? [String: Any]
        #expect((report?["blocked-reasons"] as? [String])?.first == text)
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    @Test("A state of cpr-exec is not taken for one that holds all memory")
    func refusesAnotherModesState() throws {
        let guest = try CountingGuest()
        try guest.save()
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
        let process = try ChildProcess(guest.arguments + ["-incoming", "file:\(guest.checkpoint)"])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("was saved in mode 'restart', not 'reboot'"), "\(process.errors)")
    }

    @Test("A guest that was paused stays so, and one that waits starts as -S, stop and cont say")
    func keepsTheRunState() throws {
        let guest = try CountingGuest(extra: Self.shared)
        let state = guest.directory.file("state")
        try set(guest, mode: "cpr-reboot")
        try guest.qmp.execute("migrate", ["uri": "file:\(state)"])
        try eventually("postmigrate") { try guest.qmp.status() == "postmigrate" }
        try guest.qmp.execute("quit")
        for (arguments, commands, expected) in [
            (["-S"], [String](), "paused"), (["-S"], ["cont"], "running"), ([], ["stop"], "paused"),
        ] {
            try guest.restart(arguments + ["-incoming", "defer"])
            for command in commands { try guest.qmp.execute(command) }
            #expect(try guest.qmp.status() == "inmigrate")
            try guest.qmp.execute("migrate-incoming", ["uri": "file:\(state)"])
            try waitForStatus(guest, "completed")
            #expect(try guest.qmp.status() == expected)
            try guest.qmp.execute("stop")
            // The next one begins where this one is now.
            try set(guest, mode: "cpr-reboot")
            try guest.qmp.execute("cont")
            try guest.qmp.execute("migrate", ["uri": "file:\(state)"])
            try eventually("postmigrate") { try guest.qmp.status() == "postmigrate" }
            try guest.qmp.execute("quit")
        }
    }

    @Test("The human monitor has the same commands")
    func humanMonitor() throws {
        let guest = try CountingGuest(extra: Self.shared)
        func line(_ text: String) throws -> String {
            try guest.qmp.execute("human-monitor-command", ["command-line": text]) as? String ?? ""
        }
        #expect(try line("migrate_set_parameter mode bogus").contains("Parameter 'mode' does not accept value 'bogus'"))
        #expect(try line("migrate_set_parameter bogus 1").contains("invalid parameter value: bogus"))
        #expect(try line("migrate_set_parameter mode cpr-exec") == "")
        let state = "file:" + guest.directory.file("state")
        #expect(
            try line(
                "migrate_set_parameter cpr-exec-command " + guest.arguments.joined(separator: " ")
                    + " -incoming \(state)") == "")
        #expect(try line("info migrate_parameters").contains("mode: cpr-exec"))
        #expect(try line("migrate_set_capability events on") == "")
        #expect(try line("info migrate_capabilities").contains("events: on"))
        let before = guest.count
        #expect(try line("migrate -d \(state)") == "")
        _ = try statusesUntilClosed(guest)
        try guest.reconnect()
        try guest.waitForProgress(past: before)
        #expect(try line("info migrate").contains("completed"))
        try guest.qmp.execute("quit")
    }
}
