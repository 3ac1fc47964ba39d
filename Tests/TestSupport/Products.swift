import Foundation

/// Where the build puts what the tests drive.
public enum Products {
    /// The repository.
    public static let repository: String = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path

    /// The directory of the executables and modules of this build: beside the
    /// test bundle, else `.build/release`.
    public static let directory: String = {
        let bundle = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""
        let beside = URL(fileURLWithPath: bundle).deletingLastPathComponent().path
        if FileManager.default.isExecutableFile(atPath: "\(beside)/baton") { return beside }
        return "\(repository)/.build/release"
    }()

    /// The VMM.
    public static var baton: String { "\(directory)/baton" }
    /// A module such as `mode-restart`.
    public static func module(_ name: String) -> String { "\(directory)/lib\(name).so" }
    /// The directory of `baton-module.h`.
    public static var headers: String { "\(repository)/Sources/Runtime/Sources/CBaton/include" }
    /// A directory under `.build` that outlives the tests: downloads, guests.
    public static func cache(_ name: String) throws -> String {
        let path = "\(repository)/.build/\(name)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        return path
    }

    /// How to run a program of a later Debian than this machine's (`virtiofsd` or `passt`), which is in
    /// the project's cache or downloaded into it; nil when it is not to be had.
    public static func laterDebian(_ program: String) -> [String]? {
        guard
            let words = try? ChildProcess.run(
                ["\(directory)/baton-demo", "peer", program, "--cache", "\(repository)/.cache"], by: .seconds(300))
        else { return nil }
        return words.split(separator: "\n").map(String.init)
    }

    /// The full path of a program in PATH; nil when there is none.
    public static func find(_ program: String) -> String? { SearchPath.find(program) }
}
