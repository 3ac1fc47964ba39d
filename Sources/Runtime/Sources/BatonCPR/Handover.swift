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
        case exec(Execution)
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
        request = .exec(try Execution(argv, state, fds))
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

    /// Whether the mode has asked for anything.
    static var isAsked: Bool { request != nil }

    /// Whether all descriptors that are to go along are still open.
    static var isStillReady: Bool {
        switch request {
        case .exec(let execution)?: execution.inherited.allSatisfy(FD.isOpen)
        case .connection(_, let state)?: (state.ram.map(\.fd) + state.fds.map(\.fd)).allSatisfy(FD.isOpen)
        case nil: true
        }
    }

    /// Does what the mode has asked for. On the main thread. After an exec it returns in
    /// the child, which has everything that this process had, guest and devices too.
    /// - Throws: why there is no new VMM; everything is as before. Or, in the child, that the
    ///   exec took too long.
    static func carryOut(for successor: Successor) throws(VMMError) {
        let asked = request
        request = nil
        switch asked {
        case nil: break
        case .exec(let execution)?: try execution.carryOut(limit: execLimit)
        case .connection(let fd, let state)?: try successor.attach(fd, state)
        }
    }

    /// A program, and all that it gets, ready for execve(2).
    private final class Execution {
        private let program: String
        private let memfd: OwnedFD
        private let arguments: CStringArray
        private let environment: CStringArray
        let inherited: [Int32]
        private let timerSlack: UInt

        init(_ argv: [String], _ state: CprState, _ fds: [Int32]) throws(VMMError) {
            program = argv[0]
            memfd = try state.writeMemfd()
            arguments = CStringArray(argv)
            var own = state.environment + [(CprState.environmentVariable, String(memfd.raw))]
            if let text = state.reportText { own.append((CprState.reportVariable, text)) }
            environment = CStringArray(
                Handover.environment(without: own.map(\.name)) + own.map { "\($0.name)=\($0.value)" })
            inherited = fds + state.ownDescriptors + [memfd.raw]
            timerSlack = state.markedTimerSlack ?? cbaton_timer_slack()
        }

        private static let willBeOwner: @convention(c) (pid_t) -> Void = { MainProcess.willBe($0) }

        func carryOut(limit: Int64) throws(VMMError) {
            Log.trace("cpr_exec", program)
            var process: Int32 = -1
            let result = inherited.withUnsafeBufferPointer { inherited in
                var what = cbaton_execution(
                    argv: arguments.pointers, environment: environment.pointers, fds: inherited.baseAddress,
                    count: inherited.count, timer_slack: timerSlack, placeholder: Placeholder.current ?? 0,
                    will_be_owner: MainProcess.isObserved ? Execution.willBeOwner : nil)
                return cbaton_execute_beside(&what, limit, &process)
            }
            guard result >= 0 else { throw .system("cpr-exec: execvp '\(program)' failed") }
            Successor.executed = process
            guard result == CBATON_EXECUTED else {
                throw VMMError("cpr-exec: '\(program)' was not executed within \(limit / 1_000_000) ms")
            }
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
        // It would be executed, and end as it finds none of its libraries.
        guard HostAccess.socket >= 0, let program = argv.first, program.utf8.contains(UInt8(ascii: "/")) else { return }
        let fd = retryingInterrupts { open(program, O_RDONLY | O_CLOEXEC | O_NONBLOCK) }
        if fd >= 0 {
            close(fd)
        } else if errno == EACCES {
            HostAccess.noteRefusal(program)
            throw .system("cannot execute '\(program)'")
        }
    }
}
