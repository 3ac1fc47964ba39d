import Foundation
import ProcessSupport

/// apt with state, cache and sources under a directory of ours. Proxies and
/// the like still come from the machine's configuration.
struct PrivateApt {
    private let directory: String
    private let options: [String]

    /// - Parameter suite: of it the component `main` alone is used. Mirrors have had a broken index of the others,
    ///   and apt refuses the whole archive then.
    init(directory: String, archive: String, suite: String, architecture: String, keyring: String) throws {
        self.directory = directory
        for part in ["state/lists/partial", "cache/archives/partial"] {
            try FileManager.default.createDirectory(
                atPath: "\(directory)/\(part)", withIntermediateDirectories: true)
        }
        let sources = "\(directory)/archive.sources"
        let text = """
            Types: deb
            URIs: \(archive)
            Suites: \(suite)
            Components: main
            Architectures: \(architecture)
            Signed-By: \(keyring)

            """
        try text.write(toFile: sources, atomically: true, encoding: .utf8)
        var options = ["-q"]
        for option in [
            "Dir::State=\(directory)/state", "Dir::State::status=/dev/null", "Dir::Cache=\(directory)/cache",
            "Dir::Etc::sourcelist=\(sources)", "Dir::Etc::sourceparts=/dev/null", "APT::Architecture=\(architecture)",
            "APT::Architectures::=\(architecture)", "Acquire::Languages=none", "Acquire::Retries=2",
            // The directory is ours alone, which apt's own unprivileged user could not enter.
            "APT::Sandbox::User=root",
        ] {
            options += ["-o", option]
        }
        self.options = options
    }

    /// Reads the archive's index. apt exits with 0 even if it could not, so what it says counts.
    func update() throws {
        try run(["update", "-o", "APT::Update::Error-Mode=any"], in: nil)
    }

    /// The version of a package that `download` gets.
    func version(of package: String) throws -> String {
        // 'URL' NAME_VERSION_ARCHITECTURE.deb SIZE HASH
        let words = try run(["download", "--print-uris", package], in: nil).split(separator: " ")
        let parts = words.count > 1 ? words[1].split(separator: "_") : []
        guard parts.count == 3 else { throw Failure("apt-get does not say which version of \(package) there is") }
        return String(parts[1])
    }

    /// Downloads one package and returns the path of its file.
    func download(_ package: String, into directory: String) throws -> String {
        let before = Set(try FileManager.default.contentsOfDirectory(atPath: directory))
        try run(["download", package], in: directory)
        let after = try FileManager.default.contentsOfDirectory(atPath: directory)
        guard let file = after.first(where: { !before.contains($0) && $0.hasSuffix("deb") }) else {
            throw Failure("apt-get download \(package) left no file in \(directory)")
        }
        return "\(directory)/\(file)"
    }

    /// Downloads packages and everything that they depend on, as for a machine
    /// with nothing installed, and returns the paths of the files.
    /// - Parameter packages: names, or patterns of apt's such as `?essential`.
    func downloadWithDependencies(_ packages: [String]) throws -> [String] {
        try run(["install", "--no-install-recommends", "--download-only", "-y"] + packages, in: nil)
        let archives = "\(directory)/cache/archives"
        return try FileManager.default.contentsOfDirectory(atPath: archives)
            .filter { $0.hasSuffix(".deb") }.map { "\(archives)/\($0)" }
    }

    /// The names of a package and of everything that it depends on.
    func dependencies(of package: String) throws -> [String] {
        // 'URL' NAME_VERSION_ARCHITECTURE.deb SIZE HASH
        let text = try run(["install", "--no-install-recommends", "--print-uris", "-y", package], in: nil)
        return text.split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ")
            guard line.hasPrefix("'"), words.count >= 3 else { return nil }
            return words[1].split(separator: "_").first?.removingPercentEncoding
        }
    }

    /// The archive that this machine's own apt uses, as apt itself reads its configuration.
    static func archiveAddress() throws -> String {
        let targets = try Tool.require([
            "apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages",
        ])
        for line in targets.text.split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count == 2, !words[0].contains("security") else { continue }
            let address = words[1].hasSuffix("/") ? words[1].dropLast() : words[1]
            if address.hasSuffix("/debian") { return String(address) }
        }
        return "http://deb.debian.org/debian"
    }

    /// - Returns: what apt-get wrote to its standard output.
    @discardableResult
    private func run(_ command: [String], in directory: String?) throws -> String {
        let result = try Tool.run(["apt-get"] + options + command, in: directory)
        guard result.status != 0 || result.errors.contains("Failed to fetch") else { return result.text }
        throw Failure("apt-get \(command.prefix(2).filter { $0 != "-o" }.joined(separator: " ")): \(result.reason)")
    }
}
