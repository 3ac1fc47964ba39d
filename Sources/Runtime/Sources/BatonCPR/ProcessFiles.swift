import BatonBase
import Glibc

/// What the kernel says of another process in /proc.
enum ProcessFiles {
    /// - Returns: nil when there is no such process, or none that this one may ask about.
    static func read(_ file: String, of process: pid_t) -> String? {
        guard let fd = try? FD.open("/proc/\(process)/\(file)", O_RDONLY),
            let bytes = try? FD.readAll(fd.raw, limit: 1 << 16, from: "the process' \(file)")
        else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// What of proc_pid_stat(5) comes behind the name, which may have spaces: the state, the parent …
    static func fields(of process: pid_t) -> [Substring]? {
        guard let text = read("stat", of: process), let name = text.lastIndex(of: ")") else { return nil }
        return text[text.index(after: name)...].split(separator: " ")
    }
}
