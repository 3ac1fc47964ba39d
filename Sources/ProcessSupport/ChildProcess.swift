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
    private let state = State()

    /// What the threads that read and wait share with the owner.
    private final class State: @unchecked Sendable {
        let changed = NSCondition()
        var output = Data()
        var errors = Data()
        var openPipes = 2
        var exit: Exit?
    }

    /// Between making a pipe and marking it close-on-exec no other child may start.
    private static let spawnLock = NSLock()

    /// Starts a program, searched in PATH unless it has a slash.
    /// - Parameters:
    ///   - environment: added to this process' own; an empty value removes the name.
    ///   - withInput: whether the child gets a pipe to read from, else /dev/null.
    ///   - descriptors: open fds of this process, by their number in the child.
    public init(
        _ arguments: [String], environment: [String: String] = [:], withInput: Bool = false,
        descriptors: [Int32: Int32] = [:]
    ) throws {
        self.arguments = arguments
        guard let program = arguments.first else { throw Failure("no program to start") }
        Self.spawnLock.lock()
        defer { Self.spawnLock.unlock() }
        let output = try Self.pipe()
        let errors = try Self.pipe()
        let input = withInput ? try Self.pipe() : (-1, -1)

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
        for (target, source) in descriptors { posix_spawn_file_actions_adddup2(&actions, source, target) }
        // Other threads open files without FD_CLOEXEC, as Foundation does; none of them is the child's.
        _ = harness_spawn_closes_from(&actions, max(2, descriptors.keys.max() ?? 2) + 1)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))

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
            for fd in [output.0, errors.0] + (withInput ? [input.1] : []) { close(fd) }
            throw Failure("\(program): \(String(cString: strerror(code)))")
        }
        inputFD = input.1
        Self.collect(output.0, in: state) { $0.output.append($1) }
        Self.collect(errors.0, in: state) { $0.errors.append($1) }
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
        guard Foundation.pipe(&ends) == 0 else { throw Failure.system("pipe") }
        for fd in ends { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
        return (ends[0], ends[1])
    }

    private static func collect(_ fd: Int32, in state: State, _ add: @escaping @Sendable (State, Data) -> Void) {
        Thread.detachNewThread {
            var buffer = [UInt8](repeating: 0, count: 1 << 16)
            while true {
                let count = read(fd, &buffer, buffer.count)
                if count < 0 && errno == EINTR { continue }
                state.changed.lock()
                if count > 0 { add(state, Data(buffer[..<count])) } else { state.openPipes -= 1 }
                state.changed.broadcast()
                state.changed.unlock()
                if count <= 0 { break }
            }
            close(fd)
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

    /// What the child has written so far.
    public var output: String { state.changed.withLock { String(decoding: state.output, as: UTF8.self) } }
    public var errors: String { state.changed.withLock { String(decoding: state.errors, as: UTF8.self) } }
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
    public func waitForExit(by deadline: Deadline = .seconds(60)) throws -> Exit {
        try wait("the end of \(arguments.joined(separator: " "))", by: deadline) { $0.exit }
        // Descendants may keep the pipes open for ever; what the process
        // itself wrote arrives at once.
        state.changed.lock()
        defer { state.changed.unlock() }
        let grace = Date(timeIntervalSinceNow: 5)
        while state.openPipes > 0, state.changed.wait(until: grace) {}
        guard let exit = state.exit else { throw Failure("the process has not ended") }
        return exit
    }

    /// Waits until the standard output contains `text`.
    public func waitForOutput(_ text: String, by deadline: Deadline = .seconds(30)) throws {
        try wait("'\(text)' in the output of \(arguments[0])", by: deadline) {
            $0.output.range(of: Data(text.utf8)).map { _ in true }
        }
    }
    /// Waits until the standard error contains `text`.
    public func waitForErrors(_ text: String, by deadline: Deadline = .seconds(30)) throws {
        try wait("'\(text)' in the errors of \(arguments[0])", by: deadline) {
            $0.errors.range(of: Data(text.utf8)).map { _ in true }
        }
    }

    private func wait<T>(_ what: String, by deadline: Deadline, _ value: (State) -> T?) throws {
        state.changed.lock()
        defer { state.changed.unlock() }
        while value(state) == nil {
            let limit = Date(timeIntervalSinceNow: Double(deadline.milliseconds) / 1000)
            let ended = state.exit != nil && state.openPipes == 0
            if ended || !state.changed.wait(until: limit) && deadline.hasPassed {
                if value(state) != nil { return }
                throw Failure(
                    "gave up waiting for \(what)\(state.exit.map { " (ended with \($0))" } ?? "")\n"
                        + "output: \(String(decoding: state.output.suffix(2000), as: UTF8.self))\n"
                        + "errors: \(String(decoding: state.errors.suffix(2000), as: UTF8.self))")
            }
        }
    }

    /// Runs a program to its end.
    /// - Throws: an error with its output when it does not exit with status 0.
    @discardableResult
    public static func run(
        _ arguments: [String], environment: [String: String] = [:], by deadline: Deadline = .seconds(120)
    ) throws -> String {
        let child = try ChildProcess(arguments, environment: environment)
        let exit = try child.waitForExit(by: deadline)
        guard exit == .status(0) else {
            throw Failure("\(arguments.joined(separator: " ")): \(exit)\n\(child.output)\(child.errors)")
        }
        return child.output
    }
}
