import BatonBase
import CBaton
import Glibc

/// `cpr-preflight`: the new VMM is run beside the running guest, on copies, up
/// to the point where it would commit.
///
/// It gets what a successor gets, with these differences: guest memory by
/// descriptors that are open for reading only; for each other descriptor one
/// that stands in for it (`StandIns`); no token. So it could not take the guest
/// over, or disturb anybody, if it tried.
extension CprController {
    /// What a trial run that succeeded tells.
    public struct PreflightReport {
        /// Nanoseconds from the exec to the point of the commit.
        public var duration: Int64
        /// What it wrote to its standard error: warnings. The last few KiB.
        public var output: String
    }

    /// - Throws: why the new VMM could not take the guest over. The guest has
    ///   not noticed.
    @discardableResult
    public func preflight(_ argv: [String], _ options: UpdateOptions) throws(VMMError) -> PreflightReport {
        let limitBefore = updateLimit
        updateLimit = options.limit
        defer { updateLimit = limitBefore }
        let mode = try modeOfUpdate(.command(argv), options.mode)
        return try beside("a preflight is under way") { () throws(VMMError) in
            try runTrial(argv, options, mode)
        }
    }

    private func runTrial(
        _ argv: [String], _ options: UpdateOptions, _ mode: any CprMode
    ) throws(VMMError) -> PreflightReport {
        let memfd = OwnedFD(adopting: cbaton_memfd_create("cpr-preflight", 0))
        try drain(limit: options.limit)
        defer { vm.release() }
        try vm.resetIfNew()
        let checkpoint = try collect(mode, stateBefore: vm.runState)
        try Checkpoint.write(checkpoint.0, contents: checkpoint.1, toMemfd: memfd.raw)
        vm.release()

        let run = try survey { () throws(VMMError) in
            var state = stateForExec(mode: mode)
            state.isTrial = true
            (state.mark, state.warden) = (nil, nil)
            state.checkpointFD = memfd.raw
            return try TrialRun(argv, state: state)
        }
        defer {
            run.close()
            if let pid = run.ending { endingChildren.add(pid) }
            endingChildren.reap(on: vm.loop)
        }
        try run.watch(vm.loop, limit: options.limit)
        try cancellable(by: run.cancel) { () throws(VMMError) in vm.run(until: { run.isDecided }) }
        run.end()
        vm.run(until: { run.hasEnded })
        guard run.isDecided else { throw VMMError("the VMM is ending") }
        if let failure = run.failure { throw failure }
        let advice = warnings.map { "\(Report.program): warning: \($0)\n" }.joined()
        return PreflightReport(duration: run.duration, output: advice + run.output)
    }

    /// Has everybody save and hand over what would be preserved now, for the
    /// time of `body`.
    func survey<Result>(_ body: () throws(VMMError) -> Result) throws(VMMError) -> Result {
        let before = fds.snapshot
        defer { fds.snapshot = before }
        try notify(.survey)
        return try body()
    }
}
