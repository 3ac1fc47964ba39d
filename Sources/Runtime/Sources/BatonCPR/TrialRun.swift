import BatonBase
import CBaton
import Glibc

/// The process of a preflight, and whatever it starts, watched from the event loop.
///
/// It is prepared and started by a thread (`TrialStart`), beside the guest. All of it
/// is below a process of this run's own, the supervisor, which passes
/// on how the program ends and, when it is told or this VMM ends, kills what is
/// left: also what a wrapper has put into the background. So no child of
/// anybody else in this VMM is taken for one of the trial's.
final class TrialRun {
    private static let outputLimit = 4096
    /// Nanoseconds that a process may live without speaking any more.
    private static let lastMoments: Int64 = 2_000_000_000
    /// Nanoseconds in which the supervisor is sure to have ended: it gives the
    /// others five seconds.
    private static let endLimit: Int64 = 6_000_000_000
    private let start: TrialStart
    /// What the supervisor has reported, see `cbaton_trial`.
    private var report: [UInt8] = []
    /// -1 when everything is to end.
    private var control: Int32
    private let reportReader: Int32
    private let startedAt = EventLoop.now
    private let watchReader: Int32
    private let errorReader: Int32
    private var timer: EventLoop.Timer?
    /// The supervisor, if that is not quite at its end when all is closed: a child to be waited for.
    private(set) var ending: pid_t?
    private weak var loop: EventLoop?
    private var messages: WatchMessages
    private var errors: [UInt8] = []
    private var speaksNoMore = false
    /// Why the new VMM could not take the guest over; nil until that is known,
    /// and when it could.
    private(set) var failure: VMMError?
    private(set) var isDecided = false
    /// Whether everything that was started has ended, or cannot be ended.
    private(set) var hasEnded = false
    /// Nanoseconds until it was decided.
    private(set) var duration: Int64 = 0

    /// Has the process started. Descriptors that `state` names are borrowed until
    /// this returns; the process gets others in their place.
    init(_ argv: [String], state: CprState) throws(VMMError) {
        var pipes: [Pipe] = []
        do throws(VMMError) {
            pipes.append(try Pipe(socketThatNamesSenders: ()))
            for _ in 0..<3 { pipes.append(try Pipe()) }
            let (watch, errors, control, report) = (pipes[0], pipes[1], pipes[2], pipes[3])
            for pipe in [watch, errors, report] { try FD.setNonBlocking(pipe.reader, true) }
            var state = state
            // There is no token to take.
            var secret: UInt64 = 0
            guard cbaton_getrandom(&secret, 8) == 8 else { throw .system("cannot make a secret for the trial") }
            messages = WatchMessages(stage: .starting, secret: secret, mayWait: false)
            messages.namesSender = true
            state.link = HandoverLink(channel: watch.writer, secret: secret)
            start = TrialStart(
                argv, state, standardError: errors.writer, control: control.reader, report: report.writer)
            try start.run()
            for fd in [watch.writer, errors.writer, control.reader, report.writer] { Glibc.close(fd) }
            (self.control, reportReader) = (control.writer, report.reader)
            (watchReader, errorReader) = (watch.reader, errors.reader)
        } catch {
            for pipe in pipes { pipe.close() }
            throw error
        }
        Log.trace("cpr_preflight", argv[0])
    }

    /// Follows the process until it is decided, for at most `limit` nanoseconds.
    func watch(_ loop: EventLoop, limit: Int64) throws(VMMError) {
        self.loop = loop
        try loop.watch(errorReader, .readable) { [unowned self] _ in takeErrors() }
        try loop.watch(watchReader, .readable) { [unowned self] _ in takeMessages() }
        try loop.watch(reportReader, .readable) { [unowned self] _ in takeReport() }
        look(StartLimit(limit, from: startedAt), loop)
    }

    /// Looks at the deadline whether it is late.
    private func look(_ limit: StartLimit, _ loop: EventLoop) {
        timer = loop.schedule(at: limit.nextLook) { [unowned self, unowned loop] in
            takeErrors()
            // This process may have been the one that had no turn.
            _ = messages.receive(from: watchReader)
            guard !decideByMessages() else { return }
            var limit = limit
            guard limit.isOver(for: program) else { return look(limit, loop) }
            decide(VMMError(messages.tooLate(limit: limit.limit) + whereabouts + lastWords))
        }
    }

    /// Where the trial hangs, as far as the kernel tells.
    private var whereabouts: String {
        guard let program, let place = ProcessFiles.whereabouts(of: program) else { return "" }
        return " (it is \(place)\(share(of: program)))"
    }

    /// Whether it was the machine that was slow.
    private func share(of process: pid_t) -> String {
        guard let times = ProcessFiles.schedule(of: process) else { return "" }
        let (ran, waited) = (times.ran / 1_000_000, times.waited / 1_000_000)
        return "; it ran for \(ran) ms, and waited for a processor for \(waited) ms"
    }

