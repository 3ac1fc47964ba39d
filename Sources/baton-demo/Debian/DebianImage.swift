import Foundation
import ProcessSupport

/// A disk with Debian 13 for riscv64 that starts by UEFI, as Debian's cloud images do: with GRUB, Debian's kernel,
/// systemd, cloud-init and an SSH server.
///
/// Debian's archive has packages and no images, so it is made of them. They are unpacked on this machine, and set up by
/// their own scripts in a guest under Baton, as nothing else here executes riscv64's programs. That takes some minutes,
/// once: the disk is kept in the cache.
struct DebianImage {
    private static let packages = [
        "?essential", "init", "systemd", "udev", "dbus", "kmod", "netbase", "iproute2",
        "linux-image-riscv64", "initramfs-tools", "grub-efi-riscv64", "dosfstools", "e2fsprogs", "zstd",
        "busybox-static",
        "openssh-server", "cloud-init", "netplan.io", "fio",
    ]
    private static let megabyte = 1 << 20
    private static let diskMegabytes = 4096
    /// Where the partitions are: one for the firmware, and the root behind.
    private static let firmwareStart = 1
    private static let rootStart = 65
    /// What the guest needs to have its disk: the package of the kernel has no initrd. The one for ext4's checksums is in no
    /// list of what ext4 needs.
    private static let modules = [
        "virtio_mmio", "virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "vfat", "nls_cp437", "nls_ascii",
        "nls_iso8859-1", "nls_utf8",
    ]
    private static let setupSeconds = 3600.0

    private let cache: String
    private let vmm: String
    private let progress: Progress
    private let sources: String

    init(cache: String, vmm: String, progress: Progress) throws {
        try FileManager.default.createDirectory(atPath: cache, withIntermediateDirectories: true)
        self.cache = URL(fileURLWithPath: cache).resolvingSymlinksInPath().path
        self.vmm = vmm
        self.progress = progress
        sources = try GuestBuilder().sources + "/debian"
    }

    private var place: String { "\(cache)/debian-13-disk-riscv64.img" }

    /// What is missing to make the disk, with packages; empty if nothing is, or there is a disk.
    func missing() -> [String] {
        if FileManager.default.fileExists(atPath: place) { return [] }
        var missing = [("depmod", "kmod"), ("sfdisk", "fdisk"), ("mke2fs", "e2fsprogs"), ("xz", "xz-utils")]
            .filter { Tool.find($0.0) == nil }.map { "\($0.0) (\($0.1))" }
        if geteuid() != 0 { missing.append("root, as the disk's files belong to several users") }
        return missing
    }

    /// Copies the disk, which is made if there is none, without using space for what is empty.
    func copy(to path: String) throws {
        if !FileManager.default.fileExists(atPath: place) { try make() }
        try Tool.require(["cp", "--sparse=always", "--reflink=auto", place, path])
    }

    // MARK: Making it

    private func make() throws {
        let missing = missing()
        guard missing.isEmpty else { throw Failure("to make a disk with Debian: " + missing.joined(separator: ", ")) }
        let scratch = try TemporaryDirectory(prefix: "\(cache)/debian-disk")
        let root = scratch.file("root")
        let installer = try DebianInstaller(cache: cache)
        let archive = try installer.suiteIndex(directory: scratch.file("apt")) { progress.say($0) }
        progress.say("downloading Debian's packages")
        let files = try archive.apt.downloadWithDependencies(Self.packages)
        progress.say("unpacking \(files.count) packages")
        try Tool.require(["sh", "\(sources)/unpack.sh", root] + files)
        try FileManager.default.removeItem(atPath: archive.directory)
        let release = try kernelRelease(in: root)
        try Tool.require(["depmod", "-b", root, release])
        let initrd = try setupInitrd(root: root, release: release, scratch: scratch)
        let kernel = scratch.file("kernel")
        try FileManager.default.copyItem(atPath: "\(root)/boot/vmlinux-\(release)", toPath: kernel)
        try FileManager.default.copyItem(atPath: "\(sources)/configure.sh", toPath: "\(root)/root/configure.sh")
        let disk = try scratch.writeSparse("disk.img", size: Self.diskMegabytes * Self.megabyte)
        try partition(disk, root: root)
        try FileManager.default.removeItem(atPath: root)
        try setUp(disk: disk, kernel: kernel, initrd: initrd, directory: scratch)
        try FileManager.default.moveItem(atPath: disk, toPath: place)
    }

    private func kernelRelease(in root: String) throws -> String {
        let releases = try FileManager.default.contentsOfDirectory(atPath: "\(root)/usr/lib/modules")
        guard releases.count == 1 else { throw Failure("\(releases.count) kernels were unpacked, not one") }
        return releases[0]
    }

