import Foundation
import HarnessSystem

/// A process that a test or the harness started. Its output is collected as it comes; it is
/// killed when this goes.
public final class ChildProcess: @unchecked Sendable {
    /// How a process ended.
    public enum Exit: Equatable, Sendable {
        case status(Int32)
        case signal(Int32)
    }

    public let pid: pid_t
    public let arguments: [String]
    /// Writes to the child's standard input; -1 when it has none.
    private var inputFD: Int32 = -1
    private let state: State

    /// What the threads that read and wait share with the owner.
    private final class State: @unchecked Sendable {
        let changed = NSCondition()
        var output: Stream
        var errors: Stream
        var exit: Exit?
        var hasOpenPipes: Bool { !output.hasEnded || !errors.hasEnded }

        init(output: Int32, errors: Int32) {
            self.output = Stream(fd: output)
            self.errors = Stream(fd: errors)
        }

        /// Takes what is in the pipes; with the lock held.
        func drain() {
            let isNew = [output.drain(), errors.drain()]
            if isNew.contains(true) { changed.broadcast() }
        }
    }

    /// A pipe from the child that does not block, and what has come out of it.
    private struct Stream {
        let fd: Int32
        var data = Data()
        var hasEnded = false

        /// - Returns: whether there was anything, be it the end.
        mutating func drain() -> Bool {
            guard !hasEnded else { return false }
            var buffer = [UInt8](repeating: 0, count: 1 << 16)
            let before = data.count
            // Not for ever, should the child write as fast as this reads.
            for _ in 0..<64 {
                let count = read(fd, &buffer, buffer.count)
                if count > 0 {
                    data.append(contentsOf: buffer[..<count])
                } else if count == 0 || errno != EINTR {
                    hasEnded = count == 0 || errno != EAGAIN
                    break
                }
            }
            return hasEnded || data.count > before
        }
    }

    /// A test may write to what has just been closed at the other end: that is an error and not the end of all tests.
    private static let ignoresBrokenPipes: Void = { _ = Foundation.signal(SIGPIPE, SIG_IGN) }()
    public static func ignoreBrokenPipes() { _ = ignoresBrokenPipes }

    /// Starts a program, searched in PATH unless it has a slash.
    /// - Parameters:
    ///   - environment: added to this process' own; an empty value removes the name.
    ///   - withInput: whether the child gets a pipe to read from, else /dev/null.
    ///   - descriptors: open fds of this process, by their number in the child.
    public init(
        _ arguments: [String], environment: [String: String] = [:], withInput: Bool = false,
        descriptors: [Int32: Int32] = [:]
    ) throws {
        Self.ignoreBrokenPipes()
        self.arguments = arguments
        guard let program = arguments.first else { throw Failure("no program to start") }
        let output = try Self.pipe()
        let errors = try Self.pipe()
        let input = withInput ? try Self.pipe() : (-1, -1)
        for fd in [output.0, errors.0] { _ = fcntl(fd, F_SETFL, O_NONBLOCK) }

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        if withInput {
            posix_spawn_file_actions_adddup2(&actions, input.0, 0)
        } else {
            posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        }
        posix_spawn_file_actions_adddup2(&actions, output.1, 1)
        posix_spawn_file_actions_adddup2(&actions, errors.1, 2)
        // From above all of the child's numbers: one that is put in place takes none that is yet to be.
        let last = max(2, descriptors.keys.max() ?? 2)
        let sources = descriptors.mapValues { fcntl($0, F_DUPFD_CLOEXEC, last + 1) }
        defer { for fd in sources.values { close(fd) } }
        for (target, source) in sources { posix_spawn_file_actions_adddup2(&actions, source, target) }
        // Other threads open files without FD_CLOEXEC, as Foundation does; none of them is the child's.
        for number in 3..<max(3, last) where descriptors[number] == nil {
            posix_spawn_file_actions_addclose(&actions, number)
        }
        _ = harness_spawn_closes_from(&actions, last + 1)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        // What this process ignores, or whoever started it (nohup, a shell's background), the child does not.
        var all = sigset_t()
        sigfillset(&all)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

        var merged = ProcessInfo.processInfo.environment
        for (name, value) in environment { merged[name] = value.isEmpty ? nil : value }
        let variables = merged.map { strdup("\($0.key)=\($0.value)") } + [nil]
        let words = arguments.map { strdup($0) } + [nil]
        defer { for pointer in variables + words { free(pointer) } }
        var pid: pid_t = 0
        let code = posix_spawnp(&pid, program, &actions, &attributes, words, variables)
        self.pid = pid
        close(output.1)
        close(errors.1)
        if withInput { close(input.0) }
        guard code == 0 else {
            // `deinit`, which would kill process 0, does not run: not all of this is initialized.
            for fd in [output.0, errors.0] + (withInput ? [input.1] : []) { close(fd) }
            throw Failure("\(program): \(String(cString: strerror(code)))")
        }
        state = State(output: output.0, errors: errors.0)
        inputFD = input.1
        Self.collect(in: state)
        Self.reap(pid, in: state)
    }

    deinit {
        closeInput()
        state.changed.lock()
        if state.exit == nil { Foundation.kill(pid, SIGKILL) }
        state.changed.unlock()
    }

