import BatonBase
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
        guard argv.first?.isEmpty == false else { throw VMMError("cpr-exec requires a command") }
        try check(argv)
        var state = state
        let keeper = cbaton_start_keeper(state.lifeboatPID)
        if keeper > 0 { state.helpers.append(keeper) }
        let failure = executeWithState(argv, state, fds)
        if keeper > 0 {
            kill(keeper, SIGKILL)
            _ = cbaton_await_child(keeper, 1_000_000_000)
        }
        throw failure
    }

    /// - Returns: why the exec failed.
    private static func executeWithState(_ argv: [String], _ state: CprState, _ fds: [Int32]) -> VMMError {
        do throws(VMMError) { try execute(argv, state, fds) } catch { return error }
    }

    private static func execute(_ argv: [String], _ state: CprState, _ fds: [Int32]) throws(VMMError) -> Never {
        let memfd = try state.writeMemfd()
        // Modules and libraries may have opened files of their own without
        // FD_CLOEXEC: everything is marked first, then exactly the preserved
        // descriptors are cleared.
        guard cbaton_cloexec_from(3) == 0 else { throw .system("Could not set FD_CLOEXEC") }
        var cleared: [Int32] = []
        var environment = state.environment
        environment.append((CprState.environmentVariable, String(memfd.raw)))
        if let text = state.reportText { environment.append((CprState.reportVariable, text)) }
        func restore() {
            for fd in cleared { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
            for variable in environment { unsetenv(variable.name) }
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
        for variable in environment { setenv(variable.name, variable.value, 1) }
        var arguments = argv.map { strdup($0) }
        arguments.append(nil)
        Log.trace("cpr_exec", "\(argv[0])")
        if let slack = state.markedTimerSlack { _ = cbaton_set_timer_slack(slack) }
        _ = cbaton_execvp(argv[0], &arguments)
        let code = errno
        if let slack = state.timerSlack { _ = cbaton_set_timer_slack(slack) }
        for argument in arguments { free(argument) }
        restore()
        throw .system("cpr-exec: execvp '\(argv[0])' failed", errno: code)
    }

    static func check(_ argv: [String]) throws(VMMError) {
        for argument in argv where argument.utf8.contains(0) {
            throw VMMError("cpr-exec: argument '\(argument)' contains a zero byte")
        }
    }
}
