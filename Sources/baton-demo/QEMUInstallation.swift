import Foundation

/// A qemu-system-riscv64 that knows cpr-exec (QEMU 10.2 and later), to measure
/// beside: the installed one, or one from a later Debian in the cache.
///
/// That one is unpacked beside its libraries, C library and all, into a
/// directory of its own, and run by its own dynamic loader: nothing is installed.
struct QEMUInstallation {
    /// What to execute, before the options.
    let command: [String]
    /// As in `11.1.2`.
    let version: String

    private static let package = "qemu-system-riscv"
    private static let program = "qemu-system-riscv64"
    private static let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

    /// - Throws: why none is to be had.
    static func find(cache: String, progress: (String) -> Void) throws -> QEMUInstallation {
        if let path = Tool.find(program), let installed = try? QEMUInstallation(command: [path]) { return installed }
        try FileManager.default.createDirectory(atPath: cache, withIntermediateDirectories: true)
        let cache = URL(fileURLWithPath: cache).resolvingSymlinksInPath().path
        let root = "\(cache)/qemu"
        if let cached = try? QEMUInstallation(unpackedIn: root) { return cached }
        var reasons: [String] = []
        for suite in ["forky", "sid"] {
            do {
                progress("downloading QEMU of Debian \(suite), to measure beside")
                try download(suite: suite, cache: cache, to: root)
                return try QEMUInstallation(unpackedIn: root)
            } catch {
                reasons.append("\(suite): \(error)")
            }
        }
        throw Failure(reasons.joined(separator: "\n"))
    }

    private init(command: [String]) throws {
        let text = try Tool.require(command + ["-version"]).text
        guard let word = text.split(separator: " ").first(where: { $0.first?.isNumber == true }) else {
            throw Failure("\(command[0]) does not say its version")
        }
        let numbers = word.split(separator: ".").compactMap { Int($0) }
        guard numbers.count >= 2, (numbers[0], numbers[1]) >= (10, 2) else {
            throw Failure("QEMU \(word) has no cpr-exec")
        }
        self.command = command
        version = String(word)
    }

    private init(unpackedIn root: String) throws {
        let libraries = "\(root)/usr/lib"
        let directories = try FileManager.default.contentsOfDirectory(atPath: libraries).map { "\(libraries)/\($0)" }
        for directory in directories {
            let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
            guard names.contains("libc.so.6"), let loader = names.first(where: { $0.hasPrefix("ld-linux-") }) else { continue }
            try self.init(command: [
                "\(directory)/\(loader)", "--library-path", directory, "\(root)/usr/bin/\(Self.program)",
                "-L", "\(root)/usr/share/qemu",
            ])
            return
        }
        throw Failure("\(root) holds no C library")
    }

    private static func download(suite: String, cache: String, to root: String) throws {
        let aptDirectory = "\(cache)/apt/qemu-\(suite)"
        defer { try? FileManager.default.removeItem(atPath: aptDirectory) }
        let architecture = try Tool.require(["dpkg", "--print-architecture"]).text
        let apt = try PrivateApt(
            directory: aptDirectory, archive: try PrivateApt.archiveAddress(), suite: suite, components: "main",
            architecture: architecture.trimmingCharacters(in: .whitespacesAndNewlines), keyring: keyring)
        try apt.update()
        let scratch = "\(root).new"
        try? FileManager.default.removeItem(atPath: scratch)
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        for file in try apt.downloadWithDependencies(package) { try Tool.require(["dpkg-deb", "-x", file, scratch]) }
        try? FileManager.default.removeItem(atPath: root)
        try FileManager.default.moveItem(atPath: scratch, toPath: root)
    }
}
