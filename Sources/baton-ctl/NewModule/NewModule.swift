import ArgumentParser
import Foundation

/// `baton-ctl new-module`: writes a small complete module project outside of
/// Baton's tree.
struct NewModule: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Writes a project that builds a module of your own.",
        discussion: """
            The project has one source file, a Makefile, a test and a README, and builds with 'make' against the \
            Baton that this command belongs to. What it builds works, and is meant to be changed.
            """)

    enum Kind: String, ExpressibleByArgument, CaseIterable {
        case preserver, mode
        case memoryBackend = "memory-backend"
    }

    enum Language: String, ExpressibleByArgument, CaseIterable {
        case swift, c
    }

    @Option(help: "What the module provides: preserver, mode or memory-backend.")
    var kind: Kind

    @Option(name: .customLong("lang"), help: "The language: swift or c.")
    var language: Language

    @Option(help: "Where to write the project; made if missing, else it must be empty. By default KIND-NAME.")
    var directory: String?

    @Argument(help: "The module's name, as on the command line: a-z, 0-9 and '-'.")
    var name: String

    func validate() throws {
        let allowed = Set("abcdefghijklmnopqrstuvwxyz0123456789-")
        guard let first = name.first, first.isLetter, name.allSatisfy(allowed.contains), name.last != "-",
            name.count <= 40
        else {
            throw ValidationError(
                "'\(name)' is not a module's name: it has a letter first, then a-z, 0-9 and '-', 40 at most.")
        }
    }

    func run() throws {
        let project = ModuleProject(kind: kind, language: language, name: name, prefix: Self.prefix)
        let path = directory ?? project.fullName
        let files = FileManager.default
        try files.createDirectory(atPath: path, withIntermediateDirectories: true)
        guard try files.contentsOfDirectory(atPath: path).isEmpty else {
            throw ValidationError("\(path) is not empty; choose another with --directory.")
        }
        for file in project.files {
            let target = "\(path)/\(file.name)"
            try Data(file.text.utf8).write(to: URL(fileURLWithPath: target))
            // Nobody else may write a module's file, whatever the umask is.
            try files.setAttributes([.posixPermissions: file.isExecutable ? 0o755 : 0o644], ofItemAtPath: target)
        }
        let lines = project.source.text.split(separator: "\n", omittingEmptySubsequences: false).count - 1
        print("\(path): \(project.fullName), \(project.source.name) has \(lines) lines. Next: make -C \(path) test")
    }

    /// Where this command is installed; `/usr/local` when it is not.
    static var prefix: String {
        let executable = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""
        let prefix = URL(fileURLWithPath: executable).deletingLastPathComponent().deletingLastPathComponent().path
        let isInstalled = FileManager.default.fileExists(atPath: "\(prefix)/lib/pkgconfig/baton.pc")
        return isInstalled ? prefix : "/usr/local"
    }
}
