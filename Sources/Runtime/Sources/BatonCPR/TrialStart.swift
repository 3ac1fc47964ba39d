import BatonBase
import CBaton
import Glibc

/// Prepares a trial and runs it, in a thread with a table of descriptors of its own:
/// there stand-ins take the place of the guest's, which costs some microseconds
/// each, and the program and its supervisor are started. The guest goes on meanwhile.
final class TrialStart {
    /// Reported in place of an errno value: `failure(_:)` knows why.
    static let failed: Int32 = -1

    private let argv: [String]
    private let environment: [String]
    private var state: CprState
    private let standardError: Int32
    private let control: Int32
    private let report: Int32
    private var mask = sigset_t()
    /// Why nothing was started; to be read once that has been reported.
    private var error: VMMError?

    /// Descriptors are borrowed until `run` returns.
    init(_ argv: [String], _ state: CprState, standardError: Int32, control: Int32, report: Int32) {
        self.argv = argv
        self.state = state
        self.standardError = standardError
        self.control = control
        self.report = report
        // Now, as the main thread may change it later.
        environment = Handover.environment()
    }

    /// Returns when the thread has copies of all descriptors.
    /// - Throws: why there is no such thread.
    func run() throws(VMMError) {
        sigprocmask(SIG_BLOCK, nil, &mask)
        let context = Unmanaged.passRetained(self)
        let code = cbaton_run_apart(
            { context in
                guard let context else { return }
                Unmanaged<TrialStart>.fromOpaque(context).takeRetainedValue().prepareAndRun()
            }, context.toOpaque())
        guard code == 0 else {
            context.release()
            throw .system("cannot start a trial", errno: code)
        }
    }

    /// What a code says that was reported in place of 0.
    func failure(_ code: Int32) -> VMMError {
        if code == TrialStart.failed, let error { return error }
        return .system("cannot execute '\(argv[0])'", errno: code)
    }

    // MARK: In the thread

    private func prepareAndRun() {
        do throws(VMMError) {
            try closeOthers()
            try replaceDescriptors()
            try runProgram()
        } catch {
            self.error = error
            var code = TrialStart.failed
            _ = write(report, &code, MemoryLayout<Int32>.size)
        }
    }

    /// Nothing of the guest's stays open, seems connected or is locked because of a trial.
    private func closeOthers() throws(VMMError) {
        // Not one of the three, which might be closed.
        let opened = open("/dev/null", O_RDWR | O_CLOEXEC)
        let null = fcntl(opened, F_DUPFD_CLOEXEC, 3)
        guard null >= 0, dup2(null, 0) == 0, dup2(null, 1) == 1, dup2(standardError, 2) == 2 else {
            throw .system("cannot give a trial its standard descriptors")
        }
        let kept = state.ram.map(\.fd) + state.fds.map(\.fd) + state.ownDescriptors + [control, report]
        var first: Int32 = 3
        for fd in kept.sorted() where fd >= first {
            if fd > first { cbaton_close_range(UInt32(first), UInt32(fd - 1)) }
            first = fd + 1
        }
        cbaton_close_range(UInt32(first), UInt32.max)
    }

    private func replaceDescriptors() throws(VMMError) {
        var standIns = StandIns()
        for record in state.ram { try standIns.makeReadOnly(record.fd, name: record.name) }
        for entry in state.fds { try standIns.replace(entry.fd) }
        state.addresses = standIns.addresses
    }

    private func runProgram() throws(VMMError) {
        let memfd = try state.writeMemfd()
        let own = state.ownDescriptors + [memfd.raw]
        for fd in own { try FD.setCloseOnExec(fd, false) }
        let arguments = CStringArray(argv)
        let variables = CStringArray(environment + ["\(CprState.environmentVariable)=\(memfd.raw)"])
        let code = own.withUnsafeBufferPointer { own in
            withExtendedLifetime((arguments, variables)) {
                var trial = cbaton_trial(
                    argv: arguments.pointers, environment: variables.pointers, fds: own.baseAddress,
                    count: own.count, timer_slack: state.markedTimerSlack ?? cbaton_timer_slack(), mask: mask,
                    control: control, report: report)
                return cbaton_run_trial(&trial)
            }
        }
        guard code == 0 else { throw .system("cannot start a trial", errno: code) }
    }
}
