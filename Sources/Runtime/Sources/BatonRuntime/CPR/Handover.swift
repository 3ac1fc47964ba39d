import CBaton
import Glibc

/// Replaces this process by another program that inherits just the preserved
/// descriptors: what a mode's `exec` is made of.
public enum Handover {
    /// Executes `argv` with the CPR state in its environment.
    ///
    /// argv[0] is executed directly, found in PATH as a shell would find it. It
    /// may be a command that executes the VMM in turn.
    /// - Parameters:
    ///   - fds: the descriptors that the new program inherits, beside 0, 1 and
    ///     2 and the CPR state. Borrowed.
    /// - Throws: why the exec failed. Descriptors and environment are as before.
    public static func exec(_ argv: [String], state: CprState, fds: [Int32]) throws(VMMError) {
        guard let program = argv.first, !program.isEmpty else { throw VMMError("cpr-exec requires a command") }
        try check(argv)
        let memfd = try state.writeMemfd()
        // Modules and libraries may have opened files of their own without
        // FD_CLOEXEC: everything is marked first, then exactly the preserved
        // descriptors are cleared.
        guard cbaton_cloexec_from(3) == 0 else { throw .system("Could not set FD_CLOEXEC") }
        var cleared: [Int32] = []
        func restore() {
            for fd in cleared { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
            unsetenv(CprState.environmentVariable)
        }
        for fd in fds + state.ownDescriptors + [memfd.raw] {
            do {
                try FD.setCloseOnExec(fd, false)
                cleared.append(fd)
            } catch {
                restore()
                throw error
            }
        }
        setenv(CprState.environmentVariable, String(memfd.raw), 1)
        var arguments = argv.map { strdup($0) }
        arguments.append(nil)
        Log.trace("cpr_exec", "\(program)")
        if let slack = state.markedTimerSlack { _ = cbaton_set_timer_slack(slack) }
        _ = cbaton_execvp(program, &arguments, state.lifeboatPID)
        let code = errno
        if let slack = state.timerSlack { _ = cbaton_set_timer_slack(slack) }
        for argument in arguments { free(argument) }
        restore()
        throw .system("cpr-exec: execvp '\(program)' failed", errno: code)
    }

    static func check(_ argv: [String]) throws(VMMError) {
        for argument in argv where argument.utf8.contains(0) {
            throw VMMError("cpr-exec: argument '\(argument)' contains a zero byte")
        }
    }
}
