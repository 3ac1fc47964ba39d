import Foundation

/// Files of /proc that may be longer than a page.
public enum ProcFile {
    /// A file to its end, in which bytes that are no UTF-8 are replaced. Foundation takes the first read that is not
    /// full, of at most a page, for the end.
    public static func text(_ path: String) throws -> String {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { throw Failure.system("open \(path)") }
        defer { close(fd) }
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = read(fd, &buffer, buffer.count)
            guard count >= 0 else { throw Failure.system("read \(path)") }
            guard count > 0 else { return String(decoding: result, as: UTF8.self) }
            result += buffer[..<count]
        }
    }

    /// The children of a process, those that have ended and are not waited for among them.
    public static func children(of pid: pid_t) throws -> [pid_t] {
        try text("/proc/\(pid)/task/\(pid)/children").split(separator: " ").compactMap { pid_t($0) }
    }
}
