import Foundation
import ProcessSupport

/// The processes that the peers' demonstration gives its guest: a disk and a shared directory by
/// vhost-user, as Debian has them.
final class BackEnds {
    let diskSocket: String
    let shareSocket: String
    /// The disk's image.
    let disk: String
    /// The directory that is shared.
    let share: String
    private let storage: BackgroundProcess
    private let files: BackgroundProcess

    /// virtiofsd is in no directory of PATH: the one in Rust, of Debian 13, and QEMU's own, of Debian 12.
    private static let fileSystemDaemons = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"]

    /// What of this machine's is missing, with its package; empty if nothing is.
    static func missing() -> [String] {
        var missing: [String] = []
        if Tool.find("qemu-storage-daemon") == nil { missing.append("qemu-storage-daemon (qemu-system-common)") }
        if fileSystemDaemon == nil { missing.append("virtiofsd (virtiofsd; in Debian 12 qemu-system-common)") }
        return missing
    }

    private static var fileSystemDaemon: String? { fileSystemDaemons.first { Tool.find($0) != nil } }

    init(directory: TemporaryDirectory, diskQueues: Int) throws {
        diskSocket = directory.file("disk.sock")
        shareSocket = directory.file("share.sock")
        disk = directory.file("disk.img")
        share = directory.file("share")
        guard let daemon = Self.fileSystemDaemon else { throw Failure("virtiofsd was not found") }
        try FileManager.default.createDirectory(atPath: share, withIntermediateDirectories: false)
        _ = FileManager.default.createFile(atPath: disk, contents: nil)
        guard truncate(disk, off_t(PeersWork.diskSize)) == 0 else { throw Failure("cannot make the image \(disk)") }
        storage = try BackgroundProcess(
            [
                "qemu-storage-daemon", "--blockdev", "driver=file,node-name=file,filename=\(disk)",
                "--blockdev", "driver=raw,node-name=disk,file=file", "--export",
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=\(diskQueues),"
                    + "addr.type=unix,addr.path=\(diskSocket)",
            ])
        files = try BackgroundProcess(
            [daemon, "--socket-path=\(shareSocket)"]
                + (daemon.hasPrefix("/usr/libexec")
                    ? ["--shared-dir", share, "--sandbox=chroot"] : ["-o", "source=\(share)", "-o", "sandbox=chroot"]))
        for (name, socket, process) in [
            ("qemu-storage-daemon", diskSocket, storage), ("virtiofsd", shareSocket, files),
        ] {
            let deadline = Clock.now + 120
            while try !ListeningSocket.exists(at: socket) {
                guard process.isRunning, Clock.now < deadline else {
                    throw Failure("\(name) does not listen: \(process.said)")
                }
                usleep(10_000)
            }
        }
    }

    /// The sockets of both: the same ones mean that no connection was made anew, nor lost.
    func connections() throws -> Set<String> {
        guard storage.isRunning else { throw Failure("qemu-storage-daemon has ended: \(storage.said)") }
        guard files.isRunning else { throw Failure("virtiofsd has ended: \(files.said)") }
        return try storage.sockets().union(files.sockets())
    }
}
