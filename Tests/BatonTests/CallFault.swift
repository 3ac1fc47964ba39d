import Foundation
import TestSupport

/// A system call that strace makes fail, or late.
struct CallFault: CustomStringConvertible {
    enum Kind: String, CaseIterable {
        /// This call alone fails.
        case once
        /// This one and all of its name that follow.
        case onwards
        /// This one takes long, and does what it should.
        case late
    }

    let call: String
    /// Which call of that name in a process, from 1.
    let number: Int
    let error: String
    let kind: Kind

    var description: String { "\(call) \(number) \(kind == .late ? "" : error + " ")\(kind)" }

    /// Options of strace.
    var options: [String] {
        let what = kind == .late ? "delay_enter=\(Self.delay)" : "error=\(error)"
        return ["-e", "trace=\(call)", "-e", "inject=\(call):\(what):when=\(number)\(kind == .onwards ? "+" : "")"]
    }

    /// Microseconds: longer than anything of an update takes, shorter than its limits.
    private static let delay = 30_000

    /// They cannot fail, or their result is not an error, or they are strace's own way.
    private static let withoutError: Set<String> = [
        "brk", "arch_prctl", "set_tid_address", "set_robust_list", "get_robust_list", "rseq", "exit_group", "getpid",
        "gettid", "getppid", "getuid", "geteuid", "munmap", "close", "futex", "sched_yield", "rt_sigprocmask",
        "rt_sigreturn", "kill", "restart_syscall", "execve",
    ]
    private static let errors: [String: [String]] = [
        "openat": ["EMFILE", "ENOMEM", "EACCES"], "mmap": ["ENOMEM"], "mremap": ["ENOMEM"], "mprotect": ["ENOMEM"],
        "clone": ["EAGAIN"], "clone3": ["EAGAIN"], "fcntl": ["EMFILE", "EINVAL"], "memfd_create": ["EMFILE", "ENOMEM"],
        "socketpair": ["EMFILE"], "pipe2": ["EMFILE"], "epoll_create1": ["EMFILE"], "eventfd2": ["EMFILE"],
        "pidfd_open": ["EMFILE"], "epoll_ctl": ["ENOSPC", "ENOMEM"], "write": ["EIO", "ENOSPC"],
        "ftruncate": ["ENOSPC", "EIO"], "sendmsg": ["ENOBUFS"], "recvmsg": ["ENOMEM"], "getrandom": ["EAGAIN"],
        "prctl": ["EINVAL"], "kcmp": ["EPERM"], "poll": ["ENOMEM"], "ppoll": ["ENOMEM"], "pwrite64": ["ENOSPC", "EIO"],
        "fallocate": ["ENOSPC"], "copy_file_range": ["ENOSPC"], "rename": ["EACCES"], "renameat2": ["EACCES"],
        "linkat": ["ENOSPC"], "fsync": ["EIO", "ENOSPC"], "fdatasync": ["EIO"], "msync": ["EIO"],
    ]

    /// What can fail in a run like that of a trace.
    /// - Parameters:
    ///   - lines: strace's, each with the PID in front.
    ///   - excluded: calls that are not tried.
    static func all(in lines: [Substring], _ kind: Kind, except excluded: Set<String> = []) -> [CallFault] {
        // How often each process makes each call.
        var counts: [Substring: [Substring: Int]] = [:]
        for line in lines {
            guard let match = line.prefixMatch(of: #/(\d+) +(\w+)\(/#) else { continue }
            counts[match.2, default: [:]][match.1, default: 0] += 1
        }
        return counts.sorted { $0.key < $1.key }
            .filter { !withoutError.contains(String($0.key)) && !excluded.contains(String($0.key)) }
            .flatMap { call, processes in
                (1...(processes.values.max() ?? 1)).flatMap { number in
                    (kind == .late ? [""] : errors[String(call)] ?? ["EIO"]).map {
                        CallFault(call: String(call), number: number, error: $0, kind: kind)
                    }
                }
            }
    }
}
