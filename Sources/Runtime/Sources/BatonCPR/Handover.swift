import BatonBase
import CBaton
import Glibc

/// Executes a new VMM in this process, and goes on in a child of it: what a
/// mode's `exec` is made of.
public enum Handover {
    /// What is to be executed, when the mode has returned.
    private struct Request {
        var argv: [String]
        var state: CprState
        var fds: [Int32]
    }
    nonisolated(unsafe) private static var request: Request?

    /// Nanoseconds that an exec may take: program and interpreter may have to be
    /// read from a disk.
    private static let execLimit: Int64 = 2_000_000_000

    /// Has `argv` executed with the CPR state in its environment, in this process,
    /// as soon as the mode's `exec` has returned. For that method only.
    ///
    /// argv[0] is executed directly, found in PATH as a shell would find it. It
    /// may be a command that executes the VMM in turn.
    /// - Parameters:
    ///   - fds: the descriptors that the new program inherits, beside 0, 1 and
    ///     2 and the CPR state. Borrowed.
    /// - Throws: why it cannot be; nothing is executed then.
    public static func exec(_ argv: [String], state: CprState, fds: [Int32]) throws(VMMError) {
        guard argv.first?.isEmpty == false else { throw VMMError("cpr-exec requires a command") }
        try check(argv)
        request = Request(argv: argv, state: state, fds: fds)
    }

    /// Forgets what a mode has asked for.
    static func forget() { request = nil }

    /// Does what the mode has asked for. Returns in the child, which has everything
    /// that this process had, guest and devices too. On the main thread.
    /// - Returns: false when it has asked for nothing.
    /// - Throws: why the exec failed; everything is as before. Or, in the child, that the exec
    ///   took too long.
    static func carryOut() throws(VMMError) -> Bool {
        guard let (argv, state, fds) = request.map({ ($0.argv, $0.state, $0.fds) }) else { return false }
        request = nil
        let memfd = try state.writeMemfd()
        var arguments = argv.map { strdup($0) } + [nil]
        var environment = environment(of: state, memfd: memfd.raw).map { strdup($0) } + [nil]
        defer { for text in arguments + environment { free(text) } }
        let inherited = fds + state.ownDescriptors + [memfd.raw]
        Log.trace("cpr_exec", "\(argv[0])")
        var process: Int32 = -1
        let result = arguments.withUnsafeMutableBufferPointer { argv in
            environment.withUnsafeMutableBufferPointer { environment in
                inherited.withUnsafeBufferPointer { inherited in
                    var what = cbaton_execution(
                        argv: argv.baseAddress, environment: environment.baseAddress, fds: inherited.baseAddress,
                        count: inherited.count, timer_slack: state.markedTimerSlack ?? cbaton_timer_slack(),
                        placeholder: Placeholder.current ?? 0)
                    return cbaton_execute_beside(&what, execLimit, &process)
                }
            }
        }
        guard result >= 0 else { throw .system("cpr-exec: execvp '\(argv[0])' failed") }
        Successor.executed = process
        guard result == CBATON_EXECUTED else {
            throw VMMError("cpr-exec: '\(argv[0])' was not executed within \(execLimit / 1_000_000) ms")
        }
        return true
    }

    /// This process' environment, and what tells the new VMM of its state.
    private static func environment(of state: CprState, memfd: Int32) -> [String] {
        var own = state.environment + [(CprState.environmentVariable, String(memfd))]
        if let text = state.reportText { own.append((CprState.reportVariable, text)) }
        var result: [String] = []
        var next: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = environ
        while let variable = next?.pointee {
            let text = String(cString: variable)
            if !own.contains(where: { text.hasPrefix("\($0.0)=") }) { result.append(text) }
            next = next?.advanced(by: 1)
        }
        return result + own.map { "\($0.0)=\($0.1)" }
    }

    static func check(_ argv: [String]) throws(VMMError) {
        for argument in argv where argument.utf8.contains(0) {
            throw VMMError("cpr-exec: argument '\(argument)' contains a zero byte")
        }
    }
}
