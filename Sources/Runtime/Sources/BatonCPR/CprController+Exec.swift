import BatonBase
import BatonMachine
import CBaton
import Glibc

/// `cpr-exec` and `cpr-update`: a new VMM takes this one's place.
extension CprController {
    /// What a client may say about an update.
    public struct UpdateOptions {
        /// By default the first enabled mode that executes its successor.
        public var mode: String?
        /// Nanoseconds that the new VMM may take to start, while the guest runs.
        public var limit = CprController.defaultStartLimit
        /// Nanoseconds that the guest may stand still for the change of hands.
        public var downtime = CprController.defaultDowntime
        /// Whether the new VMM is tried first, beside the running guest.
        public var preflight = true
        /// Whether the asking client's connection is closed by the update.
        public var closesConnection = false
        public init() {}
    }

    /// What the start of a new VMM may take, in nanoseconds, unless the client
    /// says otherwise.
    public static let defaultStartLimit: Int64 = 10_000_000_000
    /// What the guest may stand still for the change of hands.
    public static let defaultDowntime: Int64 = 300_000_000

    /// Replaces this VMM after `cpr-save`. Returns only by throwing: by then this
    /// may be another process, which has the guest back.
    /// - Parameter closesConnection: whether the asking client's connection is
    ///   closed by the update.
    public func exec(_ argv: [String], closesConnection: Bool = false) throws(VMMError) {
        try vm.settleRequests()
        guard vm.runState == .saveVM else { throw VMMError("runstate is not save-vm") }
        guard let saved else { throw VMMError("cpr-exec requires cpr-save") }
        guard argv.first?.isEmpty == false else {
            throw VMMError("cpr-exec requires a non-empty argv", hint: "argv[0] is the program to execute.")
        }
        // A mode that has no exec has nothing to undo: the VM stays saved.
        guard saved.mode.promises.contains(.samePID) else { return try saved.mode.exec(argv, cpr: self) }
        self.closesConnection = closesConnection
        defer { self.closesConnection = false }
        var options = UpdateOptions()
        // The guest stands still by its client's will.
        options.downtime = options.limit
        try beside("an update is under way") { () throws(VMMError) in
            try replace(argv, saved.mode, options, stateBefore: saved.stateBefore, isSaved: true)
        }
    }

