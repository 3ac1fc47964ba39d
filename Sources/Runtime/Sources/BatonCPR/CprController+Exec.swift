import BatonBase
import CBaton
import Glibc

/// `cpr-exec` and `cpr-update`: the new VMM takes this process' place.
extension CprController {
    /// What a client may say about an update.
    public struct UpdateOptions {
        /// By default the first enabled mode that executes its successor.
        public var mode: String?
        /// Nanoseconds that each stage of the update may take.
        public var limit = CprController.defaultStartLimit
        /// Whether the new VMM is tried first, beside the running guest.
        public var preflight = true
        /// Whether the asking client's connection is closed by the update.
        public var closesConnection = false
        public init() {}
    }

    /// Replaces this process after `cpr-save`. Returns only by throwing.
    /// - Parameter closesConnection: whether the asking client's connection is
    ///   closed by the exec.
    public func exec(_ argv: [String], closesConnection: Bool = false) throws(VMMError) {
        try vm.settleRequests()
        guard vm.runState == .saveVM else { throw VMMError("runstate is not save-vm") }
        guard let saved else { throw VMMError("cpr-exec requires cpr-save") }
        guard argv.first?.isEmpty == false else {
            throw VMMError("cpr-exec requires a non-empty argv", hint: "argv[0] is the program to execute.")
        }
        // A mode that has no exec has nothing to undo: the VM stays saved.
        guard saved.mode.promises.contains(.samePID) else { return try saved.mode.exec(argv, cpr: self) }
        makeMark()
        self.closesConnection = closesConnection
        defer { self.closesConnection = false }
        try watched(
            limit: CprController.defaultStartLimit, saved.mode, stateBefore: saved.stateBefore, end: .execAndWait
        ) {
            () throws(VMMError) in try replaceProcess(argv, saved.mode)
        }
    }

    /// Tries the new VMM, saves, executes, loads and commits in one step,
    /// watched over by a lifeboat: the guest goes on in the new VMM, or,
    /// whatever is wrong with that, here. Returns only by throwing.
    public func update(_ argv: [String], _ options: UpdateOptions) throws(VMMError) {
        let limitBefore = updateLimit
        updateLimit = options.limit
        defer { updateLimit = limitBefore }
        let mode = try modeOfUpdate(argv, options.mode)
        if options.preflight {
            do throws(VMMError) {
                try preflight(argv, options)
            } catch {
                throw error.prefixed("preflight failed")
            }
            // The guest has run since.
            try checkIdle()
            if let blocker = blockers(mode).first { throw blocker }
        }
        closesConnection = options.closesConnection
        defer { closesConnection = false }
        let memfd = OwnedFD(adopting: cbaton_memfd_create("cpr-checkpoint", 0))
        let stateBefore = vm.runState
        try watched(limit: options.limit, mode, stateBefore: stateBefore, end: .exec) { () throws(VMMError) in
            let checkpoint = try stopAndCollect(mode)
            try Checkpoint.write(checkpoint.0, contents: checkpoint.1, toMemfd: memfd.raw)
            times.saved = EventLoop.now
            checkpointFD = memfd.raw
            try replaceProcess(argv, mode)
        }
    }

    /// Checks what an update asks for.
    /// - Returns: its mode.
    func modeOfUpdate(_ argv: [String], _ name: String?) throws(VMMError) -> any CprMode {
        let preferred = enabledModes.first { $0.promises.contains(.samePID) }?.name
        let mode = try enabledMode(name ?? preferred ?? "")
        try checkIdle()
        guard argv.first?.isEmpty == false else { throw VMMError("cpr-update requires a non-empty argv") }
        try Handover.check(argv)
        guard mode.promises.contains(.samePID) else {
            throw VMMError("cpr-update needs a mode that executes the new VMM, which '\(mode.name)' does not")
        }
        if let blocker = blockers(mode).first { throw blocker }
        makeMark()
        return mode
    }

    private func replaceProcess(_ argv: [String], _ mode: any CprMode) throws(VMMError) {
        try notify(.exec) { [unowned self] () throws(VMMError) in if mayHang(mode) { try launchGuardian() } }
        try launchGuardian()
        for warning in warnings { Report.warning(warning) }
        // What came meanwhile and was answered must not be lost with this process; a signal to stop that comes from
        // here on waits for the new VMM, or until the exec has failed.
        cbaton_hold_stop_signals()
        defer { cbaton_accept_stop_signals() }
        vm.takeSignals()
        if vm.isEnding { throw VMMError("the VMM is ending") }
        if let loss = memory.loss { throw loss }
        if let guardian { Lifeboat.report(guardian.link, .starting) }
        times.exec = EventLoop.now
        try mode.exec(argv, cpr: self)
        throw VMMError("mode '\(mode.name)' returned from cpr-exec without an error")
    }
}
