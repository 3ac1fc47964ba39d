import Foundation
import TestSupport
import Testing

/// A file system without room, in every place where a VMM writes: what was asked for is an error that says so, and the
/// guest goes on.
@Suite(
    "Full disks", .enabled(if: geteuid() == 0, "needs root, to mount a small file system"),
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct FullDiskTests {
    private static let reason = "No space left on device"

    @Test(
        "a save is refused, leaves the file of before as it is, and the guest runs on",
        arguments: ["restart", "reboot"])
    func saves(_ mode: String) throws {
        let small = try SmallFileSystem()
        let before = Data("what was there".utf8)
        try before.write(to: URL(fileURLWithPath: small.file("state")))
        try small.fill()
        let guest = try CountingGuest(extra: ["-cpr-enable", mode])
        for _ in 0..<2 {
            let text = refusal { try guest.qmp.execute("cpr-save", ["filename": small.file("state"), "mode": mode]) }
            #expect(text.contains(Self.reason) && text.contains(small.file("state")), "\(text)")
            #expect(try guest.qmp.status() == "running")
            try guest.waitForProgress(past: guest.count)
        }
        #expect(FileManager.default.contents(atPath: small.file("state")) == before)
        #expect(try FileManager.default.contentsOfDirectory(atPath: small.path).sorted() == ["filler", "state"])
        try guest.save(mode: mode)
    }

    @Test("a file for what the guest or the VMM says loses what does not fit")
    func outputs() throws {
        let small = try SmallFileSystem(), directory = try TemporaryDirectory()
        let ram = try directory.writeSparse("ram", size: 16 << 20)
        let arguments = [
            Products.baton, "-machine", "virt,memory-backend=ram", "-m", "16M",
            "-object", "memory-backend-file,id=ram,size=16M,mem-path=\(ram),share=on",
            "-bios", "none", "-kernel", try CountingGuest.image(), "-nodefaults", "-nographic",
            "-serial", "file:\(small.file("serial"))", "-D", small.file("log"), "-trace", "*",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
            "-cpr-enable", "restart",
        ]
        let process = try ChildProcess(arguments)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        defer { qmp.endVMM(startedAs: process) }
        let memory = try SharedMemory(path: ram)
        func count() -> UInt64 { memory.load(UInt64.self, at: 0x40_0008) }
        func lines() -> Int {
            (FileManager.default.contents(atPath: small.file("serial")) ?? Data()).count { $0 == 0x0a }
        }
        try eventually("the guest says something; \(process.report)") { lines() > 0 }
        try small.fill()
        // It says a line every eight million steps, and does not wait for it.
        let begin = count()
        try eventually("the guest counts; \(process.report)") { count() > begin + (1 << 25) }
        for _ in 0..<2 { try qmp.execute("cpr-update", ["argv": arguments]) }
        #expect(try qmp.status() == "running")
        small.empty()
        let before = lines()
        try eventually("the guest's lines are in the file again; \(process.report)") { lines() > before }
    }

    /// Files that are made at the start: the error names each, and nothing is left.
    @Test(
        "what cannot be made at the start is an error",
        arguments: [
            ["-pidfile", "SMALL/pid"], ["-serial", "file:SMALL/serial"], ["-D", "SMALL/log"],
            ["-qmp", "unix:SMALL/qmp,server=on,wait=off"],
            ["-chardev", "socket,id=c,path=SMALL/socket,server=on,wait=off"], ["-M", "dumpdtb=SMALL/dtb"],
        ])
    func starts(_ options: [String]) throws {
        // Without room for another name.
        let small = try SmallFileSystem("size=64k,nr_inodes=1")
        let process = try ChildProcess(
            [Products.baton, "-M", "virt", "-m", "16M", "-bios", "none", "-nodefaults", "-S"]
                + options.map { $0.replacingOccurrences(of: "SMALL", with: small.path) })
        #expect(try process.waitForExit() == .status(1), "\(process.report)")
        #expect(process.errors.contains(Self.reason) && process.errors.contains(small.path), "\(process.errors)")
        #expect(try FileManager.default.contentsOfDirectory(atPath: small.path).isEmpty)
    }

    @Test(
        "output that cannot be written is an error",
        arguments: ["baton -help", "baton -M help", "baton-ctl list", "baton-ctl inspect"])
    func output(_ command: String) throws {
        let directory = try TemporaryDirectory()
        var words = command.split(separator: " ").map(String.init)
        if words[1] == "list" { words += ["--directory", directory.path] }
        if words[1] == "inspect" {
            let guest = try CountingGuest()
            try guest.save()
            try FileManager.default.copyItem(atPath: guest.checkpoint, toPath: directory.file("state"))
            words.append(directory.file("state"))
        }
        words[0] = "\(Products.directory)/\(words[0])"
        #expect(try ChildProcess(words).waitForExit() == .status(0))
        let process = try ChildProcess(["sh", "-c", "exec \"$@\" >/dev/full", "sh"] + words)
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("standard output: \(Self.reason)"), "\(process.errors)")
    }

    @Test("memory that is to be there at the start is an error, or is there")
    func memory() throws {
        let small = try SmallFileSystem("size=1m")
        let process = try ChildProcess([
            Products.baton, "-machine", "virt,memory-backend=ram", "-m", "16M", "-bios", "none", "-nodefaults", "-S",
            "-object", "memory-backend-file,id=ram,size=16M,mem-path=\(small.file("ram")),share=on,prealloc=on",
        ])
        #expect(try process.waitForExit() == .status(1), "\(process.report)")
        #expect(process.errors.contains("cannot preallocate memory for RAM block 'ram'"), "\(process.errors)")
    }

    @Test(
        "a directory for helper processes, and an overlay in it, are errors that say where to look",
        .enabled(if: Products.find("qemu-img") != nil, "needs qemu-img"),
        arguments: ["size=64k,nr_inodes=1", "size=64k"])
    func helpers(_ options: String) throws {
        let small = try SmallFileSystem(options), directory = try TemporaryDirectory()
        let image = try directory.writeSparse("image", size: 1 << 20)
        if options == "size=64k" { try small.fill() }
        let process = try ChildProcess(
            [
                Products.baton, "-M", "virt", "-m", "16M", "-bios", "none", "-nodefaults", "-S", "-snapshot", "-drive",
                "if=none,id=hd,file=\(image),format=raw",
            ], environment: ["TMPDIR": small.path])
        #expect(try process.waitForExit() == .status(1), "\(process.report)")
        #expect(process.errors.contains("TMPDIR") && process.errors.contains(Self.reason), "\(process.errors)")
        let left = try FileManager.default.contentsOfDirectory(atPath: small.path).filter { $0 != "filler" }
        #expect(left.isEmpty, "\(left)")
    }
}
