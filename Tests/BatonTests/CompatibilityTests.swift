import Foundation
import TestSupport
import Testing

/// Checkpoints that older versions wrote load in this one. Each version's are kept as text in `Checkpoints`, in their
/// smallest form: the counting guest in little memory, which is in the file, with every device or with none.
///
/// `BATON_KEEP_CHECKPOINTS=1` writes those of this version, at its release.
@Suite("Kept checkpoints", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct CompatibilityTests {
    enum Machine: String, CaseIterable { case smallest, everything }

    private static let isToKeep = ProcessInfo.processInfo.environment["BATON_KEEP_CHECKPOINTS"] != nil

    private static let kept: [String] =
        ((try? FileManager.default.contentsOfDirectory(atPath: KeptCheckpoint.directory)) ?? [])
        .filter { $0.hasSuffix(".txt") }.sorted()

    /// A VM whose memory is lost with its process.
    private struct VM {
        let process: ChildProcess
        let qmp: QMPClient

        init(_ machine: Machine, in directory: TemporaryDirectory, _ more: [String]) throws {
            let socket = directory.file("qmp")
            unlink(socket)
            process = try ChildProcess(
                [
                    Products.baton, "-m", "16M", "-bios", "none", "-nodefaults", "-nographic", "-serial", "null",
                    "-cpr-enable", "reboot", "-qmp", "unix:\(socket),server=on,wait=off",
                    "-sandbox", "paths=\(directory.path)",
                ] + (machine == .everything ? try EveryDevice.options(in: directory) : []) + more)
            qmp = try QMPClient(path: socket, of: process)
        }

        /// A word of the guest's page, see Tests/Guests/counter.
        func word(_ index: Int) throws -> UInt64 {
            try qmp.guestWord(at: CountingGuest.pageAddress + UInt64(8 * index))
        }

        func end() throws {
            try qmp.execute("quit")
            #expect(try process.waitForExit() == .status(0))
        }
    }

    @Test("There are checkpoints, and all of them load", arguments: Machine.allCases)
    func load(_ machine: Machine) throws {
        let files = Self.kept.filter { $0.hasSuffix("-\(machine.rawValue).txt") }
        #expect(!files.isEmpty)
        for file in files {
            let directory = try TemporaryDirectory()
            let path = directory.file("checkpoint")
            try KeptCheckpoint.write(
                try String(contentsOfFile: "\(KeptCheckpoint.directory)/\(file)", encoding: .utf8), to: path)
            let vm = try VM(machine, in: directory, ["-S"])
            try vm.qmp.execute("cpr-load", ["filename": path, "mode": "reboot"])
            #expect(try vm.qmp.status() == "running", "\(file)")
            let before = try vm.word(1)
            #expect(before > 0)
            try eventually("the guest of \(file) counts on") { try vm.word(1) > before }
            try vm.qmp.execute("stop")
            let count = try vm.word(1)
            #expect(try vm.word(count & 1 == 0 ? 2 : 3) == CountingGuest.expectedChecksum(after: count), "\(file)")
            try vm.end()
        }
    }

    @Test(
        "This version's are written", .enabled(if: isToKeep, "writes files of the tree: BATON_KEEP_CHECKPOINTS=1"),
        arguments: Machine.allCases)
    func keep(_ machine: Machine) throws {
        let directory = try TemporaryDirectory()
        let vm = try VM(machine, in: directory, ["-kernel", try CountingGuest.image()])
        try eventually("the guest counts") { try vm.word(1) > 0 }
        let path = directory.file("checkpoint")
        try vm.qmp.execute("cpr-save", ["filename": path, "mode": "reboot"])
        try vm.end()
        let version = try ChildProcess.run([Products.baton, "-version"])
            .prefixMatch(of: #/.*baton-([0-9.]+)/#)?.1
        try FileManager.default.createDirectory(atPath: KeptCheckpoint.directory, withIntermediateDirectories: true)
        try KeptCheckpoint.text(of: try KeptCheckpoint.read(path)).write(
            toFile: "\(KeptCheckpoint.directory)/\(try #require(version))-\(machine.rawValue).txt", atomically: true,
            encoding: .utf8)
    }
}
