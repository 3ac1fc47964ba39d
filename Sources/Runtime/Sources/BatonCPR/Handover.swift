import BatonBase
import CBaton
import Glibc

/// How the old VMM gets a new one: what a mode's `exec` and `connect` are made of.
///
/// Either the new VMM is executed in this process, which goes on in a child of it;
/// or it is a process that somebody else has started, and there is a socket to it.
public enum Handover {
    /// What is to be done when the mode has returned.
    private enum Request {
        case exec([String], state: CprState, fds: [Int32])
        case connection(Int32, state: CprState)
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
        request = .exec(argv, state: state, fds: fds)
    }

    /// Has the guest handed over, when the mode's `connect` has returned, to the VMM at
    /// the other end of a socket. For that method only.
    /// - Parameters:
    ///   - fd: a connected SOCK_SEQPACKET unix socket; the runtime's from then on.
    ///   - state: what names RAM and descriptors, which go along.
    public static func connect(_ fd: Int32, state: CprState) throws(VMMError) {
        let owned = OwnedFD(adopting: fd)
        guard DescriptorKind.isPacketConnection(fd) else {
            throw VMMError("fd \(fd) is not a connected socket of type SOCK_SEQPACKET")
        }
        try FD.setNonBlocking(fd, true)
        forget()
        request = .connection(owned.release(), state: state)
    }

    /// Forgets what a mode has asked for.
    static func forget() {
        if case .connection(let fd, _)? = request { close(fd) }
        request = nil
    }

    /// Does what the mode has asked for. On the main thread. After an exec it returns in
    /// the child, which has everything that this process had, guest and devices too.
    /// - Returns: false when it has asked for nothing.
    /// - Throws: why there is no new VMM; everything is as before. Or, in the child, that the
    ///   exec took too long.
    static func carryOut(for successor: Successor) throws(VMMError) -> Bool {
        let asked = request
        request = nil
        switch asked {
        case nil: return false
        case .exec(let argv, let state, let fds)?: try execute(argv, state, fds)
        case .connection(let fd, let state)?: try successor.attach(fd, state)
        }
        return true
    }

    private static func execute(_ argv: [String], _ state: CprState, _ fds: [Int32]) throws(VMMError) {
        let memfd = try state.writeMemfd()
        var arguments = argv.map { strdup($0) } + [nil]
        var own = state.environment + [(CprState.environmentVariable, String(memfd.raw))]
        if let text = state.reportText { own.append((CprState.reportVariable, text)) }
        let variables = environment(without: own.map(\.name)) + own.map { "\($0.name)=\($0.value)" }
        var environment = variables.map { strdup($0) } + [nil]
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
    }

    /// This process' environment without some variables, as `NAME=VALUE`.
    static func environment(without names: [String] = []) -> [String] {
        let prefixes = names.map { "\($0)=" }
        var result: [String] = []
        var next: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = environ
        while let variable = next?.pointee {
            let text = String(cString: variable)
            if !prefixes.contains(where: text.hasPrefix) { result.append(text) }
            next = next?.advanced(by: 1)
        }
        return result
    }

    /// A command line may be long, and the guest waits.
    private static func hasZeroByte(_ text: String) -> Bool {
        var text = text
        return text.withUTF8 { bytes in
            guard let start = bytes.baseAddress else { return false }
            return memchr(start, 0, bytes.count) != nil
        }
    }

    static func check(_ argv: [String]) throws(VMMError) {
        for argument in argv where hasZeroByte(argument) {
            throw VMMError("cpr-exec: argument '\(argument)' contains a zero byte")
        }
    }
}
