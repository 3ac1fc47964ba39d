import Foundation
import Testing

extension TemporaryDirectory {
    /// Puts a shell script in the place of a program.
    /// - Returns: the environment in which it is found before the program.
    public func standIn(for program: String, _ script: String) throws -> [String: String] {
        let bin = file("bin"), path = "\(bin)/\(program)"
        try FileManager.default.createDirectory(atPath: bin, withIntermediateDirectories: true)
        try Data("#!/bin/sh\n\(script)\n".utf8).write(to: URL(fileURLWithPath: path))
        // Whoever executes it may be another user.
        for place in [self.path, bin, path] { try #require(chmod(place, 0o755) == 0) }
        return ["PATH": "\(bin):\(ProcessInfo.processInfo.environment["PATH"] ?? "")"]
    }
}