    /// Decides it, for whatever reason.
    func cancel(_ reason: String) { decide(VMMError(reason)) }

    /// The values that have been reported, as far as they have come.
    private func reported(_ index: Int) -> Int32? {
        let place = index * MemoryLayout<Int32>.size
        guard report.count >= place + MemoryLayout<Int32>.size else { return nil }
        return report.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: place, as: Int32.self) }
    }
    /// Why there is no program: an errno value, or `TrialStart.failed`; 0 when there is one.
    private var startCode: Int32? { reported(0) }
    private var supervisor: pid_t? { reported(1).flatMap { $0 > 0 ? $0 : nil } }
    private var program: pid_t? { startCode == 0 ? reported(2) : nil }
    /// The wait status of the program, once it has ended.
    private var status: Int32? { reported(3) }

    private func takeMessages() {
        let more = messages.receive(from: watchReader)
        // Its end takes some ms, in which the guest runs: an update that
        // follows would have the guest wait for it.
        guard !more, !decideByMessages() else { return }
        awaitEnd()
    }

    /// - Returns: false when it has not said how the trial ends.
    private func decideByMessages() -> Bool {
        if messages.stage == .passed {
            decide(isInBackground ? VMMError("\(TrialRun.endedBefore)\(lastWords)") : nil)
        } else if messages.refusal != nil || messages.isBroken {
            decide(VMMError(messages.ended))
        } else {
            return false
        }
        return true
    }

    /// Whether the command has ended, and the VMM that speaks is a process that it has left behind. In an update its end
    /// is that of the VM's process.
    private var isInBackground: Bool {
        guard let program, ![0, program].contains(messages.sender) else { return false }
        let state = ProcessFiles.fields(of: program)?.first
        return state == nil || state == "Z"
    }

    private static let endedBefore = "the command ended before the new VMM, which it left in the background"

    /// It does not speak any more, so it is about to end: at once, or on a busy machine not so soon. The guest runs.
    private func awaitEnd() {
        guard let loop, !isDecided else { return }
        loop.unwatch(watchReader)
        speaksNoMore = true
        if hasEnded { return decideByEnd() }
        timer?.cancel()
        timer = loop.schedule(at: EventLoop.now + TrialRun.lastMoments) { [unowned self] in decideByEnd() }
    }

    /// The supervisor reports the program's start and end, and with its own the end of all.
    private func takeReport() {
        var buffer = [UInt8](repeating: 0, count: 64)
        let count = retryingInterrupts { read(reportReader, &buffer, buffer.count) }
        if count > 0 {
            report += buffer[..<count]
            if let code = startCode, code != 0 { decide(start.failure(code)) }
            guard status != nil else { return }
            // What a wrapper has started may have the socket still.
            _ = messages.receive(from: watchReader)
            _ = decideByMessages()
        } else if count == 0 || !isTransientFailure() {
            loop?.unwatch(reportReader)
            hasEnded = true
            if speaksNoMore { decideByEnd() }
        }
    }

    private func decideByEnd() {
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
        let end = WaitStatus(raw: status)
        return "the new VMM \(end.isSignal ? "was ended" : "ended during its start,") \(end.text)"
    }

    /// What the process wrote to its standard error: the last few KiB.
    var output: String { String(decoding: errors, as: UTF8.self) }

    /// The error of that, or else its last line.
    private var lastWords: String {
        let lines = output.split(separator: "\n").map(String.init)
        // A hint may follow the error of a VMM.
        let error = lines.last { line in
            line.hasPrefix("\(Report.program): ")
                && !["warning", "info"].contains { line.hasPrefix("\(Report.program): \($0): ") }
        }
        return (error ?? lines.last).map { ": \($0)" } ?? ""
    }

    // MARK: The end

    /// Has everything ended that there still is of the process, and of what it
    /// has started: `hasEnded` follows.
    func end() {
        timer?.cancel()
        if control >= 0 { Glibc.close(control) }
        control = -1
        guard let loop, !hasEnded else { return }
        timer = loop.schedule(at: EventLoop.now + TrialRun.endLimit) { [unowned self] in abandon() }
    }

    private func abandon() {
        hasEnded = true
        if let supervisor { kill(supervisor, SIGKILL) }
    }

    /// Closes what the run has open, when everything of it has ended; waits for
    /// that when the event loop has not.
    func close() {
        end()
        timer?.cancel()
        let limit = EventLoop.now + TrialRun.endLimit
        while !hasEnded {
            guard FD.awaitInput(reportReader, until: limit) else {
                abandon()
                break
            }
            takeReport()
        }
        if let supervisor, cbaton_await_child(supervisor, 0) == 0 { ending = supervisor }
        for fd in [watchReader, errorReader, reportReader] {
            loop?.unwatch(fd)
            Glibc.close(fd)
        }
    }
}
