import ArgumentParser
import Foundation
import ProcessSupport

/// Programs of a later Debian than this machine's, as peers to measure beside or to talk to.
///
/// Each is unpacked beside its libraries, C library and all, into a directory of its own in the
/// cache, and run by its own dynamic loader: nothing is installed.
struct LaterDebian {
    let cache: String
    /// The directory in the cache.
    let name: String
    let package: String
    /// The program's path in the package, such as `usr/bin/passt`.
    let program: String
    /// Whether it is a file to be read, and not a program.
    let isData: Bool

    static let suites = ["forky", "sid"]
    private static let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

    init(cache: String, name: String, package: String, program: String, isData: Bool = false) throws {
        try FileManager.default.createDirectory(atPath: cache, withIntermediateDirectories: true)
        self.cache = URL(fileURLWithPath: cache).resolvingSymlinksInPath().path
        self.name = name
        self.package = package
        self.program = program
        self.isData = isData
    }

    var root: String { "\(cache)/\(name)" }

    /// What to execute, before the options, or the file; nil if it is not in the cache.
    var command: [String]? {
        if isData { return access("\(root)/\(program)", R_OK) == 0 ? ["\(root)/\(program)"] : nil }
        let libraries = "\(root)/usr/lib"
        let directories = ((try? FileManager.default.contentsOfDirectory(atPath: libraries)) ?? []).map {
            "\(libraries)/\($0)"
        }
        guard FileManager.default.isExecutableFile(atPath: "\(root)/\(program)") else { return nil }
        for directory in directories {
            let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
            guard names.contains("libc.so.6"), let loader = names.first(where: { $0.hasPrefix("ld-linux-") }) else {
                continue
            }
            return ["\(directory)/\(loader)", "--library-path", directory, "\(root)/\(program)"]
        }
        return nil
    }

    /// Puts it into the cache.
    func download(suite: String) throws {
        let aptDirectory = "\(cache)/apt/\(name)-\(suite)"
        defer { try? FileManager.default.removeItem(atPath: aptDirectory) }
        let apt = try Self.archive(suite: suite, directory: aptDirectory)
        let scratch = "\(root).new"
        try? FileManager.default.removeItem(atPath: scratch)
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        for file in try apt.downloadWithDependencies([package]) { try Tool.require(["dpkg-deb", "-x", file, scratch]) }
        try? FileManager.default.removeItem(atPath: root)
        try FileManager.default.moveItem(atPath: scratch, toPath: root)
    }

    /// The archive of a suite, of this machine's architecture, with its index read.
    /// - Parameter directory: takes apt's files, and goes when it is done with.
    static func archive(suite: String, directory: String) throws -> PrivateApt {
        let architecture = try Tool.require(["dpkg", "--print-architecture"]).text
        let apt = try PrivateApt(
            directory: directory, archive: try PrivateApt.archiveAddress(), suite: suite,
            architecture: architecture.trimmingCharacters(in: .whitespacesAndNewlines), keyring: keyring)
        try apt.update()
        return apt
    }

    /// What to execute, from the cache or downloaded into it.
    /// - Throws: why it is not to be had.
    func obtain() throws -> [String] {
        if let command { return command }
        var reasons: [String] = []
        for suite in Self.suites {
            do {
                try download(suite: suite)
                if let command { return command }
                reasons.append("\(suite): the package \(package) has no \(program)")
            } catch {
                reasons.append("\(suite): \(error)")
            }
        }
        throw Failure(reasons.joined(separator: "\n"))
    }
}

/// `baton-demo peer`: puts a program that the tests talk to into the cache.
struct PeerCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "peer", abstract: "Prints how to run a program of a later Debian, downloaded into the cache.")

    enum Peer: String, CaseIterable, ExpressibleByArgument {
        case virtiofsd, passt
        case storageDaemon = "qemu-storage-daemon"
        case system = "qemu-system-riscv64"
        /// EDK2, whose file of variables is beside it.
        case firmware = "qemu-efi-riscv64"

        var package: String {
            switch self {
            case .virtiofsd, .passt, .firmware: rawValue
            case .storageDaemon: "qemu-utils"
            case .system: "qemu-system-riscv"
            }
        }
        var program: String {
            switch self {
            case .virtiofsd: "usr/libexec/virtiofsd"
            case .firmware: "usr/share/qemu-efi-riscv64/RISCV_VIRT_CODE.fd"
            default: "usr/bin/\(rawValue)"
            }
        }
        /// In the cache; QEMU's is the one that `baton-demo bench` measures beside.
        var directory: String { self == .system ? "qemu" : rawValue }
    }

    @Argument(help: "virtiofsd, passt, qemu-storage-daemon, qemu-system-riscv64 or qemu-efi-riscv64.")
    var peer: Peer

    @Option(help: "Directory to keep downloads in.")
    var cache = ".cache"

    func run() throws {
        for word in try Self.obtain(peer, cache: cache) { print(word) }
    }

    /// What to execute, or the file to read, from the cache or downloaded into it.
    static func obtain(_ peer: Peer, cache: String) throws -> [String] {
        try LaterDebian(
            cache: cache, name: peer.directory, package: peer.package, program: peer.program,
            isData: peer == .firmware
        ).obtain()
    }
}
