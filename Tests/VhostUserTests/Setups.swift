import Foundation
import TestSupport

/// Has `body` test a guest that works on a fake disk, and ends the disk after that.
/// - Parameters:
///   - connects: the disk connects to the VMM, which listens, instead of the other way round.
///   - chardev: more options of the chardev.
///   - intercept: takes messages instead of the disk, see `FakeDisk`.
///   - extra: more arguments of the VMM.
///   - waits: begin when the guest is at work.
func withFakeDisk(
    tracksRequests: Bool = false, connects: Bool = false, chardev: String = "", waits: Bool = true,
    extra: [String] = ["-cpr-enable", "restart"],
    intercept: @escaping (FakeBackEnd, WireMessage, Int32) -> Bool = { _, _, _ in false },
    _ body: (FakeDisk, VhostUserGuest) throws -> Void
) throws {
    let directory = try TemporaryDirectory()
    let disk = try FakeDisk(directory, tracksRequests: tracksRequests, connects: connects, intercept: intercept)
    defer { disk.end() }
    let guest = try VhostUserGuest(
        "blk", socket: disk.path, in: directory, chardev: (connects ? ",server=on" : "") + chardev, extra: extra)
    if waits { try guest.waitForProgress() }
    try body(disk, guest)
}

/// A back end of Debian's: a process that knows nothing of updates. Is killed when the object goes.
final class Daemon {
    let process: ChildProcess
    let socket: String

    private init(_ arguments: [String], socket: String) throws {
        unlink(socket)
        self.socket = socket
        let process = try ChildProcess(arguments)
        self.process = process
        do {
            try eventually("\(arguments[0]) listens; \(process.report)") {
                guard process.isRunning else { throw TestError("\(arguments[0]) has ended: \(process.errors)") }
                return try ListeningSocket.exists(at: socket)
            }
        } catch {
            process.signal(SIGKILL)
            throw error
        }
    }

    deinit { kill();  }

    func kill() {
        process.signal(SIGKILL)
        _ = try? process.waitForExit()
    }

    /// Its sockets, by inode: the same ones mean that nobody connected anew.
    func sockets() throws -> [String] {
        let directory = "/proc/\(process.pid)/fd"
        return try FileManager.default.contentsOfDirectory(atPath: directory)
            .compactMap { try? FileManager.default.destinationOfSymbolicLink(atPath: "\(directory)/\($0)") }
            .filter { $0.hasPrefix("socket:") }.sorted()
    }

    // MARK: qemu-storage-daemon

    static let storageProgram = Products.find("qemu-storage-daemon").map { [$0] }
    /// One that tells of a disk's new size, as QEMU's does from version 8 on: this machine's, or one in the cache.
    static let resizingStorageProgram: [String]? = {
        if let storageProgram, let text = try? ChildProcess.run(storageProgram + ["--version"]),
            let version = text.split(separator: " ").first(where: { $0.first?.isNumber == true }),
            let major = version.split(separator: ".").first.flatMap({ Int($0) }), major >= 8
        {
            return storageProgram
        }
        return Products.laterDebian("qemu-storage-daemon")
    }()

    /// A disk of 16 MiB, with what it had before. Its QMP socket is `storage.qmp`.
    static func storage(
        _ directory: TemporaryDirectory, queues: Int = 1, program: [String]? = storageProgram
    ) throws -> Daemon {
        guard let program else { throw TestError("there is no qemu-storage-daemon") }
        let image = directory.file("disk"), socket = directory.file("disk.sock"), qmp = directory.file("storage.qmp")
        if !FileManager.default.fileExists(atPath: image) { _ = try directory.writeSparse("disk", size: 16 << 20) }
        return try Daemon(
            program + [
                "--chardev", "socket,id=qmp,path=\(qmp),server=on,wait=off", "--monitor", "chardev=qmp",
                "--blockdev", "driver=file,node-name=file,filename=\(image)",
                "--blockdev", "driver=raw,node-name=disk,file=file", "--export",
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=\(queues),"
                    + "addr.type=unix,addr.path=\(socket)",
            ], socket: socket)
    }

    // MARK: virtiofsd

    /// QEMU's own, in C, of Debian 12.
    static let virtiofsdInC = installed("/usr/lib/qemu/virtiofsd")
    /// The one in Rust, of later Debian: this machine's, or one in the cache.
    static let virtiofsdInRust = installed("/usr/libexec/virtiofsd") ?? Products.laterDebian("virtiofsd")

    private static func installed(_ path: String) -> [String]? {
        FileManager.default.isExecutableFile(atPath: path) ? [path] : nil
    }

    /// Serves the directory `share`, which has the file `hello`.
    static func fileSystem(_ directory: TemporaryDirectory, rust: Bool) throws -> Daemon {
        guard let command = rust ? virtiofsdInRust : virtiofsdInC else { throw TestError("there is no virtiofsd") }
        let socket = directory.file("fs.sock"), share = directory.file("share")
        try FileManager.default.createDirectory(atPath: share, withIntermediateDirectories: true)
        try Data("from the host\n".utf8).write(to: URL(fileURLWithPath: "\(share)/hello"))
        let options =
            rust
            ? ["--shared-dir", share, "--sandbox=chroot"] : ["-o", "source=\(share)", "-o", "sandbox=chroot"]
        return try Daemon(command + ["--socket-path=\(socket)"] + options, socket: socket)
    }
}
