import Foundation
import TestSupport
import Testing

/// Locks on disk images and RAM files, QEMU's where QEMU has them.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct LockTests {
    /// A VMM that does not start its guest.
    private final class IdleVM {
        let process: ChildProcess
        let qmp: QMPClient

        init(_ directory: TemporaryDirectory, _ words: [String]) throws {
            let socket = directory.file("qmp-\(UInt32.random(in: 0...UInt32.max))")
            process = try ChildProcess(
                [Products.baton, "-nodefaults", "-S", "-m", "4M", "-bios", "none"] + words
                    + ["-qmp", "unix:\(socket),server=on,wait=off"])
            qmp = try QMPClient(path: socket, of: process)
        }

        func end() throws {
            try qmp.execute("quit")
            try process.waitForExit()
        }
    }

    private func disk(_ image: String, _ drive: String = "", _ device: String = "") -> [String] {
        ["-drive", "file=\(image),format=raw,if=none,id=hd\(drive)", "-device", "virtio-blk-device,drive=hd\(device)"]
    }

    private func failure(_ words: [String]) throws -> String {
        let process = try ChildProcess([Products.baton, "-nodefaults", "-S", "-m", "4M", "-bios", "none"] + words)
        #expect(try process.waitForExit() == .status(1))
        return process.errors
    }

    @Test("A disk is one VM's alone, unless the command lines say that it is shared or not written")
    func diskOfAnotherVM() throws {
        let directory = try TemporaryDirectory()
        let image = try directory.writeSparse("disk", size: 1 << 20)
        let first = try IdleVM(directory, disk(image))
        let text = try failure(disk(image))
        #expect(text.contains("Failed to get \"write\" lock"), "\(text)")
        #expect(text.contains("Is another process using the image [\(image)]?"))
        #expect(try failure(disk(image, ",readonly=on")).contains("Failed to get shared \"write\" lock"))
        let twice = try failure(
            disk(image) + ["-drive", "file=\(image),format=raw,if=none,id=b", "-device", "virtio-blk-device,drive=b"])
        #expect(twice.contains("lock"))
        try IdleVM(directory, disk(image, ",file.locking=off")).end()
        // A drive that no device uses is not in use.
        try IdleVM(directory, ["-drive", "file=\(image),format=raw,if=none,id=hd"]).end()
        try first.end()

        for words in [disk(image, ",readonly=on"), disk(image, "", ",share-rw=on")] {
            let one = try IdleVM(directory, words)
            try IdleVM(directory, words).end()
            try one.end()
        }
        let node = [
            "-blockdev", "driver=file,node-name=f,filename=\(image)", "-blockdev", "raw,node-name=r,file=f",
            "-device", "virtio-blk-device,drive=r",
        ]
        let second = try IdleVM(directory, node)
        #expect(try failure(node).contains("Failed to get \"write\" lock"))
        try second.end()
    }

    @Test("The locks are QEMU's", .enabled(if: Products.find("qemu-img") != nil, "needs qemu-img"))
    func locksOfQEMU() throws {
        let directory = try TemporaryDirectory()
        let image = try directory.writeSparse("disk", size: 1 << 20)
        let vm = try IdleVM(directory, disk(image))
        func refused(_ command: [String]) throws -> String {
            let process = try ChildProcess(command)
            #expect(try process.waitForExit() == .status(1))
            return process.errors
        }
        let copy = ["-f", "raw", "-O", "raw", image, directory.file("copy")]
        let resize = ["qemu-img", "resize", "-f", "raw", image, "2M"]
        #expect(try refused(["qemu-img", "convert"] + copy).contains("Failed to get shared \"write\" lock"))
        #expect(try refused(resize).contains("Failed to get \"write\" lock"))
        try ChildProcess.run(["qemu-img", "convert", "-U"] + copy)
        try vm.end()
        try ChildProcess.run(resize)
    }

    @Test(
        "A disk that a QEMU process has is refused",
        .enabled(if: Products.find("qemu-storage-daemon") != nil, "needs qemu-storage-daemon"))
    func diskOfQEMU() throws {
        let directory = try TemporaryDirectory()
        let image = try directory.writeSparse("disk", size: 1 << 20)
        let socket = directory.file("nbd")
        let daemon = try ChildProcess([
            "qemu-storage-daemon", "--blockdev", "driver=file,node-name=f,filename=\(image)",
            "--nbd-server", "addr.type=unix,addr.path=\(socket)",
            "--export", "nbd,id=e,node-name=f,writable=on", "--pidfile", directory.file("daemon"),
        ])
        try eventually("the daemon stands; \(daemon.report)") {
            FileManager.default.fileExists(atPath: directory.file("daemon"))
        }
        let text = try failure(disk(image))
        #expect(text.contains("lock\nIs another process using the image [\(image)]?"), "\(text)")
        daemon.signal(SIGTERM)
        try daemon.waitForExit()
        try IdleVM(directory, disk(image)).end()
    }

    // MARK: Updates

    /// Looks at QEMU's byte for a use of the image, again and again, from a thread of its own.
    private final class LockWatch: @unchecked Sendable {
        private let lock = NSLock()
        private var isOver = false
        private var looks = 0
        private var misses = 0
        private let finished = DispatchSemaphore(value: 0)

        init(_ path: String, byte: off_t) throws {
            let fd = open(path, O_RDWR | O_CLOEXEC)
            guard fd >= 0 else { throw TestError.system(path) }
            Thread.detachNewThread { [self] in
                while !lock.withLock({ isOver }) {
                    let isHeld = LockTests.isLocked(fd, byte)
                    lock.withLock {
                        looks += 1
                        if !isHeld { misses += 1 }
                    }
                }
                close(fd)
                finished.signal()
            }
        }

        func end() -> (looks: Int, misses: Int) {
            lock.withLock { isOver = true }
            finished.wait()
            return (looks, misses)
        }
    }

    /// F_OFD_GETLK, which the headers that Swift sees do not name.
    private static func isLocked(_ fd: Int32, _ byte: off_t) -> Bool {
        var range = flock(l_type: Int16(F_WRLCK), l_whence: Int16(SEEK_SET), l_start: byte, l_len: 1, l_pid: 0)
        return fcntl(fd, 36, &range) == 0 && range.l_type != Int16(F_UNLCK)
    }

    @Test("Disk and RAM stay locked, without a gap, over updates, failed updates and trials")
    func locksOverUpdates() throws {
        let directory = try TemporaryDirectory()
        let image = try directory.writeSparse("disk", size: 1 << 20)
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart"] + disk(image))
        let watches = [
            try LockWatch(image, byte: 101), try LockWatch(image, byte: 201), try LockWatch(guest.ramFile, byte: 0),
        ]
        for round in 0..<6 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments, "preflight": round % 2 == 0])
        }
        for _ in 0..<3 { try guest.qmp.execute("cpr-preflight", ["argv": guest.arguments]) }
        #expect(
            refusal { try guest.qmp.execute("cpr-update", ["argv": ["/bin/false"], "preflight": false]) }
                .contains("taken back"))
        try guest.waitForProgress(past: guest.count)
        for (watch, what) in zip(watches, ["write", "shared write", "RAM"]) {
            let (looks, misses) = watch.end()
            #expect(looks > 0 && misses == 0, "\(what): \(misses) of \(looks)")
        }
        #expect(try failure(disk(image)).contains("Failed to get \"write\" lock"))
        try guest.qmp.execute("quit")
        // Once all of it is gone the disk is free.
        let next = try TemporaryDirectory()
        try IdleVM(next, disk(image)).end()
    }

    @Test("A guest keeps the disk that it has when its name has gone to another file")
    func renamedDisk() throws {
        let directory = try TemporaryDirectory()
        let image = try directory.writeSparse("disk", size: 1 << 20)
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart"] + disk(image))
        let moved = directory.file("moved")
        try FileManager.default.moveItem(atPath: image, toPath: moved)
        try directory.writeSparse("disk", size: 2 << 20)
        for _ in 0..<2 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            #expect(try guest.openDescriptors().contains(moved))
            #expect(try !guest.openDescriptors().contains(image))
        }
        #expect(
            guest.process.errors.contains(
                "drive 'hd': '\(image)' is not the file that the guest has open; it keeps the one that it has"))
        try FileManager.default.removeItem(atPath: image)
        try FileManager.default.removeItem(atPath: moved)
        let count = guest.count
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: count)
        try guest.qmp.execute("quit")
    }

    @Test("A drive may get another id, and not another access")
    func changedDrive() throws {
        let directory = try TemporaryDirectory()
        let image = try directory.writeSparse("disk", size: 1 << 20)
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart"] + disk(image))
        let readOnly = guest.arguments.map { $0.replacingOccurrences(of: "id=hd", with: "id=hd,readonly=on") }
        let text = refusal { try guest.qmp.execute("cpr-update", ["argv": readOnly, "preflight": false]) }
        #expect(
            text.contains("drive 'hd' is writable in the CPR state, but read-only on the command line"), "\(text)")
        let renamed = guest.arguments.map { $0.replacingOccurrences(of: "=hd", with: "=other") }
        try guest.qmp.execute("cpr-update", ["argv": renamed])
        try guest.waitForProgress(past: guest.count)
        #expect(try failure(disk(image)).contains("Failed to get \"write\" lock"))
        try guest.qmp.execute("quit")
    }

    // MARK: RAM

    @Test("A RAM file is one VM's alone, unless both say otherwise")
    func ramFileOfAnotherVM() throws {
        let directory = try TemporaryDirectory()
        let ram = try directory.writeSparse("ram", size: 4 << 20)
        func words(_ more: String) -> [String] {
            [
                "-object", "memory-backend-file,id=ram,size=4M,share=on,mem-path=\(ram)\(more)",
                "-machine", "virt,memory-backend=ram",
            ]
        }
        let first = try IdleVM(directory, words(""))
        let text = try failure(words(""))
        #expect(text.contains("backing store \(ram) is locked: another VMM has its guest's RAM there"), "\(text)")
        // A private copy of it is nobody's loss.
        try IdleVM(
            directory,
            ["-object", "memory-backend-file,id=ram,size=4M,mem-path=\(ram)", "-machine", "virt,memory-backend=ram"]
        ).end()
        try first.end()
        let one = try IdleVM(directory, words(",locking=off"))
        try IdleVM(directory, words(",locking=off")).end()
        try one.end()
        try IdleVM(directory, words("")).end()
    }
}
