import Foundation
import TestSupport
import Testing

/// Debian's back ends: real processes that know nothing of updates.
@Suite("vhost-user back ends of Debian", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct BackendTests {
    static let storageDaemon = Products.find("qemu-storage-daemon")
    static let fileSystemDaemon = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"]
        .first { FileManager.default.isExecutableFile(atPath: $0) }

    private func startDisk(_ directory: TemporaryDirectory) throws -> ChildProcess {
        let socket = directory.file("disk.sock")
        unlink(socket)
        let daemon = try ChildProcess([
            try #require(Self.storageDaemon), "--blockdev", "driver=file,node-name=file,filename=\(directory.file("disk"))",
            "--blockdev", "driver=raw,node-name=disk,file=file",
            "--export", "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=\(socket)",
        ])
        try eventually("qemu-storage-daemon listens") { FileManager.default.fileExists(atPath: socket) }
        return daemon
    }

    /// The sockets of a process, by inode: the same ones mean that nobody
    /// connected anew.
    private func sockets(_ process: ChildProcess) throws -> [String] {
        let directory = "/proc/\(process.pid)/fd"
        return try FileManager.default.contentsOfDirectory(atPath: directory)
            .compactMap { try? FileManager.default.destinationOfSymbolicLink(atPath: "\(directory)/\($0)") }
            .filter { $0.hasPrefix("socket:") }.sorted()
    }

    @Test(
        "qemu-storage-daemon serves on over twenty updates under load",
        .enabled(if: storageDaemon != nil, "needs qemu-storage-daemon"))
    func disk() throws {
        let directory = try TemporaryDirectory()
        _ = try directory.writeSparse("disk", size: 16 << 20)
        let daemon = try startDisk(directory)
        defer { daemon.signal(SIGKILL) }
        let guest = try VhostUserGuest("blk", socket: directory.file("disk.sock"), in: directory)
        try guest.waitForProgress()
        let connections = try sockets(daemon)
        for _ in 0..<20 {
            try guest.update()
            try guest.waitForProgress()
        }
        #expect(try sockets(daemon) == connections)
        try guest.end()
    }

    @Test(
        "qemu-storage-daemon can be killed and started again",
        .enabled(if: storageDaemon != nil, "needs qemu-storage-daemon"))
    func newDisk() throws {
        let directory = try TemporaryDirectory()
        _ = try directory.writeSparse("disk", size: 16 << 20)
        var daemon = try startDisk(directory)
        defer { daemon.signal(SIGKILL) }
        let guest = try VhostUserGuest(
            "blk", socket: directory.file("disk.sock"), in: directory, chardev: ",reconnect-ms=50")
        for round in 0..<4 {
            try guest.waitForProgress()
            daemon.signal(SIGKILL)
            _ = try daemon.waitForExit()
            // Also with an update while there is none.
            if round == 2 { try guest.update() }
            daemon = try startDisk(directory)
        }
        try guest.waitForProgress()
        try guest.end()
    }

    @Test(
        "a checkpoint of the reboot mode goes on with the disk where it stopped",
        .enabled(if: storageDaemon != nil, "needs qemu-storage-daemon"))
    func reboot() throws {
        let directory = try TemporaryDirectory()
        _ = try directory.writeSparse("disk", size: 16 << 20)
        let memory = "memory-backend-file,mem-path=\(try directory.writeSparse("ram", size: 16 << 20))"
        let socket = directory.file("disk.sock")
        let daemon = try startDisk(directory)
        defer { daemon.signal(SIGKILL) }
        let checkpoint: [String: Any] = ["filename": directory.file("checkpoint"), "mode": "reboot"]
        let old = try VhostUserGuest("blk", socket: socket, in: directory, memory: memory, extra: ["-cpr-enable", "reboot"])
        try old.waitForProgress()
        try old.qmp.execute("cpr-save", checkpoint)
        // A save can be taken back.
        try old.qmp.execute("cont")
        try old.waitForProgress()
        try old.qmp.execute("cpr-save", checkpoint)
        let done = try old.count()
        try old.end()

        let new = try VhostUserGuest(
            "blk", socket: socket, in: directory, memory: memory, extra: ["-cpr-enable", "reboot", "-S"])
        try new.qmp.execute("cpr-load", checkpoint)
        try new.waitForProgress()
        #expect(try new.count() > done)
        try new.end()
    }

    @Test(
        "virtiofsd serves on over updates under load",
        .enabled(if: fileSystemDaemon != nil && getuid() == 0, "needs virtiofsd, and root for its sandbox"))
    func fileSystem() throws {
        let directory = try TemporaryDirectory()
        let socket = directory.file("fs.sock")
        let share = directory.file("share")
        try FileManager.default.createDirectory(atPath: share, withIntermediateDirectories: false)
        try Data("from the host\n".utf8).write(to: URL(fileURLWithPath: "\(share)/hello"))
        let path = try #require(Self.fileSystemDaemon)
        // The one in Rust, of later Debian, has other options than QEMU's.
        let options = path.hasPrefix("/usr/libexec")
            ? ["--shared-dir", share, "--sandbox=chroot"] : ["-o", "source=\(share)", "-o", "sandbox=chroot"]
        let daemon = try ChildProcess([path, "--socket-path=\(socket)"] + options)
        defer { daemon.signal(SIGKILL) }
        try eventually("virtiofsd listens: \(daemon.errors)") { FileManager.default.fileExists(atPath: socket) }
        let guest = try VhostUserGuest(
            "fs", socket: socket, in: directory, extra: ["-cpr-enable", "restart", "-cpr-enable", "reboot"])
        try guest.waitForProgress()
        #expect(guest.serial.hasPrefix("hello: from the host\n"))
        for _ in 0..<10 {
            try guest.update()
            try guest.waitForProgress()
        }
        // The files that the guest has open are known to this virtiofsd only.
        do {
            try guest.qmp.execute("cpr-save", ["filename": directory.file("checkpoint"), "mode": "reboot"])
            Issue.record("the save was not refused")
        } catch let refusal as QMPClient.Refusal {
            #expect(refusal.text.contains("State blocked by non-migratable device 'virtio-mmio.7/vhost-user-fs'"), "\(refusal)")
        }
        try guest.waitForProgress()
        try guest.end()
    }
}
