import Foundation
import ProcessSupport

/// Debian 13's kernel and installer initrd, from Debian's archive,
/// with the one kernel module that the initrd lacks: the installer fetches
/// virtio_blk from the network, and we take it from the kernel's own package.
///
/// apt does the downloads and checks the signatures, with lists, cache and
/// sources of its own under the cache directory: the machine's stay as they are.
/// What was unpacked is kept, a directory a version, and needs no archive again.
struct DebianInstaller {
    struct Files {
        /// The version of the installer's package.
        let version: String
        let kernel: String
        let initrd: String
        let diskModule: String

        fileprivate init(version: String, in directory: String) {
            self.version = version
            kernel = "\(directory)/linux"
            initrd = "\(directory)/initrd.gz"
            diskModule = "\(directory)/virtio_blk.ko.xz"
        }

        fileprivate var areThere: Bool {
            [kernel, initrd, diskModule].allSatisfy { FileManager.default.fileExists(atPath: $0) }
        }
    }

    private static let suite = "trixie"
    private static let keyrings = "/usr/share/keyrings"

    private let cache: String
    /// Debian's name for the guest's CPUs.
    private let architecture: String
    private var package: String { "debian-installer-13-netboot-\(architecture)" }
    /// Of the versions, each in a directory of its name.
    private var directory: String { cache + "/debian-13-\(architecture)" }
    private var aptDirectory: String { cache + "/apt" }

    init(cache: String, architecture: String = "riscv64") throws {
        try FileManager.default.createDirectory(atPath: cache, withIntermediateDirectories: true)
        self.cache = URL(fileURLWithPath: cache).resolvingSymlinksInPath().path
        self.architecture = architecture
    }

    /// The files of the newest version in the cache, or downloaded into it.
    /// - Parameter newest: ask the archive for a newer one than the cache has. When it cannot be had the
    ///   cache's is used, which is said.
    func obtain(newest: Bool = false, progress: (String) -> Void) throws -> Files {
        let kept = cached()
        if let kept, !newest { return kept }
        do {
            return try download(progress: progress)
        } catch {
            guard let kept else { throw error }
            progress("Debian's installer \(kept.version) of the cache is used, as there is no newer one:\n\(error)")
            return kept
        }
    }

    /// Reads the index of the archive, and downloads nothing.
    /// - Throws: why the archive is not to be had.
    func checkArchive() throws { _ = try suiteIndex(progress: { _ in }) }

    private func cached() -> Files? {
        let versions = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        return versions.sorted { $0.compare($1, options: .numeric) == .orderedDescending }.lazy
            .map { Files(version: $0, in: "\(directory)/\($0)") }.first { $0.areThere }
    }

    struct Index {
        let apt: PrivateApt
        let archive: String
        let keyring: String
        /// apt's files.
        let directory: String
    }

    /// The archive of Debian 13's packages for the guest's CPUs, with its index read.
    /// - Parameter directory: takes apt's files; the caller removes it in the end. The default is removed when the
    ///   installer has been downloaded.
    func suiteIndex(directory: String? = nil, progress: (String) -> Void) throws -> Index {
        let archive = try PrivateApt.archiveAddress()
        progress("reading the index of \(archive)")
        let keyring = try trixieKeyring(archive: archive)
        let directory = directory ?? "\(aptDirectory)/\(Self.suite)-\(architecture)"
        let apt = try PrivateApt(
            directory: directory, archive: archive, suite: Self.suite, architecture: architecture, keyring: keyring)
        try apt.update()
        return Index(apt: apt, archive: archive, keyring: keyring, directory: directory)
    }

    private func download(progress: (String) -> Void) throws -> Files {
        let index = try suiteIndex(progress: progress)
        let version = try index.apt.version(of: package)
        let target = Files(version: version, in: "\(directory)/\(version)")
        if target.areThere { return target }

        let scratch = "\(directory).\(getpid()).new"
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        let staged = Files(version: version, in: "\(scratch)/files")
        try FileManager.default.createDirectory(atPath: "\(scratch)/files", withIntermediateDirectories: false)
        progress("downloading Debian's \(architecture) kernel and installer, version \(version)")
        let installer = try index.apt.download(package, into: scratch)
        // The graphical installer's, where there is one, are beside.
        try extract(installer, pattern: "*/text/debian-installer/*/linux", to: staged.kernel)
        try extract(installer, pattern: "*/text/debian-installer/*/initrd.gz", to: staged.initrd)
        let release = try kernelRelease(of: staged.kernel)
        progress("downloading the package of Linux \(release), for its virtio_blk module")
        try extract(
            try kernelPackage(release: release, index: index, into: scratch), pattern: "*/virtio_blk.ko*",
            to: staged.diskModule)

        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        let place = "\(directory)/\(version)"
        try? FileManager.default.removeItem(atPath: place)
        try FileManager.default.moveItem(atPath: "\(scratch)/files", toPath: place)
        // Others' downloads, which may be under way, have theirs beside.
        for name in try FileManager.default.contentsOfDirectory(atPath: aptDirectory)
        where name == "keyring" || name.hasPrefix(Self.suite) || name.hasSuffix("deb") {
            try? FileManager.default.removeItem(atPath: "\(aptDirectory)/\(name)")
        }
        guard target.areThere else { throw Failure("\(place) is not complete after the download") }
        return target
    }

    /// The kernel's package, which has all of its modules. An installer that is older, or newer, than its suite's
    /// kernel has its own in one of the suites beside.
    private func kernelPackage(release: String, index: Index, into directory: String) throws -> String {
        let package = "linux-image-\(release)"
        var reasons: [String] = []
        do { return try index.apt.download(package, into: directory) } catch { reasons.append("\(error)") }
        let others = [
            ("\(index.archive)-security", "\(Self.suite)-security"), (index.archive, "\(Self.suite)-updates"),
            (index.archive, "\(Self.suite)-proposed-updates"),
        ]
        for (archive, suite) in others {
            do {
                let apt = try PrivateApt(
                    directory: "\(aptDirectory)/\(suite)-\(architecture)", archive: archive, suite: suite,
                    architecture: architecture, keyring: index.keyring)
                try apt.update()
                return try apt.download(package, into: directory)
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
            architecture: "amd64", keyring: installed)
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
        let name = pattern.split(separator: "/").last?.prefix { $0 != "*" } ?? ""
        let found = FileManager.default.enumerator(atPath: directory)?.compactMap { $0 as? String }
            .filter { $0.split(separator: "/").last?.hasPrefix(name) == true }.min { $0.count < $1.count }
        guard let found else { throw Failure("\(package) holds no \(pattern)") }
        try FileManager.default.moveItem(atPath: "\(directory)/\(found)", toPath: path)
    }

    /// The release that a kernel names, such as 6.12.107+deb13-riscv64: a flat image in its banner, one for PCs at a
    /// place that its header says (Linux, Documentation/arch/x86/boot.rst: kernel_version).
    private func kernelRelease(of path: String) throws -> String {
        let image = try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
        let start: Int
        if image.count > 0x210, image[0x202..<0x206] == Data("HdrS".utf8) {
            start = 0x200 + Int(image[0x20e]) + Int(image[0x20f]) << 8
        } else if let banner = image.range(of: Data("Linux version ".utf8)) {
            start = banner.upperBound
        } else {
            throw Failure("\(path) is neither an uncompressed Linux kernel nor one for PCs")
        }
        let release = image.dropFirst(start).prefix(100).prefix { $0 > 0x20 && $0 < 0x7f }
        return String(decoding: release, as: UTF8.self)
    }
}
