import Foundation
import ProcessSupport

/// A program that runs beside this one, and ends with it.
final class BackgroundProcess {
    private let process = Process()
    private let output: String

    /// - Parameter output: the file that takes what the program says.
    init(_ arguments: [String], output: String) throws {
        // Ends the program even if this one is killed.
        guard let guardian = Tool.find("setpriv") else { throw Failure("setpriv (util-linux) was not found") }
        self.output = output
        _ = FileManager.default.createFile(atPath: output, contents: nil)
        process.executableURL = URL(fileURLWithPath: guardian)
        process.arguments = ["--pdeathsig", "KILL"] + arguments
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle(forWritingAtPath: output)
        process.standardError = process.standardOutput
        try process.run()
    }

    deinit {
        guard process.isRunning else { return }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    var isRunning: Bool { process.isRunning }
    /// What it has said so far.
    var said: String { (try? String(contentsOfFile: output, encoding: .utf8)) ?? "" }

    /// Its sockets, by the kernel's numbers: the same ones mean that nobody has connected anew.
    func sockets() throws -> Set<String> {
        let directory = "/proc/\(process.processIdentifier)/fd"
        let links = try FileManager.default.contentsOfDirectory(atPath: directory)
            .compactMap { try? FileManager.default.destinationOfSymbolicLink(atPath: "\(directory)/\($0)") }
        return Set(links.filter { $0.hasPrefix("socket:") })
    }
}
