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

    /// Nanoseconds in which a process has had a processor, and has waited for one (Documentation/scheduler/sched-stats.rst).
    /// - Returns: nil where the kernel does not count that.
    static func schedule(of process: pid_t) -> (ran: Int64, waited: Int64)? {
        let numbers = read("schedstat", of: process)?.split(separator: " ").compactMap { Int64($0) } ?? []
        return numbers.count < 2 ? nil : (numbers[0], numbers[1])
    }

    static func waitedForProcessor(_ process: pid_t) -> Int64? { schedule(of: process)?.waited }

    /// What of proc_pid_stat(5) comes behind the name, which may have spaces: the state, the parent …
    static func fields(of process: pid_t) -> [Substring]? {
        guard let text = read("stat", of: process), let name = text.lastIndex(of: ")") else { return nil }
        return text[text.index(after: name)...].split(separator: " ")
    }

    /// Where a process is, in the words of an error: its state, the number of its system call, and the function of the
    /// kernel that it waits in, as far as the kernel tells (proc(5): `stat`, `syscall`, `wchan`).
    static func whereabouts(of process: pid_t) -> String? {
        guard let state = fields(of: process)?.first else { return nil }
        let call = read("syscall", of: process)?.prefix { $0 != " " && $0 != "\n" } ?? "unknown"
        let place = read("wchan", of: process).map { $0 == "0" || $0.isEmpty ? "" : ", in \($0)" } ?? ""
        return "in state \(state), system call \(call)\(place)"
    }
}
