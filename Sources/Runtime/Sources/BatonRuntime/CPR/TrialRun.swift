import CBaton
import Glibc

/// The process of a preflight, watched from the event loop.
final class TrialRun {
    private static let outputLimit = 4096
    /// Nanoseconds that a process may live without speaking any more.
    private static let lastMoments: Int64 = 2_000_000_000
    private let pid: pid_t
    private let startedAt = EventLoop.now
    private var watchReader: Int32
    private var errorReader: Int32
    private var token: Int32
    private var pidfd: Int32 = -1
    private var timer: EventLoop.Timer?
    private weak var loop: EventLoop?
    private var messages: WatchMessages
    private var errors: [UInt8] = []
    /// Why the new VMM could not take the guest over; nil until that is known,
    /// and when it could.
    private(set) var failure: VMMError?
    private(set) var isDecided = false
    /// Nanoseconds until it was decided.
    private(set) var duration: Int64 = 0

    /// Starts the process.
    /// - Parameter state: names descriptors, borrowed, that it inherits.
    init(_ argv: [String], state: CprState) throws(VMMError) {
        var pipes: [Pipe] = []
        do throws(VMMError) {
            for _ in 0..<3 { pipes.append(try Pipe()) }
            let (token, watch, errors) = (pipes[0], pipes[1], pipes[2])
            for reader in pipes.map(\.reader) { try FD.setNonBlocking(reader, true) }
            var state = state
            // A pipe: there is no token to take.
            var secret: UInt64 = 0
            guard cbaton_getrandom(&secret, 8) == 8 else { throw .system("cannot make a secret for the trial") }
            messages = WatchMessages(stage: .starting, secret: secret, mayWait: false)
            state.lifeboat = Lifeboat.Link(token: token.reader, watch: watch.writer, secret: secret)
            let memfd = try state.writeMemfd()
            pid = try TrialRun.spawn(argv, state, memfd: memfd.raw, standardError: errors.writer)
            for fd in [token.reader, watch.writer, errors.writer] { close(fd) }
            (self.token, watchReader, errorReader) = (token.writer, watch.reader, errors.reader)
        } catch {
            for pipe in pipes { pipe.close() }
            throw error
        }
        Log.trace("cpr_preflight", "\(argv[0]) pid \(pid)")
    }

    private static func spawn(_ argv: [String], _ state: CprState, memfd: Int32, standardError: Int32)
        throws(VMMError) -> pid_t
    {
        guard cbaton_cloexec_from(3) == 0 else { throw .system("Could not set FD_CLOEXEC") }
        var arguments = argv.map { strdup($0) }
        arguments.append(nil)
        defer { for argument in arguments { free(argument) } }
        let inherited = state.ram.map(\.fd) + state.fds.map(\.fd) + state.ownDescriptors + [memfd]
        var pid: pid_t = 0
        setenv(CprState.environmentVariable, String(memfd), 1)
        defer { unsetenv(CprState.environmentVariable) }
        let code = cbaton_spawn(&arguments, inherited, inherited.count, standardError, &pid)
        guard code == 0 else { throw .system("cannot execute '\(argv[0])'", errno: code) }
        return pid
    }

    /// Follows the process until it is decided, for at most `limit` nanoseconds.
    func watch(_ loop: EventLoop, limit: Int64) throws(VMMError) {
        self.loop = loop
        try loop.watch(errorReader, .readable) { [unowned self] _ in takeErrors() }
        try loop.watch(watchReader, .readable) { [unowned self] _ in takeMessages() }
        timer = loop.schedule(at: startedAt + limit) { [unowned self] in
            decide(messages.stage == .passed ? nil : VMMError(messages.tooLate(limit: limit)))
        }
    }

    private func takeMessages() {
        let more = messages.receive(from: watchReader)
        // Its end takes some ms, in which the guest runs: an update that
        // follows would have the guest wait for it.
        guard !more else { return }
        if messages.stage == .passed { return decide(nil) }
        if messages.refusal != nil || messages.isBroken { return decide(VMMError(messages.ended)) }
        awaitEnd()
    }

    /// It does not speak any more, so it is about to end: at once, or on a busy machine not so soon. The guest runs.
    private func awaitEnd() {
        guard let loop else { return }
        loop.unwatch(watchReader)
        timer?.cancel()
        timer = loop.schedule(at: EventLoop.now + TrialRun.lastMoments) { [unowned self] in takeEnd() }
        pidfd = cbaton_pidfd_open(pid)
        guard pidfd >= 0 else { return }
        do throws(VMMError) { try loop.watch(pidfd, .readable) { [unowned self] _ in takeEnd() } } catch { takeEnd() }
    }

    private func takeEnd() {
        loop?.unwatch(pidfd)
        reap(WNOHANG)
        takeErrors()
        decide(VMMError("\(endText)\(lastWords)"))
    }

    private func takeErrors() {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = retryingInterrupts { read(errorReader, &buffer, buffer.count) }
        if count > 0 {
            errors += buffer[..<count]
            if errors.count > TrialRun.outputLimit { errors.removeFirst(errors.count - TrialRun.outputLimit) }
        } else if count == 0 {
            loop?.unwatch(errorReader)
        }
    }

    private func decide(_ failure: VMMError?) {
        guard !isDecided else { return }
        isDecided = true
        duration = EventLoop.now - startedAt
        self.failure = failure
        takeErrors()
    }

    /// How the process ended, if it has.
    private var endText: String {
        guard let status else { return "the new VMM does not speak to this one" }
        let signal = status & 0x7f
        if signal != 0 { return "the new VMM was ended by signal \(signal) (\(String(cString: strsignal(signal))))" }
        return "the new VMM ended during its start, with status \(status >> 8 & 0xff)"
    }

    /// What the process wrote to its standard error.
    var output: String { String(decoding: errors, as: UTF8.self) }

    /// The last line of that, for an error.
    private var lastWords: String {
        let line = output.split(separator: "\n").last.map(String.init) ?? ""
        return line.isEmpty ? "" : ": \(line)"
    }

    private var status: Int32?

    private func reap(_ options: Int32) {
        var value: Int32 = 0
        if retryingInterrupts({ waitpid(pid, &value, options) }) == pid { status = value }
    }

    /// Makes sure that nothing is left of the process.
    func end() {
        timer?.cancel()
        if status == nil {
            kill(pid, SIGKILL)
            reap(0)
            // Not to be killed a second time.
            status = status ?? 0
        }
        for fd in [watchReader, errorReader, pidfd] where fd >= 0 {
            loop?.unwatch(fd)
            close(fd)
        }
        if token >= 0 { close(token) }
        (watchReader, errorReader, token, pidfd) = (-1, -1, -1, -1)
    }
}
