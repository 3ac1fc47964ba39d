import Foundation
import Glibc
import Harness
import ProcessSupport

/// The process that serves a machine's disk by vhost-user: QEMU's storage daemon, which a soak has stand still or end.
package final class StorageProcess {
    /// The daemon's, which is in Debian's package qemu-system-common.
    package static let program = "qemu-storage-daemon"

    private let directory: TemporaryDirectory
    private var process: ChildProcess
    /// Whether it may end without being told to, until the disk has been looked at.
    var mayEnd = false

    var pid: pid_t { process.pid }
    /// Where it listens.
    static func socket(_ directory: TemporaryDirectory) -> String { directory.file("storage") }

    /// Starts it, and waits until it listens.
    /// - Parameter directory: of the machine, which has the image `disk`.
    init(in directory: TemporaryDirectory) throws {
        self.directory = directory
        process = try Self.start(in: directory)
    }

    private static func start(in directory: TemporaryDirectory) throws -> ChildProcess {
        let socket = socket(directory)
        unlink(socket)
        // With the machine's mark, so that whoever ends that ends this too.
        let process = try ChildProcess(
            [
                program, "--blockdev", "driver=file,node-name=file,filename=\(directory.file("disk")),discard=unmap",
                "--blockdev", "driver=raw,node-name=disk,file=file,discard=unmap", "--export",
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=\(socket)",
            ], environment: Machine.mark(directory.path))
        try eventually("\(program) listens; \(process.report)", by: .seconds(60)) {
            guard process.isRunning else { throw Failure("\(program) did not start: \(process.report)") }
            return try ListeningSocket.exists(at: socket)
        }
        return process
    }

    /// Has it stand still: it has what it was sent, and does nothing.
    func stop(by deadline: Deadline) throws {
        process.signal(SIGSTOP)
        try eventually("the storage process \(pid) stands still; \(process.report)", by: deadline) {
            guard let stat = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8) else { return false }
            return stat.split(separator: ")").last?.split(separator: " ").first == "T"
        }
    }

    /// Has it go on.
    func goOn() { process.signal(SIGCONT) }

    /// Ends it, standing or not, and starts another: the VMM connects by itself.
    /// - Parameter meanwhile: while there is none.
    func replace(by deadline: Deadline, _ meanwhile: () throws -> Void = {}) throws {
        process.signal(SIGKILL)
        try process.waitForExit(by: deadline)
        try meanwhile()
        process = try Self.start(in: directory)
    }

    /// Starts another if this one has ended, as a service manager does.
    /// - Throws: that it has ended when it must not.
    func restartIfEnded() throws {
        guard !process.isRunning else { return }
        try require(mayEnd, "the storage process has ended: \(report)")
        process = try Self.start(in: directory)
    }

    /// How it is and what it said.
    var report: String { process.report }
}
