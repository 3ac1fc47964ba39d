import BatonBase
import CBaton
import Glibc

/// What the old VMM leaves behind with the process that it was, when the new one
/// fails there: the terminal, whose owner has seen that process end.
enum LostSession {
    /// Leaves the session if it has a terminal: the end of its leader ends all
    /// that is in its foreground, and a shell takes the terminal for itself.
    /// Comes before the process is ended.
    static func leave() {
        let terminal = open("/dev/tty", O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC)
        if terminal >= 0 {
            close(terminal)
            // A child that was made for the exec leads no process group.
            setsid()
        }
    }

    /// Forgets a SIGHUP that the end of the session has brought, and keeps one
    /// that somebody has sent.
    /// - Parameter mask: the signal mask to have again.
    static func forgetHangup(_ mask: inout sigset_t) {
        var hangup = sigset_t()
        sigemptyset(&hangup)
        sigaddset(&hangup, SIGHUP)
        var isMeant = false
        var info = siginfo_t()
        var none = timespec()
        while sigtimedwait(&hangup, &info, &none) == SIGHUP { isMeant = isMeant || info.si_code <= 0 }
        sigprocmask(SIG_SETMASK, &mask, nil)
        if isMeant { raise(SIGHUP) }
    }

    /// Signals to stop that the process has got and not seen.
    /// The kernel says so in `ShdPnd` and `SigPnd` of the process' status, in
    /// hexadecimal. A leader's own end leaves it a SIGHUP that nobody has sent.
    static func pendingStops(of process: pid_t) -> [Int32] {
        // Mounted in another namespace, it has others' PIDs.
        var link = [CChar](repeating: 0, count: 16)
        guard readlink("/proc/self", &link, 15) > 0, atoi(&link) == getpid(),
            let status = ProcessFiles.read("status", of: process)
        else { return [] }
        var pending: UInt64 = 0
        for line in status.split(separator: "\n") where line.hasPrefix("ShdPnd:") || line.hasPrefix("SigPnd:") {
            pending |= UInt64(line.dropFirst(7).drop { $0 == " " || $0 == "\t" }, radix: 16) ?? 0
        }
        // Looked at later: one that is not ending now was not then.
        if isEnding(process) { pending &= ~(1 << UInt64(SIGHUP - 1)) }
        return ([SIGINT, SIGTERM, SIGHUP] as [Int32]).filter { pending & 1 << UInt64($0 - 1) != 0 }
    }

    /// Whether a process has begun to end, long before that shows otherwise: the terminal is lost in between. The
    /// kernel says so in the flags, the seventh field.
    private static func isEnding(_ process: pid_t) -> Bool {
        let isExiting: UInt64 = 4  // PF_EXITING
        guard let fields = ProcessFiles.fields(of: process), fields.count > 6, let flags = UInt64(fields[6]) else {
            return true
        }
        return flags & isExiting != 0
    }
}