    private static func pipe() throws -> (Int32, Int32) {
        var ends: [Int32] = [-1, -1]
        guard harness_pipe(&ends) == 0 else { throw Failure.system("pipe") }
        return (ends[0], ends[1])
    }

    /// Empties the pipes for as long as somebody has them open, so that nobody waits to write.
    private static func collect(in state: State) {
        Thread.detachNewThread {
            while true {
                var polled = state.changed.withLock {
                    [state.output, state.errors].filter { !$0.hasEnded }
                        .map { pollfd(fd: $0.fd, events: Int16(POLLIN), revents: 0) }
                }
                if polled.isEmpty { break }
                poll(&polled, nfds_t(polled.count), -1)
                state.changed.withLock { state.drain() }
            }
            close(state.output.fd)
            close(state.errors.fd)
        }
    }

    private static func reap(_ pid: pid_t, in state: State) {
        Thread.detachNewThread {
            // Waits without reaping first, so that the pid cannot be another's
            // while `deinit` may still send it a signal.
            var info = siginfo_t()
            while waitid(P_PID, id_t(pid), &info, WEXITED | WNOWAIT) != 0 && errno == EINTR {}
            state.changed.lock()
            var status: Int32 = 0
            while waitpid(pid, &status, 0) < 0 && errno == EINTR {}
            state.exit = status & 0x7F == 0 ? .status(status >> 8 & 0xFF) : .signal(status & 0x7F)
            state.changed.broadcast()
            state.changed.unlock()
        }
    }

    // MARK: Use

    /// What the child has written so far, to the last byte: what it wrote before something that has been seen, such
    /// as its answer to a command, is in it.
    public var output: String { said(\.output) }
    public var errors: String { said(\.errors) }

    private func said(_ stream: KeyPath<State, Stream>) -> String {
        state.changed.withLock {
            state.drain()
            return String(decoding: state[keyPath: stream].data, as: UTF8.self)
        }
    }

    /// How it is and what it said, for a message about a failure.
    public var report: String {
        let (exit, errors) = (state.changed.withLock { state.exit }, self.errors)
        return "process \(pid) (\(arguments.first ?? "")) \(exit.map { "has ended with \($0)" } ?? "runs")"
            + (errors.isEmpty ? "" : ", and said: \(errors.suffix(4000))")
    }

    public var isRunning: Bool { state.changed.withLock { state.exit == nil } }

    public func signal(_ number: Int32) {
        state.changed.withLock { if state.exit == nil { Foundation.kill(pid, number) } }
    }

    public func write(_ text: String) throws {
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Foundation.write(inputFD, $0.baseAddress, $0.count) }
            guard count > 0 else { throw Failure.system("write to \(arguments[0])") }
            rest = rest.dropFirst(count)
        }
    }
    public func closeInput() {
        if inputFD >= 0 { close(inputFD) }
        inputFD = -1
    }

    /// Waits for the end of the process and of its output.
    @discardableResult
    public func waitForExit(by deadline: Deadline = .patient) throws -> Exit {
        try wait("the end of \(arguments.joined(separator: " "))", by: deadline) { $0.exit }
        // Descendants may keep the pipes open for ever; what the process
        // itself wrote arrives at once.
        state.changed.lock()
        defer { state.changed.unlock() }
        let grace = Date(timeIntervalSinceNow: 5)
        state.drain()
        while state.hasOpenPipes, state.changed.wait(until: grace) {}
        guard let exit = state.exit else { throw Failure("the process has not ended") }
        return exit
    }

    /// Waits until the standard output contains `text`.
    public func waitForOutput(_ text: String, by deadline: Deadline = .patient) throws {
        try wait("'\(text)' in the output of \(arguments[0])", by: deadline) {
            $0.output.data.range(of: Data(text.utf8)).map { _ in true }
        }
    }
    /// Waits until the standard error contains `text`.
    public func waitForErrors(_ text: String, by deadline: Deadline = .patient) throws {
        try wait("'\(text)' in the errors of \(arguments[0])", by: deadline) {
            $0.errors.data.range(of: Data(text.utf8)).map { _ in true }
        }
    }

    private func wait<T>(_ what: String, by deadline: Deadline, _ value: (State) -> T?) throws {
        state.changed.lock()
        defer { state.changed.unlock() }
        while true {
            state.drain()
            if value(state) != nil { return }
            let ended = state.exit != nil && !state.hasOpenPipes
            if ended || deadline.hasPassed {
                throw Failure(
                    "gave up waiting for \(what)\(state.exit.map { " (ended with \($0))" } ?? "")\n"
                        + "output: \(String(decoding: state.output.data.suffix(4000), as: UTF8.self))\n"
                        + "errors: \(String(decoding: state.errors.data.suffix(4000), as: UTF8.self))")
            }
            _ = state.changed.wait(until: Date(timeIntervalSinceNow: Double(deadline.milliseconds) / 1000))
        }
    }

    /// Runs a program to its end.
    /// - Throws: an error with its output when it does not exit with status 0.
    @discardableResult
    public static func run(
        _ arguments: [String], environment: [String: String] = [:], by deadline: Deadline = .patient
    ) throws -> String {
        let child = try ChildProcess(arguments, environment: environment)
        let exit = try child.waitForExit(by: deadline)
        guard exit == .status(0) else {
            throw Failure("\(arguments.joined(separator: " ")): \(exit)\n\(child.output)\(child.errors)")
        }
        return child.output
    }
}
