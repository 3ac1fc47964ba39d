import Foundation
import TestSupport
import Testing

/// Debian's disk back end: a real process that knows nothing of updates.
@Suite(
    "qemu-storage-daemon", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"),
    .enabled(if: Daemon.storageProgram != nil, "needs qemu-storage-daemon"))
struct StorageDaemonTests {
    /// Has `body` test a guest that works on a disk of the daemon's.
    private func withDisk(
        queues: Int = 1, program: [String]? = Daemon.storageProgram, chardev: String = "",
        memory: String = "memory-backend-memfd",
        extra: [String] = ["-cpr-enable", "restart"], _ body: (Daemon, VhostUserGuest) throws -> Void
    ) throws {
        let directory = try TemporaryDirectory()
        let daemon = try Daemon.storage(directory, queues: queues, program: program)
        let guest = try VhostUserGuest(
            "blk", socket: daemon.socket, in: directory, queues: queues, chardev: chardev, memory: memory, extra: extra)
        try guest.waitForProgress()
        try body(daemon, guest)
        daemon.kill()
    }

    @Test("serves on over twenty updates under load, on any number of queues", arguments: [1, 4])
    func updates(_ queues: Int) throws {
        try withDisk(queues: queues) { daemon, guest in
            let connections = try daemon.sockets()
            for _ in 0..<20 {
                try guest.update()
                try guest.waitForProgress()
            }
            #expect(try daemon.sockets() == connections)
            try guest.end()
        }
    }

    @Test("serves a guest that is reset, before and after an update, on the same connection", arguments: [1, 4])
    func reset(_ queues: Int) throws {
        try withDisk(queues: queues, servesAfterReset)
    }

    @Test(
        "tells the driver of a disk's new size, after an update too",
        .enabled(if: Daemon.resizingStorageProgram != nil, "needs qemu-storage-daemon 8 or later"))
    func resize() throws {
        try withDisk(program: Daemon.resizingStorageProgram) { _, guest in
            let monitor = try QMPClient(path: guest.directory.file("storage.qmp"))
            for megabytes in [32, 64, 48] {
                try monitor.execute("block_resize", ["node-name": "disk", "size": megabytes << 20])
                try eventually("the driver is told of \(megabytes) MiB") {
                    guest.serial.contains("config: \(megabytes << 11)\n")
                }
                try guest.waitForProgress()
                try guest.update()
                try guest.waitForProgress()
            }
            try guest.end()
        }
    }

    @Test("can be killed and started again", arguments: [1, 4])
    func restart(_ queues: Int) throws {
        try withDisk(queues: queues, chardev: ",reconnect-ms=50") { first, guest in
            var daemon = first
            for round in 0..<4 {
                daemon.kill()
                // Also with an update while there is none.
                if round == 2 { try guest.update() }
                daemon = try Daemon.storage(guest.directory, queues: queues)
                try guest.waitForProgress()
            }
            try guest.end()
            daemon.kill()
        }
    }

    @Test("with fewer queues than the device is refused")
    func tooFewQueues() throws {
        let directory = try TemporaryDirectory()
        let daemon = try Daemon.storage(directory, queues: 2)
        let vmm = try ChildProcess(
            try VhostUserGuest.arguments("blk", socket: daemon.socket, in: directory, queues: 4, extra: []))
        #expect(try vmm.waitForExit() == .status(1))
        #expect(vmm.errors.contains("The maximum number of queues supported by the backend is 2"), "\(vmm.errors)")
    }

    @Test("a checkpoint of the reboot mode goes on with the disk where it stopped")
    func reboot() throws {
        let files = try TemporaryDirectory()
        let memory = "memory-backend-file,mem-path=\(try files.writeSparse("ram", size: 16 << 20))"
        try withDisk(memory: memory, extra: ["-cpr-enable", "reboot"]) { daemon, old in
            let checkpoint: [String: Any] = ["filename": files.file("checkpoint"), "mode": "reboot"]
            try old.qmp.execute("cpr-save", checkpoint)
            // A save can be taken back.
            try old.qmp.execute("cont")
            try old.waitForProgress()
            try old.qmp.execute("cpr-save", checkpoint)
            let done = try old.count()
            try old.end()

            let new = try VhostUserGuest(
                "blk", socket: daemon.socket, in: old.directory, memory: memory, extra: ["-cpr-enable", "reboot", "-S"])
            try new.qmp.execute("cpr-load", checkpoint)
            try new.waitForProgress()
            #expect(try new.count() > done)
            try new.end()
        }
    }
}

/// Debian's file system back ends, QEMU's old one and its successor.
@Suite(
    "virtiofsd", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"),
    .enabled(if: getuid() == 0, "virtiofsd needs root for its sandbox"))
struct FileSystemDaemonTests {
    enum Kind: String, Sendable { case inC, inRust }

    private func withShare(_ kind: Kind, _ body: (Daemon, VhostUserGuest) throws -> Void) throws {
        let directory = try TemporaryDirectory()
        let daemon = try Daemon.fileSystem(directory, rust: kind == .inRust)
        let guest = try VhostUserGuest(
            "fs", socket: daemon.socket, in: directory, extra: ["-cpr-enable", "restart", "-cpr-enable", "reboot"])
        try guest.waitForProgress()
        #expect(guest.serial.hasPrefix("hello: from the host\n"))
        try body(daemon, guest)
        daemon.kill()
    }

    private func servesOn(_ kind: Kind) throws {
        try withShare(kind) { daemon, guest in
            let connections = try daemon.sockets()
            for _ in 0..<10 {
                try guest.update()
                try guest.waitForProgress()
            }
            #expect(try daemon.sockets() == connections)
            // The files that the guest has open are known to this virtiofsd only.
            do {
                try guest.qmp.execute("cpr-save", ["filename": guest.directory.file("checkpoint"), "mode": "reboot"])
                Issue.record("the save was not refused")
            } catch let refusal as QMPClient.Refusal {
                #expect(
                    refusal.text.contains("State blocked by non-migratable device 'virtio-mmio.7/vhost-user-fs'"),
                    "\(refusal)")
            }
            try guest.waitForProgress()
            try guest.end()
        }
    }

    @Test("in C serves on over updates under load", .enabled(if: Daemon.virtiofsdInC != nil, "needs QEMU's virtiofsd"))
    func updatesInC() throws { try servesOn(.inC) }

    @Test("in C serves a guest that is reset", .enabled(if: Daemon.virtiofsdInC != nil, "needs QEMU's virtiofsd"))
    func resetInC() throws { try withShare(.inC, servesAfterReset) }

    @Test("in Rust serves on over updates under load", .enabled(if: Daemon.virtiofsdInRust != nil, "needs virtiofsd"))
    func updatesInRust() throws { try servesOn(.inRust) }

    @Test("in Rust serves a guest that is reset", .enabled(if: Daemon.virtiofsdInRust != nil, "needs virtiofsd"))
    func resetInRust() throws { try withShare(.inRust, servesAfterReset) }
}

/// Has a guest reset and updated in turn, which its back end must not notice in its connections.
private func servesAfterReset(_ daemon: Daemon, _ guest: VhostUserGuest) throws {
    let connections = try daemon.sockets()
    for _ in 0..<3 {
        try guest.reset()
        try guest.update()
        try guest.waitForProgress()
    }
    #expect(try daemon.sockets() == connections)
    try guest.end()
}
