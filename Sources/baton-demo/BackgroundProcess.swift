import Foundation
import ProcessSupport

/// A program that runs beside this one, and ends with it.
final class BackgroundProcess {
    private let process: ChildProcess

    init(_ arguments: [String]) throws {
        // Ends the program even if this one is killed.
        guard let guardian = Tool.find("setpriv") else { throw Failure("setpriv (util-linux) was not found") }
        process = try ChildProcess([guardian, "--pdeathsig", "KILL"] + arguments)
    }

    var isRunning: Bool { process.isRunning }
    /// What it has said so far, on its standard output and then on its standard error.
    var said: String { process.output + process.errors }

    /// Its sockets, by the kernel's numbers: the same ones mean that nobody has connected anew.
    func sockets() throws -> Set<String> {
        let directory = "/proc/\(process.pid)/fd"
        let links = try FileManager.default.contentsOfDirectory(atPath: directory)
            .compactMap { try? FileManager.default.destinationOfSymbolicLink(atPath: "\(directory)/\($0)") }
        return Set(links.filter { $0.hasPrefix("socket:") })
    }
}