    /// Makes the partitions, and the root's file system with all files in it.
    private func partition(_ disk: String, root: String) throws {
        let (first, second) = (Self.firmwareStart * Self.megabyte / 512, Self.rootStart * Self.megabyte / 512)
        let table = """
            label: gpt
            start=\(first), size=\(second - first), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
            start=\(second), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root

            """
        let result = try Tool.run(["sfdisk", "--quiet", disk], input: Data(table.utf8))
        guard result.status == 0 else { throw Failure("sfdisk: \(result.reason)") }
        // The table's copy is in the last sectors.
        let size = Self.diskMegabytes - Self.rootStart - 1
        try Tool.require([
            "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", root, "-E",
            "offset=\(Self.rootStart * Self.megabyte)", disk, "\(size)M",
        ])
    }

    /// What the guest starts from that sets the packages up.
    private func setupInitrd(root: String, release: String, scratch: TemporaryDirectory) throws -> String {
        var archive = CpioArchive()
        archive.addDirectory("bin")
        archive.addDirectory("modules")
        func contents(_ path: String) throws -> Data { try Data(contentsOf: URL(fileURLWithPath: path)) }
        archive.addFile("init", mode: 0o755, contents: try contents("\(sources)/init.sh"))
        archive.addFile("bin/busybox", mode: 0o755, contents: try contents("\(root)/usr/bin/busybox"))
        let files = try moduleFiles(in: "\(root)/usr/lib/modules/\(release)")
        for file in files {
            // busybox unpacks no xz.
            archive.addFile("modules/\(Self.name(file)).ko", mode: 0o644, contents: try plain(file))
        }
        let order = files.map { Self.name($0) + ".ko\n" }.joined()
        archive.addFile("modules/order", mode: 0o644, contents: Data(order.utf8))
        return try scratch.write("setup-initrd", archive.finished())
    }

    /// Of `Self.modules` and all that they need, each after what it needs. What the kernel has built in is left out.
    private func moduleFiles(in directory: String) throws -> [String] {
        var needs: [String: [String]] = [:]
        for line in try String(contentsOfFile: "\(directory)/modules.dep", encoding: .utf8).split(separator: "\n") {
            let parts = line.split(separator: ":", maxSplits: 1).map(String.init)
            guard parts.count == 2 || line.hasSuffix(":") else { continue }
            needs[parts[0]] = parts.count < 2 ? [] : parts[1].split(separator: " ").map(String.init)
        }
        var order: [String] = []
        func add(_ file: String) {
            guard !order.contains(file) else { return }
            for other in (needs[file] ?? []).reversed() { add(other) }
            order.append(file)
        }
        for module in Self.modules {
            if let file = needs.keys.first(where: { Self.name($0) == module.replacingOccurrences(of: "-", with: "_") })
            {
                add(file)
            }
        }
        return order.map { "\(directory)/\($0)" }
    }

    private static func name(_ file: String) -> String {
        let last = file.split(separator: "/").last ?? ""
        return last.prefix { $0 != "." }.replacingOccurrences(of: "-", with: "_")
    }

    private func plain(_ file: String) throws -> Data {
        guard file.hasSuffix(".xz") else { return try Data(contentsOf: URL(fileURLWithPath: file)) }
        return try Tool.require(["xz", "-dc", file]).output
    }

    /// Has the packages' scripts run, in a guest.
    private func setUp(disk: String, kernel: String, initrd: String, directory: TemporaryDirectory) throws {
        let start = Clock.now
        let session = try Session(
            arguments: [
                vmm, "-name", "baton-demo", "-machine", "virt", "-m", "1G", "-kernel", kernel, "-initrd", initrd,
                "-append", "console=ttyS0 loglevel=4", "-drive", "file=\(disk),format=raw,if=none,id=hd,cache=unsafe",
                "-device", "virtio-blk-device,drive=hd", "-device", "virtio-rng-device", "-nodefaults", "-nographic",
                "-serial", "stdio", "-monitor", "none",
            ], socketPath: "", directory: directory.path)
        let console = session.console
        var isDone = false
        console.onLine = { if $0.contains("baton-debian: done") { isDone = true } }
        session.onWait = { [progress] in
            progress.update("setting Debian up, \(Int(Clock.now - start)) s: \(console.recentLines.last ?? "")")
        }
        progress.say("setting Debian up in a guest, which takes some minutes")
        do {
            try session.wait(for: "end of Debian's setup", seconds: Self.setupSeconds) { isDone }
        } catch {
            let log = "\(cache)/debian-disk.log"
            try? FileManager.default.removeItem(atPath: log)
            try? FileManager.default.copyItem(atPath: directory.file("console.log"), toPath: log)
            throw Failure("\(error)\nall of what it said is in \(log)")
        }
        try session.waitForEnd()
        progress.say(String(format: "Debian is set up after %.0f s", Clock.now - start))
    }
}
