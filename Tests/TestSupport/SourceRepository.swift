import Foundation

/// Somebody's sources that tests are built from when they run: of one commit,
/// from the first place that has it.
public struct SourceRepository: Sendable {
    let name: String
    let commit: String
    /// Directories of this machine and URLs.
    let places: [String]

    public init(name: String, commit: String, places: [String]) {
        self.name = name
        self.commit = commit
        self.places = places
    }

    /// Clones it, unless it was before.
    /// - Returns: the directory, which is complete.
    public func checkout(in cache: String, as directory: String) throws -> String {
        let target = "\(cache)/\(directory)"
        if FileManager.default.fileExists(atPath: "\(target)/.git") { return target }
        var failures = ""
        for place in places where !place.hasPrefix("/") || FileManager.default.fileExists(atPath: place) {
            do {
                // Complete or not there at all: the last step is the rename.
                let staged = target + ".new"
                try? FileManager.default.removeItem(atPath: staged)
                try ChildProcess.run(
                    ["git", "clone", "-q", "--no-checkout", place, staged],
                    environment: ["GIT_TERMINAL_PROMPT": "0"], by: .seconds(60))
                try ChildProcess.run(["git", "-C", staged, "checkout", "-q", commit])
                try? FileManager.default.removeItem(atPath: target)
                try FileManager.default.moveItem(atPath: staged, toPath: target)
                return target
            } catch { failures += "\n\(error)" }
        }
        throw TestError("the sources of \(name) are not to be had:" + failures)
    }
}
