import Foundation
import ProcessSupport

/// A control group whose processes get so much of the processors' time and no more: `cpu.max` of cgroups(7), or
/// `cpu.cfs_quota_us` where the controller is still on version 1. It is removed with this object, when its processes
/// have ended.
final class ProcessorLimit {
    private let directory: String

    /// - Parameter processors: how many processors' time in each period.
    /// - Throws: where this process may make no such group; the error says why.
    init(processors: Int) throws {
        let (parent, isFirstVersion) = try Self.parent()
        directory = "\(parent)/baton-bench-\(getpid())"
        guard mkdir(directory, 0o755) == 0 else { throw Failure.system("cannot make the control group \(directory)") }
        do {
            if isFirstVersion {
                let period = try String(contentsOfFile: "\(directory)/cpu.cfs_period_us", encoding: .utf8)
                guard let microseconds = Int(period.trimmingCharacters(in: .newlines)) else {
                    throw Failure("\(directory) has no period")
                }
                try Self.write("\(microseconds * processors)", to: "\(directory)/cpu.cfs_quota_us")
            } else {
                try Self.write("\(100_000 * processors) 100000", to: "\(directory)/cpu.max")
            }
        } catch {
            rmdir(directory)
            throw error
        }
    }

    deinit { rmdir(directory) }

    /// Moves a process there, with what it starts from now on.
    func add(_ pid: pid_t) throws { try Self.write("\(pid)", to: "\(directory)/cgroup.procs") }

    /// The group of this process below that of the controller "cpu", and whether it is of version 1.
    private static func parent() throws -> (String, isFirstVersion: Bool) {
        // Lines of proc(5): number, controllers, path.
        let groups = try String(contentsOfFile: "/proc/self/cgroup", encoding: .utf8).split(separator: "\n")
            .map { $0.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false) }
        for mount in try String(contentsOfFile: "/proc/self/mounts", encoding: .utf8).split(separator: "\n") {
            let words = mount.split(separator: " ")
            guard words.count > 3 else { continue }
            let isFirst = words[2] == "cgroup" && words[3].split(separator: ",").contains("cpu")
            guard isFirst || words[2] == "cgroup2" else { continue }
            let own = groups.first {
                $0.count == 3 && (isFirst ? $0[1].split(separator: ",").contains("cpu") : $0[1].isEmpty)
            }
            guard let own else { continue }
            let path = "\(words[1])\(own[2] == "/" ? "" : own[2])"
            if isFirst { return (path, true) }
            let shared = try? String(contentsOfFile: "\(path)/cgroup.subtree_control", encoding: .utf8)
            if shared?.split(whereSeparator: \.isWhitespace).contains("cpu") == true { return (path, false) }
        }
        throw Failure("no control group here shares out processors")
    }

    private static func write(_ text: String, to path: String) throws {
        let fd = open(path, O_WRONLY | O_CLOEXEC)
        guard fd >= 0 else { throw Failure.system("cannot open \(path)") }
        defer { close(fd) }
        guard Foundation.write(fd, text, text.utf8.count) == text.utf8.count else {
            throw Failure.system("cannot write '\(text)' to \(path)")
        }
    }
}
