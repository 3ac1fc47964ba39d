import Foundation
import PackagePlugin

/// Generates `let buildRevision` in the target that uses it: the git revision that the package is built from.
@main
struct StampRevision: BuildToolPlugin {
    func createBuildCommands(context: PluginContext, target: Target) throws -> [Command] {
        // Written at each commit and checkout; the last line has the revision.
        let log = gitDirectory(of: context.package.directoryURL)?.appending(path: "logs/HEAD")
        let inputs = [log].compactMap { $0 }.filter { FileManager.default.fileExists(atPath: $0.path()) }
        let output = context.pluginWorkDirectoryURL.appending(path: "Revision.swift")
        return [
            .buildCommand(
                displayName: "Stamping the revision",
                executable: try context.tool(named: "fingerprint").url,
                arguments: ["--revision", output.path()] + inputs.map { $0.path() },
                inputFiles: inputs,
                outputFiles: [output])
        ]
    }

    /// The directory `.git`, or in a worktree the one that the file `.git` names.
    private func gitDirectory(of package: URL) -> URL? {
        let git = package.appending(path: ".git")
        guard let text = try? String(contentsOf: git, encoding: .utf8) else { return git }
        let path = text.replacingOccurrences(of: "gitdir: ", with: "").trimmingCharacters(in: .whitespacesAndNewlines)
        return URL(fileURLWithPath: path, relativeTo: package)
    }
}
