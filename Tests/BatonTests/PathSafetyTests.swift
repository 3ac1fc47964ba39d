import Foundation
import TestSupport
import Testing

/// Paths that the VMM writes and reads: what is there already is not destroyed, not opened for somebody else, and
/// not waited for.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct PathSafetyTests {
    /// What a path may stand for that is no regular file.
    enum Node: String, CaseIterable, Sendable {
        case fifo = "a FIFO"
        case socket = "a socket"
        case device = "a character device"
        case directory = "a directory"
        case danglingLink = "a symbolic link"

        static let canMakeDevices: Bool = {
            guard let directory = try? TemporaryDirectory() else { return false }
            return (try? Node.device.make(directory.file("null"))) != nil
        }()
        static let makeable = allCases.filter { $0 != .device || canMakeDevices }

        func make(_ path: String) throws {
            let result: Int32
            switch self {
            case .fifo: result = mkfifo(path, 0o600)
            case .socket: result = mknod(path, S_IFSOCK | 0o600, 0)
            // The null device: a test that fails must not destroy the machine's own.
            case .device: result = mknod(path, S_IFCHR | 0o600, 0x103)
            case .directory: result = mkdir(path, 0o700)
            case .danglingLink: result = symlink("nowhere", path)
            }
            guard result == 0 else { throw TestError.system(rawValue) }
        }
    }

    private static func kind(_ path: String) throws -> mode_t {
        var status = stat()
        guard lstat(path, &status) == 0 else { throw TestError.system(path) }
        return status.st_mode & S_IFMT
    }

    private static func permissions(_ path: String) throws -> mode_t {
        var status = stat()
        guard stat(path, &status) == 0 else { throw TestError.system(path) }
        return status.st_mode & 0o777
    }

    // MARK: Written

    @Test(
        "A save destroys nothing that is no regular file, and the guest does not stop for it",
        arguments: Node.makeable)
    func saving(onto node: Node) throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart,reboot"])
        let path = guest.directory.file("node")
        try node.make(path)
        let before = try Self.kind(path)
        try guest.qmp.execute("migrate-set-parameters", ["mode": "cpr-reboot"])
        for attempt in [
            refusal { try guest.qmp.execute("cpr-save", ["filename": path, "mode": "restart"]) },
            refusal { try guest.qmp.execute("cpr-save", ["filename": path, "mode": "reboot"]) },
            refusal { try guest.qmp.execute("migrate", ["uri": "file:\(path)"]) },
        ] {
            #expect(attempt.contains("Could not write '\(path)'") && attempt.contains(node.rawValue), "\(attempt)")
        }
        #expect(try Self.kind(path) == before)
        #expect(try guest.qmp.status() == "running")
        let left = try FileManager.default.contentsOfDirectory(atPath: guest.directory.path)
        #expect(left.allSatisfy { !$0.hasSuffix(".tmp") }, "\(left)")
    }

    @Test("A symbolic link stays, and the file behind it is replaced as a whole")
    func linkedCheckpoint() throws {
        let guest = try CountingGuest()
        try FileManager.default.createDirectory(
            atPath: guest.directory.file("elsewhere"), withIntermediateDirectories: false)
        let target = try guest.directory.write("elsewhere/state", "the one before")
        try #require(symlink("elsewhere/state", guest.checkpoint) == 0)
        try guest.save()
        #expect(try Self.kind(guest.checkpoint) == S_IFLNK)
        #expect(try Self.permissions(target) == 0o600)
        #expect(try Data(contentsOf: URL(fileURLWithPath: target)).starts(with: Data("BATONVM\0".utf8)))
        #expect(try FileManager.default.contentsOfDirectory(atPath: guest.directory.file("elsewhere")) == ["state"])
        try guest.exec()
        try guest.load()
    }

    @Test("A file that somebody has put where the temporary one was expected is not the checkpoint")
    func plantedTemporaryFile() throws {
        let guest = try CountingGuest()
        let planted = "\(guest.checkpoint).\(guest.process.pid).tmp"
        try Data("planted".utf8).write(to: URL(fileURLWithPath: planted))
        try #require(chmod(planted, 0o666) == 0)
        try guest.save()
        #expect(try String(contentsOfFile: planted, encoding: .utf8) == "planted")
        #expect(try Self.permissions(guest.checkpoint) == 0o600)
    }

    @Test("The device tree goes to a regular file only")
    func dumpedTree() throws {
        let directory = try TemporaryDirectory()
        func dump(_ path: String) throws -> ChildProcess {
            let process = try ChildProcess([
                Products.baton, "-nodefaults", "-bios", "none", "-machine", "virt,dumpdtb=\(path)",
            ])
            try process.waitForExit()
            return process
        }
        let file = try directory.write("tree", "what was there before, and was longer than nothing")
        #expect(try dump(file).waitForExit() == .status(0))
        #expect(try Data(contentsOf: URL(fileURLWithPath: file)).starts(with: Data([0xd0, 0x0d, 0xfe, 0xed])))
        let fifo = directory.file("fifo")
        try Node.fifo.make(fifo)
        let refused = try dump(fifo)
        #expect(try refused.waitForExit() == .status(1))
        #expect(refused.errors.contains("Could not write '\(fifo)': it is a FIFO, not a regular file"))
    }

    @Test("A RAM file is made for its user only, and an existing one keeps its mode")
    func ramFile() throws {
        let directory = try TemporaryDirectory()
        let existing = try directory.writeSparse("existing", size: 4 << 20)
        try #require(chmod(existing, 0o640) == 0)
        for (path, mode) in [(directory.file("new"), 0o600), (existing, 0o640)] as [(String, mode_t)] {
            try ChildProcess.run([
                Products.baton, "-nodefaults", "-bios", "none", "-m", "4M",
                "-object", "memory-backend-file,id=ram,size=4M,share=on,mem-path=\(path)",
                "-machine", "virt,memory-backend=ram,dumpdtb=\(directory.file("tree"))",
            ])
            #expect(try Self.permissions(path) == mode)
        }
    }

    @Test("At its end a VMM leaves a PID file alone that is not its own any more")
    func pidFile() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("pid")
        let process = try ChildProcess([
            Products.baton, "-nodefaults", "-S", "-m", "4M", "-bios", "none", "-pidfile", path,
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
        ])
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        #expect(try String(contentsOfFile: path, encoding: .utf8) == "\(process.pid)\n")
        try FileManager.default.removeItem(atPath: path)
        try directory.write("pid", "another's")
        try qmp.execute("quit")
        try process.waitForExit()
        #expect(try String(contentsOfFile: path, encoding: .utf8) == "another's")
    }

    // MARK: Read

    /// Where a path is read, or written on the way.
    private static let places: [[String]] = [
        ["-kernel", "PATH"], ["-bios", "PATH"], ["-bios", "none", "-kernel", "IMAGE", "-initrd", "PATH"],
        ["-dtb", "PATH"], ["-drive", "file=PATH,format=raw"], ["-drive", "if=pflash,unit=0,file=PATH,format=raw"],
        ["-D", "PATH"], ["-pidfile", "PATH"], ["-serial", "file:PATH"], ["-chardev", "file,id=c,path=PATH"],
        ["-incoming", "file:PATH"], ["-module", "PATH"], ["-machine", "dumpdtb=PATH"],
        ["-object", "memory-backend-file,id=o,size=4M,share=on,mem-path=PATH"],
        ["-trace", "enable=cpr_*,file=PATH"], ["@PATH"], ["-readconfig", "PATH"],
    ]

    @Test(
        "A FIFO that nobody has open is an error wherever a path can be, and nothing that the start waits for",
        arguments: places)
    func fifo(at place: [String]) throws {
        let directory = try TemporaryDirectory()
        let fifo = directory.file("fifo")
        try Node.fifo.make(fifo)
        let image = try CountingGuest.image()
        let words = place.map {
            $0.replacingOccurrences(of: "PATH", with: fifo).replacingOccurrences(of: "IMAGE", with: image)
        }
        let process = try ChildProcess([Products.baton, "-nodefaults", "-S", "-m", "16M"] + words)
        #expect(try process.waitForExit(by: .seconds(20)) == .status(1), "\(process.report)")
        #expect(process.errors.contains(fifo), "\(process.errors)")
    }

    @Test("An endless device is no kernel, and is not read to its end")
    func endlessKernel() throws {
        let process = try ChildProcess([Products.baton, "-nodefaults", "-S", "-m", "16M", "-kernel", "/dev/zero"])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("Could not open '/dev/zero': it is a character device, not a regular file"))
    }

    @Test("A log goes to a FIFO that somebody reads, and the VMM does not wait for who reads it")
    func logToFIFO() throws {
        let directory = try TemporaryDirectory()
        let fifo = directory.file("fifo")
        try Node.fifo.make(fifo)
        let reader = open(fifo, O_RDONLY | O_NONBLOCK)
        defer { close(reader) }
        let process = try ChildProcess([
            Products.baton, "-nodefaults", "-S", "-m", "4M", "-bios", "none", "-D", fifo, "-trace", "*",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
        ])
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        // Each is logged, so that the pipe is full long before the last.
        for _ in 0..<2000 { try qmp.execute("query-status") }
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
        var bytes = [UInt8](repeating: 0, count: 4096)
        #expect(read(reader, &bytes, bytes.count) > 0)
    }
}
