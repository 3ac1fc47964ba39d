import Foundation
import ProcessSupport

/// Debian 13's kernel and installer initrd for riscv64, from Debian's archive,
/// with the one kernel module that the initrd lacks: the installer fetches
/// virtio_blk from the network, and so do we.
///
/// apt does the downloads and checks the signatures, with lists, cache and
/// sources of its own under the cache directory: the machine's stay as they are.
struct DebianInstaller {
    struct Files {
        let kernel: String
        let initrd: String
        let diskModule: String
    }

    private static let package = "debian-installer-13-netboot-riscv64"
    private static let suite = "trixie"
    private static let keyrings = "/usr/share/keyrings"

    private let cache: String
    private var directory: String { cache + "/debian-13-riscv64" }
    private var aptDirectory: String { cache + "/apt" }

    init(cache: String) throws {
        try FileManager.default.createDirectory(atPath: cache, withIntermediateDirectories: true)
        self.cache = URL(fileURLWithPath: cache).resolvingSymlinksInPath().path
    }

    /// The files, from the cache or downloaded into it.
    func obtain(progress: (String) -> Void) throws -> Files {
        if let files = cached() { return files }
        let archive = try PrivateApt.archiveAddress()
        progress("downloading Debian's riscv64 kernel and installer from \(archive)")
        let keyring = try trixieKeyring(archive: archive)
        let apt = try PrivateApt(
            directory: "\(aptDirectory)/\(Self.suite)", archive: archive, suite: Self.suite,
            components: "main main/debian-installer", architecture: "riscv64", keyring: keyring)
        try apt.update()

        let scratch = "\(directory).new"
        try? FileManager.default.removeItem(atPath: scratch)
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: scratch) }

        let installer = try apt.download(Self.package, into: scratch)
        try extract(installer, pattern: "*/linux", to: "\(scratch)/linux")
        try extract(installer, pattern: "*/initrd.gz", to: "\(scratch)/initrd.gz")
        let release = try kernelRelease(of: "\(scratch)/linux")
        progress("downloading the virtio_blk module of Linux \(release)")
        try extract(
            try moduleArchive(release: release, apt: apt, archive: archive, keyring: keyring, into: scratch),
            pattern: "*/virtio_blk.ko*",
            to: "\(scratch)/virtio_blk.ko.xz")
        for name in try FileManager.default.contentsOfDirectory(atPath: scratch) where name.hasSuffix("deb") {
            try FileManager.default.removeItem(atPath: "\(scratch)/\(name)")
        }

        try? FileManager.default.removeItem(atPath: directory)
        try FileManager.default.moveItem(atPath: scratch, toPath: directory)
        // Others' downloads, which may be under way, have theirs beside.
        for name in try FileManager.default.contentsOfDirectory(atPath: aptDirectory)
        where name == "keyring" || name.hasPrefix(Self.suite) || name.hasSuffix("deb") {
            try? FileManager.default.removeItem(atPath: "\(aptDirectory)/\(name)")
        }
        guard let files = cached() else { throw Failure("\(directory) is not complete after the download") }
        return files
    }

    private func cached() -> Files? {
        let files = Files(
            kernel: "\(directory)/linux", initrd: "\(directory)/initrd.gz", diskModule: "\(directory)/virtio_blk.ko.xz")
        let all = [files.kernel, files.initrd, files.diskModule]
        return all.allSatisfy { FileManager.default.fileExists(atPath: $0) } ? files : nil
    }

    /// The module's package: the installer's own small one, or, from a mirror without
    /// the installer's packages, the kernel's. An installer that is older, or newer, than its suite's kernel
    /// has it in one of the suites beside.
    private func moduleArchive(
        release: String, apt: PrivateApt, archive: String, keyring: String, into directory: String
    ) throws -> String {
        let packages = ["scsi-modules-\(release)-di", "linux-image-\(release)"]
        var reasons: [String] = []
        func first(of apt: PrivateApt) -> String? {
            for package in packages {
                do { return try apt.download(package, into: directory) } catch { reasons.append("\(error)") }
            }
            return nil
        }
        if let found = first(of: apt) { return found }
        let others = [
            ("\(archive)-security", "\(Self.suite)-security"), (archive, "\(Self.suite)-updates"),
            (archive, "\(Self.suite)-proposed-updates"),
        ]
        for (archive, suite) in others {
            do {
                let apt = try PrivateApt(
                    directory: "\(aptDirectory)/\(suite)", archive: archive, suite: suite, components: "main",
                    architecture: "riscv64", keyring: keyring)
                try apt.update()
                if let found = first(of: apt) { return found }
            } catch {
                reasons.append("\(error)")
            }
        }
        throw Failure("no module for Linux \(release):\n" + reasons.joined(separator: "\n"))
    }

    /// A keyring that holds Debian 13's keys. One from before Debian 13 is replaced,
    /// for us alone, by the newest of this machine's release, signed with the keys there are.
    private func trixieKeyring(archive: String) throws -> String {
        let installed = "\(Self.keyrings)/debian-archive-keyring.gpg"
        guard FileManager.default.fileExists(atPath: installed) else {
            throw Failure("\(installed) is missing: install debian-archive-keyring")
        }
        let marker = "debian-archive-\(Self.suite)-stable.gpg"
        if FileManager.default.fileExists(atPath: "\(Self.keyrings)/\(marker)") { return installed }

        let release = (try? String(contentsOfFile: "/etc/os-release", encoding: .utf8)) ?? ""
        let codename = release.split(separator: "\n").first { $0.hasPrefix("VERSION_CODENAME=") }?
            .dropFirst("VERSION_CODENAME=".count)
        let apt = try PrivateApt(
            directory: "\(aptDirectory)/keyring", archive: archive, suite: String(codename ?? "bookworm"),
            components: "main", architecture: "amd64", keyring: installed)
        try apt.update()
        let package = try apt.download("debian-archive-keyring", into: aptDirectory)
        let root = "\(aptDirectory)/keyring/root"
        try Tool.require(["dpkg-deb", "-x", package, root])
        guard FileManager.default.fileExists(atPath: root + "\(Self.keyrings)/\(marker)") else {
            throw Failure("no debian-archive-keyring with the keys of Debian 13 is to be had for this machine")
        }
        return root + installed
    }

    /// Takes one file out of a Debian package.
    private func extract(_ package: String, pattern: String, to path: String) throws {
        let directory = "\(path).d"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        // dpkg-deb unpacks the compression, tar the one file, of packages of 100 MB and more.
        try Tool.require([
            "sh", "-c", "dpkg-deb --fsys-tarfile \"$1\" | tar -C \"$2\" -xf - --wildcards \"$3\"", "sh", package,
            directory, pattern,
        ])
        let name = pattern.drop { $0 == "*" || $0 == "/" }.prefix { $0 != "*" }
        let found = FileManager.default.enumerator(atPath: directory)?.compactMap { $0 as? String }
            .filter { $0.split(separator: "/").last?.hasPrefix(name) == true }.min { $0.count < $1.count }
        guard let found else { throw Failure("\(package) holds no \(pattern)") }
        try FileManager.default.moveItem(atPath: "\(directory)/\(found)", toPath: path)
    }

    /// The release that a flat kernel image names in its banner, such as 6.12.107+deb13-riscv64.
    private func kernelRelease(of path: String) throws -> String {
        let image = try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
        guard let banner = image.range(of: Data("Linux version ".utf8)) else {
            throw Failure("\(path) is not an uncompressed Linux kernel")
        }
        let release = image[banner.upperBound...].prefix(100).prefix { $0 > 0x20 && $0 < 0x7f }
        return String(decoding: release, as: UTF8.self)
    }
}
