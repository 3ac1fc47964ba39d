import Foundation
import TestSupport
import Testing

/// What ties a checkpoint to its memory, and what a refused one leaves, with
/// real processes.
@Suite("Checkpoint safety", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct CheckpointSafetyTests {
    private func read(_ path: String) throws -> FormatReader {
        try FormatReader(try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    private func number(_ name: String, _ value: UInt64) -> FormatReader.Field {
        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
        return FormatReader.Field(name: name, type: 1, value: Data(bytes))
    }

    // MARK: A refused load

    @Test("Memory is as it was when any section of a checkpoint is refused")
    func memoryAfterARefusal() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "reboot"])
        try guest.save(mode: "reboot")
        try guest.qmp.execute("quit")
        try guest.restart(["-S"])
        let good = try read(guest.checkpoint)
        func load(_ changed: FormatReader) throws -> String {
            let file = try guest.directory.write("changed", changed.encoded)
            return refusal { try guest.qmp.execute("cpr-load", ["filename": file, "mode": "reboot"]) }
        }
        // What a reset writes, and this VM has had none.
        func rom() throws -> String {
            try guest.qmp.execute("human-monitor-command", ["command-line": "xp /4xg 0x1000"]) as? String ?? ""
        }
        let before = try rom()
        for (section, field) in [("global", "machine"), ("ram", "0.name"), ("cpu0", "pc"), ("clint", "msip")] {
            var changed = good
            let index = try #require(changed.sections.firstIndex { $0.name == section })
            changed.sections[index].fields.removeAll { $0.name == field }
            #expect(try load(changed).contains("field '\(field)' of section '\(section)' is missing"))
            #expect(try rom() == before, "memory after a refused \(section)")
        }
        #expect(try load(good) == "accepted")
        #expect(try rom() != before)
        try guest.qmp.execute("quit")
    }

    @Test("A block whose contents come twice is refused")
    func contentsTwice() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "reboot"])
        try guest.save(mode: "reboot")
        try guest.qmp.execute("quit")
        try guest.restart(["-S"])
        var bad = try read(guest.checkpoint)
        let index = try #require(bad.sections.firstIndex { $0.name == "ram-contents" })
        let list = bad.sections[index]
        let count = list["count"]?.number ?? 0
        var fields = [number("count", count + 1)] + list.fields.filter { $0.name != "count" }
        fields += list.fields.filter { $0.name.hasPrefix("0.") }.map { field in
            var field = field
            field.name = "\(count).\(field.name.dropFirst(2))"
            return field
        }
        bad.sections[index].fields = fields
        let file = try guest.directory.write("bad", bad.encoded)
        #expect(refusal { try guest.qmp.execute("cpr-load", ["filename": file, "mode": "reboot"]) }.contains("twice"))
        try guest.load(mode: "reboot")
        try guest.qmp.execute("quit")
    }

    @Test("Every block of the VM is in a checkpoint once")
    func blocks() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "reboot"])
        try guest.save(mode: "reboot")
        try guest.qmp.execute("quit")
        try guest.restart(["-S"])
        let good = try read(guest.checkpoint)
        let index = try #require(good.sections.firstIndex { $0.name == "ram" })
        let count = good["ram"]?["count"]?.number ?? 0
        func load(_ edit: (inout FormatReader.Section) -> Void) throws -> String {
            var changed = good
            edit(&changed.sections[index])
            let file = try guest.directory.write("changed", changed.encoded)
            return refusal { try guest.qmp.execute("cpr-load", ["filename": file, "mode": "reboot"]) }
        }
        let missing = try load { section in
            section.fields.removeAll { $0.name == "count" || $0.name.hasPrefix("\(count - 1).") }
            section.fields.append(number("count", count - 1))
        }
        #expect(missing.contains("does not have the RAM block"))
        let twice = try load { section in
            let first = section.fields.filter { $0.name.hasPrefix("0.") }
            section.fields.removeAll { $0.name == "count" }
            section.fields.append(number("count", count + 1))
            section.fields += first.map { field in
                var field = field
                field.name = "\(count).\(field.name.dropFirst(2))"
                return field
            }
        }
        #expect(twice.contains("twice"))
        try guest.load(mode: "reboot")
        try guest.qmp.execute("quit")
    }

    // MARK: The memory of another save

    @Test("A restart checkpoint is refused by a process that nobody has executed after the save")
    func restartCheckpointElsewhere() throws {
        let guest = try CountingGuest()
        try guest.save()
        try guest.qmp.execute("quit")
        try guest.restart(["-S"])
        let stopped = guest.count
        #expect(refusal { try guest.load() }.contains("only the process that takes its guest over can load it"))
        #expect(try guest.qmp.status() == "prelaunch")
        #expect(guest.count == stopped)
        try guest.qmp.execute("quit")
    }

    @Test("A successor takes the checkpoint of the last save, and no other")
    func anotherSave() throws {
        let guest = try CountingGuest()
        try guest.save()
        let older = guest.directory.file("older")
        try FileManager.default.copyItem(atPath: guest.checkpoint, toPath: older)
        try guest.qmp.execute("cont")
        try guest.waitForProgress(past: guest.count)
        try guest.save()
        let stopped = guest.count
        try guest.exec()
        #expect(
            refusal { try guest.qmp.execute("cpr-load", ["filename": older, "mode": "restart"]) }
                .contains("is of another save than the guest memory"))
        try guest.load()
        try guest.waitForProgress(past: stopped)
        try guest.qmp.execute("quit")
    }

    /// A guest whose RAM is in a file that outlives it, as far as the file
    /// system can say so.
    private func persistentGuest() throws -> (guest: CountingGuest, isKept: Bool) {
        let guest = try CountingGuest(extra: ["-cpr-enable", "reboot"])
        try guest.save(mode: "reboot")
        let contents = try read(guest.checkpoint)["ram-contents"]
        let names = (0..<Int(contents?["count"]?.number ?? 0)).map { contents?["\($0).name"]?.text }
        return (guest, !names.contains("ram"))
    }

    @Test("A checkpoint goes with its memory until the guest runs: not after cont, nor a second time")
    func afterTheGuestHasRun() throws {
        let (guest, isKept) = try persistentGuest()
        defer { _ = try? guest.qmp.execute("quit") }
        // In memory that cannot be marked the contents are in the checkpoint, which loads as often as one likes.
        let expected = isKept ? "is not as it was when \(guest.checkpoint) was saved" : "accepted"
        try guest.qmp.execute("quit")
        try guest.restart(["-S"])
        let stopped = guest.count
        try guest.load(mode: "reboot")
        try guest.waitForProgress(past: stopped)
        try guest.qmp.execute("quit")
        try guest.restart(["-S"])
        #expect(refusal { try guest.load(mode: "reboot") }.contains(expected))

        // And after a save that cont made void.
        try guest.qmp.execute("quit")
        try guest.restart([])
        try guest.save(mode: "reboot")
        try guest.qmp.execute("cont")
        try guest.qmp.execute("quit")
        try guest.restart(["-S"])
        #expect(refusal { try guest.load(mode: "reboot") }.contains(expected))
    }

    // MARK: Lost memory

    @Test("A RAM file that is made shorter stops the guest with its name, and not the VMM")
    func shortenedFile() throws {
        let guest = try CountingGuest()
        try #require(truncate(guest.ramFile, 0) == 0)
        try guest.qmp.waitForEvent("STOP")
        #expect(try guest.qmp.status() == "internal-error")
        #expect(
            guest.process.errors.contains("the memory of RAM block 'ram' in '\(guest.ramFile)' is lost"),
            "\(guest.process.errors)")
        #expect(refusal { try guest.save() }.contains("RAM block 'ram'"))
        #expect(refusal { try guest.qmp.execute("cpr-update", ["argv": guest.arguments]) }.contains("RAM block 'ram'"))
        #expect(refusal { try guest.qmp.execute("system_reset") }.contains("RAM block 'ram'"))
        #expect(refusal { try guest.qmp.execute("cont") } == "Resetting the Virtual Machine is required")
        #expect(!FileManager.default.fileExists(atPath: guest.checkpoint))
        try guest.qmp.execute("quit")
        #expect(try guest.process.waitForExit() == .status(0))
    }

    private static let mounts =
        (try? ChildProcess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"])) != nil

    @Test(
        "A file system that is full under guest memory stops the guest with its name, and not the VMM",
        .enabled(if: mounts, "needs mount namespaces (unshare -rm)"))
    func fullFileSystem() throws {
        let directory = try TemporaryDirectory()
        let place = directory.file("full")
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        // One page is left for all that a reset and the guest write.
        let script =
            "mount -t tmpfs -o size=64k none \(place) && head -c 61440 /dev/zero >\(place)/other && exec \"$@\""
        let process = try ChildProcess([
            "unshare", "-rm", "sh", "-c", script, "sh", Products.baton,
            "-machine", "virt,memory-backend=ram", "-m", "16M", "-object",
            "memory-backend-file,id=ram,size=16M,mem-path=\(place)/ram,share=on", "-bios", "none",
            "-kernel", try CountingGuest.image(), "-nodefaults", "-nographic", "-S",
            "-cpr-enable", "restart", "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(directory.path)",
        ])
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        try qmp.execute("cont")
        try qmp.waitForEvent("STOP")
        #expect(try qmp.status() == "internal-error")
        #expect(
            process.errors.contains("the memory of RAM block 'ram' in '\(place)/ram' is lost"), "\(process.errors)")
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    @Test("What backs guest memory can be neither shortened nor sealed by whoever holds it")
    func seals() throws {
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-object", "memory-backend-memfd,id=more,size=1M",
        ])
        let directory = "/proc/\(guest.process.pid)/fd"
        var names: [String] = []
        for number in try FileManager.default.contentsOfDirectory(atPath: directory) {
            let path = "\(directory)/\(number)"
            let name = (try? FileManager.default.destinationOfSymbolicLink(atPath: path)) ?? ""
            guard name.hasPrefix("/memfd:") else { continue }
            let fd = open(path, O_RDWR | O_CLOEXEC)
            try #require(fd >= 0)
            defer { close(fd) }
            names.append(name)
            #expect(ftruncate(fd, 0) != 0, "\(name)")
            // F_ADD_SEALS, F_SEAL_FUTURE_WRITE
            #expect(fcntl(fd, 1033, 0x10) != 0, "\(name)")
        }
        #expect(names.contains { $0.hasPrefix("/memfd:riscv_virt_board.mrom") })
        #expect(names.contains { $0.hasPrefix("/memfd:memory-backend-memfd") })
        try guest.qmp.execute("quit")
    }

    // MARK: What comes between

    @Test("quit before an update ends the VMM, and is not lost with it")
    func quitBeforeAnUpdate() throws {
        let guest = try CountingGuest()
        let update: [String: Any] = [
            "execute": "cpr-update", "arguments": ["argv": guest.arguments, "preflight": false],
        ]
        try guest.qmp.send(
            Data("{\"execute\": \"quit\"}\n".utf8) + (try JSONSerialization.data(withJSONObject: update))
                + Data("\n".utf8))
        #expect(try guest.process.waitForExit(by: .seconds(20)) == .status(0))
    }

    @Test("A signal that comes with an update ends the VMM, and is not lost with it")
    func signalBeforeAnUpdate() throws {
        let guest = try CountingGuest()
        // Both are there when it looks.
        guest.process.signal(SIGSTOP)
        try guest.qmp.executeWithoutAnswer("cpr-update", ["argv": guest.arguments, "preflight": false])
        guest.process.signal(SIGTERM)
        guest.process.signal(SIGCONT)
        #expect(try guest.process.waitForExit(by: .seconds(20)) == .status(0))
    }

    /// The last that the old VMM does before the exec is to mark descriptors, the one call of close_range that it makes:
    /// nobody looks for signals any more then, so the signal must wait for the new VMM.
    @Test(
        "A signal that comes when the old VMM is about to execute the new one ends the VM, and is not lost",
        .enabled(if: SystemCallTrace.isAvailable, "needs strace, and the right to trace processes"),
        arguments: [SIGTERM, SIGINT, SIGHUP])
    func signalBeforeTheExec(_ number: Int32) throws {
        let guest = try CountingGuest()
        let name = [SIGTERM: "TERM", SIGINT: "INT", SIGHUP: "HUP"][number] ?? ""
        let trace = guest.directory.file("trace")
        let tracer = try ChildProcess([
            "strace", "-q", "-o", trace, "-e", "trace=close_range,execve", "-e",
            "inject=close_range:signal=\(name):when=1", "-p", "\(guest.process.pid)",
        ])
        try eventually("strace has attached") {
            try String(contentsOfFile: "/proc/\(guest.process.pid)/status", encoding: .utf8)
                .contains("TracerPid:\t\(tracer.pid)\n")
        }
        try guest.qmp.executeWithoutAnswer("cpr-update", ["argv": guest.arguments, "preflight": false])
        #expect(try guest.process.waitForExit(by: .seconds(20)) == .status(0))
        _ = try tracer.waitForExit()
        let words = try String(contentsOfFile: trace, encoding: .utf8)
        let exec = try #require(words.range(of: "execve("), "\(words)")
        #expect(words[..<exec.lowerBound].contains("close_range("), "\(words)")
        #expect(words[exec.upperBound...].contains("--- SIG\(name)"), "\(words)")
    }

    @Test("A reset after a save makes the save void, and another can follow")
    func resetAfterASave() throws {
        let guest = try CountingGuest()
        try guest.save()
        try guest.qmp.execute("system_reset")
        try guest.qmp.waitForEvent("RESET")
        #expect(try guest.qmp.status() == "prelaunch")
        #expect(refusal { try guest.exec() } == "runstate is not save-vm")
        try guest.qmp.execute("cont")
        try eventually("the guest counts again") { guest.count > 0 }
        try guest.save()
        let stopped = guest.count
        try guest.exec()
        try guest.load()
        try guest.waitForProgress(past: stopped)
        try guest.qmp.execute("quit")
    }

    @Test("A reset that was answered before a save is carried out before it")
    func resetBeforeASave() throws {
        let guest = try CountingGuest()
        let save: [String: Any] = [
            "execute": "cpr-save", "id": "save", "arguments": ["filename": guest.checkpoint, "mode": "restart"],
        ]
        try guest.qmp.send(
            Data("{\"execute\": \"system_reset\"}\n".utf8) + (try JSONSerialization.data(withJSONObject: save))
                + Data("\n".utf8))
        var order: [String] = []
        while let message = try guest.qmp.receive() {
            if let event = message["event"] as? String { order.append(event) }
            if message["id"] as? String == "save" { break }
        }
        #expect(order.filter { $0 == "RESET" || $0 == "STOP" } == ["RESET", "STOP"])
        #expect(try guest.qmp.status() == "save-vm")
        try guest.exec()
        try guest.load()
        #expect(try guest.qmp.status() == "running")
        try guest.qmp.execute("quit")
    }
}
