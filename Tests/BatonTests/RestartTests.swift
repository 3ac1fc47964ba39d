import Foundation
import TestSupport
import Testing

/// Restart mode, driven as an operator would: a real guest, a real exec.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct RestartTests {
    /// A successor that refuses: the guest goes on in the VMM before, whose
    /// client hears why on the same connection.
    private func expectRollback(_ guest: CountingGuest, _ argv: [String], _ reason: String) throws {
        let stopped = guest.count
        let text = refusal { try guest.qmp.execute("cpr-exec", ["argv": argv]) }
        #expect(text.contains("the guest was taken back") && text.contains(reason), "\(text)")
        try guest.waitForProgress(past: stopped)
        #expect(try guest.qmp.status() == "running")
        // Whoever runs it now is no child of ours.
        try guest.qmp.execute("quit")
    }

    @Test func theCounterNeverGoesBackOrSkipsOverAHundredRestarts() throws {
        let guest = try CountingGuest()
        let pid = guest.process.pid
        var last: UInt64 = 0
        var descriptors: [String]?
        for round in 1...100 {
            try guest.waitForProgress(past: last)
            try guest.save()
            #expect(try guest.qmp.status() == "save-vm")
            let stopped = guest.count
            #expect(stopped > last, "round \(round)")
            #expect(guest.checksum == CountingGuest.expectedChecksum(after: stopped), "round \(round)")
            let before = try SharedMemory.sha256(ofFile: guest.ramFile)

            try guest.exec()
            #expect(try guest.qmp.status() == "prelaunch")
            #expect(guest.count == stopped, "round \(round)")
            #expect(try SharedMemory.sha256(ofFile: guest.ramFile) == before, "round \(round)")

            try guest.load()
            #expect(try guest.qmp.status() == "running")
            #expect(guest.process.isRunning && guest.process.pid == pid)
            let now = try guest.openDescriptors()
            if let descriptors { #expect(now == descriptors, "round \(round)") }
            descriptors = now
            last = stopped
        }
        try guest.waitForProgress(past: last)
        let report = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(report["generation"] as? Int == 100)
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
        #expect(guest.process.errors == "")
    }

    @Test func aPausedGuestStaysPaused() throws {
        let guest = try CountingGuest()
        try guest.qmp.execute("stop")
        let stopped = guest.count
        try guest.save()
        try guest.exec()
        try guest.load()
        #expect(try guest.qmp.status() == "paused")
        #expect(guest.count == stopped)
        try guest.qmp.execute("cont")
        try guest.waitForProgress(past: stopped)
    }

    @Test(arguments: [
        ["nice"], ["env", "A=B"], ["sh", "-c", "exec \"$@\"", "sh"], ["sh", "-c", "\"$@\"; exit", "sh"],
    ])
    func aPrefixCommandMayExecuteTheVMM(_ prefix: [String]) throws {
        let guest = try CountingGuest()
        try guest.save()
        let stopped = guest.count
        try guest.exec(prefix + guest.arguments + ["-S"])
        try guest.load()
        try guest.waitForProgress(past: stopped)
        // A shell that stays is what would be killed, and its child would run on.
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
    }

    @Test func eachCommandRefusesWhatDoesNotFitTheState() throws {
        let guest = try CountingGuest()
        #expect(refusal { try guest.qmp.execute("cpr-exec", ["argv": guest.arguments]) } == "runstate is not save-vm")
        #expect(refusal { try guest.load() } == "cpr-load called for a running VM")
        #expect(refusal { try guest.save(mode: "reboot") } == "cpr mode is not enabled.  Use -cpr-enable.")
        let count = guest.count
        #expect(
            refusal { try guest.qmp.execute("cpr-save", ["filename": "/nonexistent/file", "mode": "restart"]) }
                .hasSuffix("No such file or directory"))
        #expect(try guest.qmp.status() == "running")
        try guest.waitForProgress(past: count)
        try guest.save()
        #expect(refusal { try guest.qmp.execute("cpr-exec", ["argv": [String]()]) }.contains("non-empty argv"))
        #expect(try guest.qmp.status() == "save-vm")
    }

    @Test func aVMWithoutTheModeRefusesToSave() throws {
        let guest = try CountingGuest(extra: [])
        #expect(refusal { try guest.save() } == "cpr mode is not enabled.  Use -cpr-enable.")
        #expect(try guest.qmp.status() == "running")
    }

    @Test func anExecThatFailsLeavesTheGuestRunning() throws {
        let guest = try CountingGuest()
        let descriptors = try guest.openDescriptors()
        for program in ["/nonexistent/baton", "/etc/passwd", "/tmp"] {
            try guest.save()
            let stopped = guest.count
            let text = refusal { try guest.qmp.execute("cpr-exec", ["argv": [program]]) }
            #expect(text.hasPrefix("cpr-exec: execvp '\(program)' failed: "))
            #expect(try guest.qmp.status() == "running")
            try guest.waitForProgress(past: stopped)
        }
        #expect(try guest.openDescriptors() == descriptors)
        // And a good one still works.
        try guest.save()
        try guest.exec()
        try guest.load()
    }

    /// The old VMM ends with the update that has succeeded, and no process is left of one that failed.
    @Test func nothingIsLeftOfAnUpdate() throws {
        let guest = try CountingGuest()
        func parent(of pid: String) -> String? {
            // One that ends meanwhile is no child any more.
            guard let stat = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8) else { return nil }
            let fields = stat.split(separator: ")").last?.split(separator: " ") ?? []
            return fields.count > 1 ? String(fields[1]) : nil
        }
        func children() throws -> [String] {
            let processes = try FileManager.default.contentsOfDirectory(atPath: "/proc").filter { Int32($0) != nil }
            return processes.filter { parent(of: $0) == "\(guest.process.pid)" }
        }
        for _ in 0..<3 { try guest.qmp.execute("cpr-update", ["argv": guest.arguments]) }
        try eventually("the old VMMs end") { try children().isEmpty }
        try guest.save()
        let text = refusal { try guest.qmp.execute("cpr-exec", ["argv": ["/etc/passwd"]]) }
        #expect(text.contains("Permission denied"), "\(text)")
        #expect(try children().isEmpty)
        try guest.save()
        try guest.exec()
        #expect(try !children().isEmpty, "the old VMM waits for the load")
        try guest.load()
        try eventually("the old VMMs end") { try children().isEmpty }
    }

    @Test func preallocatedMemoryIsPreservedAndNotAllocatedAgain() throws {
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-object", "memory-backend-memfd,id=more,size=64M,prealloc=on",
        ])
        for preflight in [true, false, true] {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": preflight])
            try guest.waitForProgress(past: guest.count)
            let devices = try #require(try guest.qmp.execute("query-memdev") as? [[String: Any]])
            #expect(devices.first { $0["id"] as? String == "more" }?["prealloc"] as? Bool == true)
        }
    }

    @Test func aDifferentMemorySizeLeadsBackAndSaysWhy() throws {
        let guest = try CountingGuest()
        try guest.save()
        let argv = guest.arguments.map { $0.replacingOccurrences(of: "16M", with: "32M") } + ["-S"]
        try expectRollback(
            guest, argv, "RAM block 'ram' has length 16777216 in the CPR state, but 33554432 on the command line")
    }

    @Test func aMissingBlockLeadsBackAndSaysWhich() throws {
        let guest = try CountingGuest()
        try guest.save()
        let argv = guest.arguments.map {
            $0.replacingOccurrences(of: "memory-backend=ram", with: "memory-backend=other")
                .replacingOccurrences(of: "id=ram", with: "id=other")
        }
        try expectRollback(guest, argv + ["-S"], "the CPR state has the RAM block 'ram'")
    }

    @Test func aSuccessorWithoutTheModeLeadsBack() throws {
        let guest = try CountingGuest()
        try guest.save()
        let argv = guest.arguments.filter { $0 != "-cpr-enable" && $0 != "restart" } + ["-S"]
        try expectRollback(guest, argv, "saved in mode 'restart', which is not enabled")
    }

    @Test func aBadCPRStateIsFatal() throws {
        for value in ["999", "x", "0", "-1"] {
            let process = try ChildProcess([Products.baton, "-S"], environment: ["BATON_CPR_STATE": value])
            #expect(try process.waitForExit() == .status(1))
            #expect(process.errors.contains("BATON_CPR_STATE=\(value) does not name an open file descriptor"))
        }
    }

    @Test func aSuccessorRefusesBadCheckpointsAndTakesAGoodOne() throws {
        let guest = try CountingGuest()
        try guest.save()
        let stopped = guest.count
        try guest.exec()
        let good = try Data(contentsOf: URL(fileURLWithPath: guest.checkpoint))
        func load(_ data: Data) throws -> String {
            let file = try guest.directory.write("bad", data)
            return refusal { try guest.qmp.execute("cpr-load", ["filename": file, "mode": "restart"]) }
        }
        let bad = guest.directory.file("bad")
        #expect(try load(Data("no checkpoint at all".utf8)) == "\(bad) is not a vmstate file")
        #expect(try load(Data()) == "\(bad) is not a vmstate file")
        for cut in stride(from: 8, to: good.count, by: good.count / 50) {
            #expect(try load(good.prefix(cut)).contains(bad), "cut at \(cut)")
        }
        for index in stride(from: 8, to: good.count, by: 97) {
            var changed = good
            changed[index] ^= 0x10
            #expect(try load(changed).contains(bad), "byte \(index)")
        }
        #expect(
            refusal { try guest.qmp.execute("cpr-load", ["filename": "/dev/zero", "mode": "restart"]) }
                == "/dev/zero is not a vmstate file")
        // Without its state the guest must not run.
        #expect(refusal { try guest.qmp.execute("cont") } == "the VM waits for cpr-load")
        #expect(refusal { try guest.qmp.execute("system_reset") } == "the VM waits for cpr-load")
        #expect(guest.count == stopped)
        try guest.load()
        try guest.waitForProgress(past: stopped)
    }

    @Test func volatileMemoryIsRefusedBeforeTheGuestStops() throws {
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-object", "memory-backend-ram,id=scratch,size=1M",
        ])
        #expect(
            refusal { try guest.save() } == "Memory region scratch is volatile. "
                + "A memory-backend-memfd or memory-backend-file with share=on is required.")
        #expect(try guest.qmp.status() == "running")
    }

    @Test func secondaryBlocksBecomeMemfdsThatAreTraced() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-trace", "anon_memfd_alloc"])
        let report = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        let blocks = try #require(report["ram"] as? [[String: Any]])
        let names = blocks.compactMap { $0["name"] as? String }
        #expect(names.contains("ram") && names.contains("riscv_virt_board.mrom"))
        for name in names where name != "ram" {
            #expect(guest.process.errors.contains("anon_memfd_alloc \(name) size 0x"), "\(name)")
        }
        try guest.save()
        try guest.exec()
        try guest.load()
        // The same memory under the same names, by the same descriptors.
        let after = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(blocks as NSArray == after["ram"] as? NSArray)
    }

    @Test func theHumanMonitorHasTheSameCommands() throws {
        let guest = try CountingGuest()
        func hmp(_ line: String) throws -> String {
            try guest.qmp.execute("human-monitor-command", ["command-line": line]) as? String ?? ""
        }
        #expect(try hmp("cpr-save").hasPrefix("Error: usage: cpr-save FILE MODE"))
        #expect(try hmp("cpr-save \(guest.checkpoint) restart") == "")
        #expect(try hmp("info status").contains("paused (save-vm)"))
        #expect(try hmp("cpr-exec /nonexistent").contains("execvp '/nonexistent' failed"))
        #expect(try guest.qmp.status() == "running")
        #expect(try hmp("info cpr").contains("modes: restart"))
    }
}
