import Foundation
import TestSupport
import Testing

/// Reboot mode: the checkpoint is loaded by a process that has nothing of the
/// old one but files.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct RebootTests {
    /// A VM whose RAM is lost with its process.
    private struct VolatileVM {
        let directory: TemporaryDirectory
        let process: ChildProcess
        let qmp: QMPClient

        init(_ directory: TemporaryDirectory, paused: Bool = false, memory: [String] = ["-m", "16M"]) throws {
            self.directory = directory
            process = try ChildProcess(
                [Products.baton] + memory + [
                    "-bios", "none", "-kernel", try CountingGuest.image(), "-nodefaults",
                    "-serial", "file:\(directory.file("serial"))", "-cpr-enable", "reboot",
                    "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
                ] + (paused ? ["-S"] : []))
            qmp = try QMPClient(path: directory.file("qmp"), of: process)
        }

        func count() throws -> UInt64 { try qmp.guestWord(at: CountingGuest.pageAddress + 8) }

        func end() throws {
            try qmp.execute("quit")
            #expect(try process.waitForExit() == .status(0))
        }
    }

    @Test func volatileMemoryIsInTheCheckpointAndTheGuestGoesOn() throws {
        let directory = try TemporaryDirectory()
        let old = try VolatileVM(directory)
        try eventually("the guest counts") { try old.count() > 0 }
        let file = directory.file("checkpoint")
        try old.qmp.execute("cpr-save", ["filename": file, "mode": "reboot"])
        let stopped = try old.count()
        #expect(
            refusal { try old.qmp.execute("cpr-exec", ["argv": ["true"]]) }
                == "cpr-exec requires cpr-save in a mode that executes the new VMM, which 'reboot' does not")
        try old.end()
        #expect(old.process.errors.contains("RAM block 'riscv_virt_board.ram' (16 MiB) is volatile"))
        // Pages of zeroes are not stored: flash alone has 64 MiB of them.
        var status = stat()
        #expect(stat(file, &status) == 0 && status.st_mode & 0o777 == 0o600)
        #expect(status.st_blocks * 512 < 1 << 20 && status.st_size > 80 << 20)

        let new = try VolatileVM(directory, paused: true)
        try new.qmp.execute("cpr-load", ["filename": file, "mode": "reboot"])
        #expect(try new.qmp.status() == "running")
        #expect(try new.count() >= stopped)
        try eventually("the guest counts on") { try new.count() > stopped }
        try new.qmp.execute("stop")
        let count = try new.count()
        let sum = try new.qmp.guestWord(at: CountingGuest.pageAddress + (count & 1 == 0 ? 16 : 24))
        #expect(sum == CountingGuest.expectedChecksum(after: count))
        try new.end()
    }

    @Test func aLongSaveTellsItsProgress() throws {
        let directory = try TemporaryDirectory()
        let vm = try VolatileVM(directory, memory: ["-m", "3G"])
        try eventually("the guest counts") { try vm.count() > 0 }
        try vm.qmp.execute("cpr-save", ["filename": directory.file("checkpoint"), "mode": "reboot"])
        let words = vm.qmp.events.filter { $0["event"] as? String == "CPR_PROGRESS" }
            .compactMap { $0["data"] as? [String: Int] }
        #expect(!words.isEmpty)
        #expect(
            words.allSatisfy {
                $0["written"] ?? 0 > 0 && $0["written"] ?? 0 <= $0["total"] ?? 0 && $0["total"] ?? 0 >= 3 << 30
            })
        #expect(words.map { $0["written"] ?? 0 } == words.map { $0["written"] ?? 0 }.sorted())
        try vm.qmp.execute("cont")
        try vm.end()
    }

    @Test func damagedOrTruncatedContentsAreRefusedAndTheGoodFileStillLoads() throws {
        let directory = try TemporaryDirectory()
        let old = try VolatileVM(directory)
        try eventually("the guest counts") { try old.count() > 0 }
        let file = directory.file("checkpoint")
        try old.qmp.execute("cpr-save", ["filename": file, "mode": "reboot"])
        let stopped = try old.count()
        try old.end()

        let new = try VolatileVM(directory, paused: true)
        func load(_ path: String) -> String {
            refusal { try new.qmp.execute("cpr-load", ["filename": path, "mode": "reboot"]) }
        }
        let copy = directory.file("copy")
        try ChildProcess.run(["cp", "--sparse=always", file, copy])
        var status = stat()
        #expect(stat(file, &status) == 0)
        truncate(copy, status.st_size - 4096)
        #expect(load(copy).contains("is truncated"))
        truncate(copy, status.st_size)
        let fd = open(copy, O_WRONLY)
        var byte: UInt8 = 0x5a
        #expect(pwrite(fd, &byte, 1, status.st_size / 2) == 1)
        close(fd)
        #expect(load(copy).contains("damaged contents of RAM block"))
        #expect(try new.qmp.status() == "prelaunch")
        expectNoOtherGuest(new.qmp)
        #expect(load(file) == "accepted")
        #expect(try new.count() >= stopped)
        try new.end()
    }

    /// A guest that starts anew would work on what belongs to the one that was to be loaded.
    private func expectNoOtherGuest(_ qmp: QMPClient) {
        for command in ["cont", "system_reset"] {
            #expect(refusal { try qmp.execute(command) } == "the VM waits for cpr-load")
        }
        let save = ["filename": "/nonexistent/file", "mode": "reboot"]
        #expect(refusal { try qmp.execute("cpr-save", save) } == "the VM waits for cpr-load")
    }

    @Test(arguments: ["no such file", "no such mode", "no checkpoint"])
    func afterARefusedLoadNoOtherGuestStarts(_ kind: String) throws {
        let directory = try TemporaryDirectory()
        let file = kind == "no such file" ? directory.file("none") : try directory.write("file", Data(count: 8192))
        let vm = try VolatileVM(directory, paused: true)
        let mode = kind == "no such mode" ? "none" : "reboot"
        #expect(refusal { try vm.qmp.execute("cpr-load", ["filename": file, "mode": mode]) } != "accepted")
        expectNoOtherGuest(vm.qmp)
        let text = try vm.qmp.execute("human-monitor-command", ["command-line": "cont"]) as? String ?? ""
        #expect(text.contains("end this VMM"), "\(text)")
        #expect(try vm.qmp.status() == "prelaunch")
        #expect(try vm.count() == 0)
        try vm.end()
    }

    @Test func aLoadDuringAPreflightIsRefused() throws {
        let directory = try TemporaryDirectory()
        let second = directory.file("second"), started = directory.file("started")
        let vm = try VolatileVM(
            directory, paused: true,
            memory: ["-m", "16M", "-cpr-enable", "restart", "-qmp", "unix:\(second),server=on,wait=off"])
        let other = try QMPClient(path: second, of: vm.process)
        try vm.qmp.executeWithoutAnswer(
            "cpr-preflight",
            ["argv": ["bash", "-c", "touch \(started); while :; do read line </dev/zero; done"], "mode": "restart"])
        try eventually("the trial") { FileManager.default.fileExists(atPath: started) }
        let file = ["filename": directory.file("none"), "mode": "reboot"]
        #expect(refusal { try other.execute("cpr-load", file) } == "a preflight is under way")
        try other.execute("migrate_cancel")
        // It was not even tried, and the guest is the VM's own.
        try eventually("the preflight ends") { refusal { try other.execute("cont") } == "accepted" }
        try other.execute("quit")
        #expect(try vm.process.waitForExit() == .status(0))
    }

    @Test func aSharedFileStaysInPlaceAndAnotherOfItsNameIsRefused() throws {
        // Under .build: a file in /tmp may be memory.
        let place = try Products.cache("reboot-test") + "/ram-\(UUID().uuidString)"
        defer {
            unlink(place)
            unlink(place + ".other")
        }
        let directory = try TemporaryDirectory()
        func memory(_ path: String) -> [String] {
            [
                "-machine", "virt,memory-backend=ram", "-object",
                "memory-backend-file,id=ram,size=16M,mem-path=\(path),share=on",
            ]
        }
        let old = try VolatileVM(directory, memory: memory(place))
        try eventually("the guest counts") { try old.count() > 0 }
        let file = directory.file("checkpoint")
        try old.qmp.execute("cpr-save", ["filename": file, "mode": "reboot"])
        let stopped = try old.count()
        try old.end()
        let before = try SharedMemory.sha256(ofFile: place)

        try ChildProcess.run(["cp", place, place + ".other"])
        let wrong = try VolatileVM(directory, paused: true, memory: memory(place + ".other"))
        #expect(
            refusal { try wrong.qmp.execute("cpr-load", ["filename": file, "mode": "reboot"]) }
                .contains("is not in the file that"))
        try wrong.end()

        let new = try VolatileVM(directory, paused: true, memory: memory(place))
        #expect(try SharedMemory.sha256(ofFile: place) == before)
        try new.qmp.execute("cpr-load", ["filename": file, "mode": "reboot"])
        #expect(try new.count() >= stopped)
        try eventually("the guest counts on") { try new.count() > stopped }
        try new.end()
    }

    @Test func aFailedSaveLeavesTheFileBeforeAndTheGuest() throws {
        let directory = try TemporaryDirectory()
        let vm = try VolatileVM(directory)
        let file = try directory.write("checkpoint", "the one before")
        let full = "/dev/full/x"
        #expect(
            refusal { try vm.qmp.execute("cpr-save", ["filename": full, "mode": "reboot"]) }
                == "Could not write '/dev/full/x': Not a directory")
        #expect(try vm.qmp.status() == "running")
        // A directory in place of the file cannot be replaced.
        let blocked = directory.file("blocked")
        try FileManager.default.createDirectory(atPath: blocked + "/in", withIntermediateDirectories: true)
        #expect(
            refusal { try vm.qmp.execute("cpr-save", ["filename": blocked, "mode": "reboot"]) }
                == "Could not write '\(blocked)': it is a directory, not a regular file")
        #expect(try vm.qmp.status() == "running")
        #expect(try String(contentsOfFile: file, encoding: .utf8) == "the one before")
        let left = try FileManager.default.contentsOfDirectory(atPath: directory.path).filter { $0.hasSuffix(".tmp") }
        #expect(left.isEmpty)
        try vm.end()
    }
}