    /// Tries the new VMM, starts it beside the running guest, and hands the guest
    /// over, in one step: the guest goes on in the new VMM, or, whatever is wrong
    /// with that, here. Returns only by throwing.
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
        try beside("an update is under way") { () throws(VMMError) in
            try replace(argv, mode, options, stateBefore: nil, isSaved: false)
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

    /// Refuses another step for the time of `body`.
    func beside<Result>(_ what: String, _ body: () throws(VMMError) -> Result) throws(VMMError) -> Result {
        inHand = what
        defer { inHand = nil }
        return try body()
    }

    /// Starts the new VMM and hands the guest over. Returns only by throwing; the
    /// guest is as it was then, in this process or in a child of it.
    /// - Parameters:
    ///   - stateBefore: the guest's state before it was saved.
    ///   - isSaved: whether it has been, to a file that a client will have loaded.
    private func replace(
        _ argv: [String], _ mode: any CprMode, _ options: UpdateOptions, stateBefore: RunState?, isSaved: Bool
    ) throws(VMMError) {
        let pid = getpid()
        var before = stateBefore
        var standing: Successor?
        successorAnswered = false
        do throws(VMMError) {
            let (successor, handed) = try start(argv, mode, mayWait: isSaved)
            standing = successor
            try successor.awaitReady(vm.loop, limit: options.limit) { vm.run(until: $0) }
            // What came meanwhile and was answered must not be lost with this process.
            vm.takeSignals()
            if vm.isEnding {
                successor.leave()
                throw VMMError("the VMM is ending")
            }
            if before == nil { before = vm.runState }
            let stopped = EventLoop.now
            do throws(VMMError) {
                let limitBefore = updateLimit
                // The guest stands still for what modules do now.
                updateLimit = min(updateLimit, options.downtime)
                defer { updateLimit = limitBefore }
                try handOver(mode, to: successor, handed, isSaved: isSaved)
            } catch {
                throw successor.takeBack(error.message)
            }
            throw successor.awaitCommit(limit: options.downtime, since: stopped) { [vm] in
                guard endsMonitorSessions else { return }
                for chardev in vm.chardevs where chardev.frontend?.isMonitor == true { chardev.endConnection() }
            }
        } catch {
            let isChild = getpid() != pid
            saved = nil
            successorAnswered = standing?.hasWaited == true
            announce(.saveFailed)
            if let before { giveBack(before) }
            if isChild {
                Report.warning(error.message)
                history.append(mode: mode.name, failure: error.message)
                vm.emit("CPR_ROLLED_BACK", ["reason": .string(error.message), "pid": .int(Int64(getpid()))])
            }
            throw error
        }
    }

    /// Has the mode execute the new VMM. The guest stands still for the exec only.
    /// - Returns: in the child that goes on with the guest.
    private func start(
        _ argv: [String], _ mode: any CprMode, mayWait: Bool
    ) throws(VMMError) -> (Successor, HandedState) {
        makeMark()
        for warning in warnings { Report.warning(warning) }
        let successor = try Successor(mayWait: mayWait)
        self.successor = successor
        defer { self.successor = nil }
        if !mayWait { times = UpdateTimes(generation: times.generation) }
        let start = EventLoop.now
        try vm.resetIfNew()
        var handed: HandedState?
        let fdsBefore = fds.entries
        do throws(VMMError) {
            try notify(.survey)
            handed = HandedState(stateForExec(mode: mode), process: getpid())
            times.exec = EventLoop.now
            try call(mode, "exec") { () throws(VMMError) in try mode.exec(argv, cpr: self) }
            try successor.execute { () throws(VMMError) in
                guard try Handover.carryOut() else {
                    throw VMMError("mode '\(mode.name)' returned from cpr-exec without an error")
                }
            }
        } catch {
            Handover.forget()
            fds.inherit(fdsBefore)
            throw error
        }
        fds.inherit(fdsBefore)
        helpers.forget()
        times.execPause = EventLoop.now - start
        guard let handed else { throw VMMError("nothing was handed over") }
        return (successor, handed)
    }

    /// Calls a mode, which may not come back.
    func call<Result>(
        _ mode: any CprMode, _ step: String, _ body: @escaping () throws(VMMError) -> Result
    ) throws(VMMError) -> Result {
        let answers = calls.call([mode], step, limit: callLimit) { _ in
            Swift.Result { () throws(VMMError) in try body() }
        }
        guard let answer = answers.first else { throw VMMError("the mode '\(mode.name)' has been left behind") }
        return try answer.get().get()
    }

    /// Stops the guest and sends its state.
    private func handOver(
        _ mode: any CprMode, to successor: Successor, _ handed: HandedState, isSaved: Bool
    ) throws(VMMError) {
        let memfd = OwnedFD(adopting: cbaton_memfd_create("cpr-checkpoint", 0))
        if !isSaved {
            if let blocker = blockers(mode).first { throw blocker }
            let (container, contents) = try stopAndCollect(mode)
            try Checkpoint.write(container, contents: contents, toMemfd: memfd.raw)
            times.saved = EventLoop.now
        }
        prepareForExec()
        try notify(.exec)
        if let loss = memory.loss { throw loss }
        let (state, passed) = try handed.changes(to: stateOfNow(mode))
        let stateFD = try state.writeMemfd()
        try successor.send(state: stateFD.raw, checkpoint: isSaved ? nil : memfd.raw, fds: passed)
    }

    /// The state at the change of hands: this process ends after it, as a child of the new VMM.
    private func stateOfNow(_ mode: any CprMode) -> CprState {
        var state = stateForExec(mode: mode)
        state.helpers = [getpid()]
        return state
    }
}
