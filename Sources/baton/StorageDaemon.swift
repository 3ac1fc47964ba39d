import BatonRuntime
import CBaton
import Chardev
import Glibc

/// Disks in other formats than raw: QEMU's `qemu-storage-daemon`, which the VMM starts for each, has the image open and
/// serves it to the guest by vhost-user. The VMM has no code for a format.
enum StorageDaemon {
    /// Queues that a device may have.
    private static let queues = 16
    private static let reconnectMilliseconds = 100
    /// The exported node of a `-drive`.
    static let root = "disk"

    /// What a daemon is to serve.
    struct Disk {
        /// Of the `-drive` or `-blockdev`.
        let id: String
        let filename: String
        let format: String
        let readOnly: Bool
        /// The arguments of its `--blockdev`, given the daemon's directory.
        let nodes: (_ directory: String) -> [String]
        /// The node that is exported.
        let root: String
        /// Files that are written, for a guest that writes; nil when that cannot be known, as one names others.
        let written: [String]?
        /// Makes what the nodes need in the daemon's new directory.
        var prepare: (_ directory: String) throws(VMMError) -> Void = { _ in }
    }

    /// Starts a daemon, or goes on with the one that the process before has started, and makes its disk known.
    /// - Throws: what the daemon says of the image.
    static func serve(_ disk: Disk, vm: VirtualMachine) throws(VMMError) {
        try vm.requireFreeDisk(disk.id)
        var program = HelperProcess.Program(
            name: "qemu-storage-daemon", purpose: "drive '\(disk.id)'",
            remedy: "An image of the format '\(disk.format)' needs it (Debian's package qemu-system-common): "
                + "install it, or convert the image with 'qemu-img convert -O raw'."
        ) { directory in
            disk.nodes(directory).flatMap { ["--blockdev", $0] } + [
                "--export", export(disk, directory), "--pidfile", "\(directory)/pid",
            ]
        }
        program.sandbox =
            disk.readOnly ? .writes([]) : disk.written.map { .writes($0) } ?? .writesAnything
        program.errorPrefixes =
            ["qemu-storage-daemon: "] + disk.nodes("").map { "--blockdev \($0): " }
        let helper = try HelperProcess("drive-\(disk.id)", program, vm: vm, prepare: disk.prepare)
        let chardev = "storage-daemon-\(disk.id)"
        let options = try KeyValueOptions("")
        options.set("backend", "socket")
        options.set("id", chardev)
        options.set("path", helper.socketPath)
        options.set("reconnect-ms", "\(reconnectMilliseconds)")
        try ChardevFactory.make(options, vm: vm)
        try vm.add(
            ServedDisk(
                id: disk.id, filename: disk.filename, format: disk.format, readOnly: disk.readOnly, chardev: chardev))
    }

    private static func export(_ disk: Disk, _ directory: String) -> String {
        let export: JSON = [
            "type": "vhost-user-blk", "id": "export", "node-name": .string(disk.root),
            "writable": .bool(!disk.readOnly),
            // What is answered outlives the daemon: its own cache of a format's tables would be lost with it, while the
            // guest goes on and believes in it.
            "writethrough": true, "num-queues": JSON(queues),
            "addr": ["type": "unix", "path": .string("\(directory)/socket")],
        ]
        return export.text()
    }

    // MARK: Temporary overlays

    /// Nanoseconds that `qemu-img` may take: it opens images, and writes some KiB.
    private static let imageToolLimit: Int64 = 20_000_000_000

    /// Runs `qemu-img` to its end.
    private static func runImageTool(_ arguments: [String], in directory: String) throws(VMMError) {
        let words = CStringArray(["qemu-img"] + arguments)
        var pid: pid_t = 0
        let code = withExtendedLifetime(words) { cbaton_spawn(words.pointers, nil, 0, 2, &pid) }
        guard code == 0 else {
            throw .system(
                "cannot execute 'qemu-img'", errno: code,
                hint: "A temporary overlay (snapshot=on) needs it: install Debian's package qemu-utils.")
        }
        let process = OwnedFD(adopting: cbaton_pidfd_open(pid))
        let isLate = process.raw >= 0 && !FD.awaitInput(process.raw, until: EventLoop.now + imageToolLimit)
        if isLate { kill(pid, SIGKILL) }
        var status: Int32 = 0
        let ended = retryingInterrupts { waitpid(pid, &status, 0) }
        if isLate {
            throw VMMError(
                "qemu-img could not make a temporary overlay in '\(directory)' within \(imageToolLimit / 1_000_000) ms",
                hint: "It has no end where images are each other's backing files.")
        }
        guard ended == pid, status == 0 else {
            throw VMMError(
                "qemu-img could not make a temporary overlay in '\(directory)'",
                hint: "It has said why. Where there is room can be said with TMPDIR.")
        }
    }

    /// An image of what the guest writes, over one that stays as it is; it goes with the daemon's directory.
    static func makeOverlay(of image: String, format: String, in directory: String) throws(VMMError) {
        try runImageTool(["create", "-q", "-f", "qcow2", "-b", image, "-F", format, overlay(directory)], in: directory)
    }

    static func overlay(_ directory: String) -> String { "\(directory)/overlay.qcow2" }
}
