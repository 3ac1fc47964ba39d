import Foundation
import ProcessSupport

/// Programs of the machine that this tool calls.
enum Tool {
    struct Result {
        let status: Int32
        /// What the program wrote to its standard output.
        let output: Data
        /// What it wrote to its standard error.
        let errors: String

        var text: String { String(decoding: output, as: UTF8.self) }
        /// What it said about a failure.
        var reason: String { (errors.isEmpty ? text : errors).trimmingCharacters(in: .whitespacesAndNewlines) }
    }

    /// Runs a program to its end. Throws if it cannot be started.
    static func run(_ arguments: [String], in directory: String? = nil, input: Data? = nil) throws -> Result {
        guard let name = arguments.first, let path = find(name) else {
            throw Failure("\(arguments.first ?? "?"): not found")
        }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = Array(arguments.dropFirst())
        if let directory { process.currentDirectoryURL = URL(fileURLWithPath: directory) }
        process.environment = ProcessInfo.processInfo.environment.merging(["LC_ALL": "C"]) { $1 }
        // Files rather than pipes: neither side can block the other, however much is written.
        let scratch = try TemporaryDirectory.scratch()
        let output = scratch.file("output"), errors = scratch.file("errors"), source = scratch.file("input")
        for path in [output, errors] { _ = FileManager.default.createFile(atPath: path, contents: nil) }
        _ = FileManager.default.createFile(atPath: source, contents: input ?? Data())
        process.standardInput = FileHandle(forReadingAtPath: source)
        process.standardOutput = FileHandle(forWritingAtPath: output)
        process.standardError = FileHandle(forWritingAtPath: errors)
        try process.run()
        process.waitUntilExit()
        return Result(
            status: process.terminationStatus,
            output: FileManager.default.contents(atPath: output) ?? Data(),
            errors: String(decoding: FileManager.default.contents(atPath: errors) ?? Data(), as: UTF8.self))
    }

    /// Runs a program that has to succeed.
    @discardableResult
    static func require(_ arguments: [String], in directory: String? = nil) throws -> Result {
        let result = try run(arguments, in: directory)
        guard result.status == 0 else {
            throw Failure("\(arguments.joined(separator: " ")) ended with status \(result.status):\n\(result.reason)")
        }
        return result
    }

    /// The path of a program: as given if it has a slash, else searched in PATH.
    static func find(_ name: String) -> String? { SearchPath.find(name) }
}

extension TemporaryDirectory {
    /// One of this tool's, where the user has such.
    static func scratch() throws -> TemporaryDirectory {
        let parent = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp"
        return try TemporaryDirectory(prefix: "\(parent)/baton-demo")
    }
}
