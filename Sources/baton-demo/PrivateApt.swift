import Foundation

/// apt with state, cache and sources under a directory of ours. Proxies and
/// the like still come from the machine's configuration.
struct PrivateApt {
    private let options: [String]

    init(
        directory: String, archive: String, suite: String, components: String, architecture: String, keyring: String
    ) throws {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            try FileManager.default.createDirectory(
                atPath: "\(directory)/\(part)", withIntermediateDirectories: true)
        }
        let sources = "\(directory)/archive.sources"
        let text = """
            Types: deb
            URIs: \(archive)
            Suites: \(suite)
            Components: \(components)
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
        let result = try Tool.require(["apt-get"] + options + ["-o", "APT::Update::Error-Mode=any", "update"])
        if result.errors.contains("Failed to fetch") {
            throw Failure(result.errors.trimmingCharacters(in: .whitespacesAndNewlines))
        }
    }

    /// Downloads one package and returns the path of its file.
    func download(_ package: String, into directory: String) throws -> String {
        let before = Set(try FileManager.default.contentsOfDirectory(atPath: directory))
        try Tool.require(["apt-get"] + options + ["download", package], in: directory)
        let after = try FileManager.default.contentsOfDirectory(atPath: directory)
        guard let file = after.first(where: { !before.contains($0) && $0.hasSuffix("deb") }) else {
            throw Failure("apt-get download \(package) left no file in \(directory)")
        }
        return "\(directory)/\(file)"
    }
}
