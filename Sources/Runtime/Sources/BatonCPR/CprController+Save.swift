import BatonBase
import BatonMachine
import CBaton
import Glibc

/// What a step that stops the guest comes to if all goes well.
enum StepEnd {
    /// The VM stays saved, in this process.
    case checkpoint
    /// A new VMM that is to have the guest within the time limit.
    case exec
    /// A new VMM that waits for its client to say `cpr-load`.
    case execAndWait
}

/// `cpr-save`, and what every way of saving has in common.
extension CprController {
    /// Stops the guest and writes its checkpoint; the run state becomes `save-vm`.
    /// - Throws: why not; the guest is as before.
    public func save(to path: String, mode name: String) throws(VMMError) {
        let mode = try enabledMode(name)
        try checkIdle()
        if let blocker = blockers(mode).first { throw blocker }
        try WholeFile.check(path)
        let stateBefore = vm.runState
        try watched(limit: CprController.defaultStartLimit, mode, stateBefore: stateBefore) { () throws(VMMError) in
            let (container, contents) = try stopAndCollect(mode)
            if mode.promises.contains(.survivesHostReboot) {
                try memory.keep(
                    memory.blocks.filter { block in
                        block.isPersistent && !contents.contains { $0 === block }
                    })
            }
            try Checkpoint.write(
                container, contents: contents, to: path, durable: mode.promises.contains(.survivesHostReboot)
            ) { [vm] done, total in
                vm.emit("CPR_PROGRESS", ["written": .int(Int64(done)), "total": .int(Int64(total))])
            }
        }
        dismissGuardian()
        times.saved = EventLoop.now
        saved = (mode, stateBefore)
        Log.trace("cpr_save", "file \(path) mode \(name)")
    }

    /// Carries out what has been asked for, so that it is part of what is saved.
    /// - Throws: an error while something of an update is in hand, or when the
    ///   VMM is ending.
    func checkIdle() throws(VMMError) {
        try vm.settleRequests()
        guard saved == nil, vm.runState != .saveVM else {
            throw VMMError("cpr-save has been done already; use cpr-exec, cpr-load or cont")
        }
        guard !awaitsLoad else { throw VMMError("the VM waits for cpr-load") }
        guard !isInPreflight else { throw VMMError("a preflight is under way") }
    }

    /// Stops the guest and collects the state of everything.
    /// - Returns: the sections, and the blocks whose contents are to follow.
    func stopAndCollect(_ mode: any CprMode) throws(VMMError) -> (SectionContainer, [RAMBlock]) {
        let stateBefore = vm.runState
        times = UpdateTimes(generation: times.generation)
        times.requested = EventLoop.now
        // A VM that has never run has no state to save until its first reset.
        try vm.resetIfNew()
        vm.stop(.saveVM)
        try memory.identify()
        times.drained = EventLoop.now
        times.stopped = stateBefore == .running ? vm.stoppedAt : times.drained
        modeOfSave = mode
        try notify(.save) { [unowned self] () throws(VMMError) in if mayHang(mode) { try launchGuardian() } }
        return try collect(mode, stateBefore: stateBefore)
    }

    /// Collects the state of everything, of a guest that is not between its
    /// instructions now.
    func collect(_ mode: any CprMode, stateBefore: RunState) throws(VMMError) -> (SectionContainer, [RAMBlock]) {
        let common = Checkpoint.collect(vm, memory: memory, runState: stateBefore, mode: mode.name)
        func complete() throws(VMMError) -> (SectionContainer, [RAMBlock]) {
            var container = common
            let contents = mode.volatileBlocks(cpr: self)
            RAMContents.describe(contents, in: &container)
            try mode.save(to: &container, cpr: self)
            // Zeroes in the place of what was lost are nobody's state.
            if let loss = memory.loss { throw loss }
            return (container, contents)
        }
        if guardian != nil { return try complete() }
        let answers = calls.call([mode], "save", limit: callLimit) { _ in
            Result { () throws(VMMError) in try complete() }
        }
        guard let answer = answers.first else { throw VMMError("the mode '\(mode.name)' has been left behind") }
        return try answer.get().get()
    }

    /// Puts the VM back into the state that it was stopped in.
    private func giveBack(_ stateBefore: RunState) {
        if stateBefore == .running {
            do throws(VMMError) {
                try vm.start()
            } catch {
                Report.warning(error.message)
                vm.setStoppedState(memory.loss == nil ? .paused : .internalError)
            }
        } else {
            vm.setStoppedState(stateBefore)
        }
    }

    /// The guest was started again (`cont`) or reset after a save: the save is void.
    func voidSave() {
        guard saved != nil else { return }
        saved = nil
        announce(.saveFailed)
    }

    // MARK: The watch over a step

    /// What each step of an update may take, in nanoseconds, unless the client
    /// says otherwise.
    public static let defaultStartLimit: Int64 = 10_000_000_000

    /// Carries out a step during which the guest stands still. When it fails,
    /// be it in this process or in one that was to follow it, the guest goes on
    /// in the state that it had.
    /// - Parameters:
    ///   - limit: nanoseconds that each stage of it may take.
    ///   - end: what it comes to if all goes well.
    func watched(
        limit: Int64, _ mode: any CprMode, stateBefore: RunState, end: StepEnd = .checkpoint,
        _ body: () throws(VMMError) -> Void
    ) throws(VMMError) {
        let pid = getpid()
        (stepLimit, stepEnd, isPrepared) = (limit, end, false)
        defer { stepLimit = nil }
        successorAnswered = false
        do throws(VMMError) {
            try body()
        } catch {
            let isCopy = getpid() != pid
            if isCopy { ownAgain() } else { dismissGuardian() }
            saved = nil
            checkpointFD = nil
            successorAnswered = isCopy && Lifeboat.successorStood
            announce(.saveFailed)
            giveBack(stateBefore)
            if isCopy {
                Report.warning(error.message)
                history.append(mode: mode.name, failure: error.message)
                vm.emit("CPR_ROLLED_BACK", ["reason": .string(error.message), "pid": .int(Int64(getpid()))])
            }
            throw error
        }
    }

    /// Whether modules do something in an update that may take for ever. What
    /// this VMM's own parts do does not, and the watch over it is spared.
    func mayHang(_ mode: any CprMode) -> Bool {
        !mode.neverHangs || registry.preservers.contains { !$0.neverHangs }
    }

    /// Makes the copy that takes the guest back, unless there is one.
    /// - Throws: in the copy, when it has come to that; here, when there cannot
    ///   be one.
    func launchGuardian() throws(VMMError) {
        guard guardian == nil, let stepLimit else { return }
        if stepEnd != .checkpoint { prepareOnce() }
        switch try Lifeboat.launch(limit: stepLimit, mayWait: stepEnd == .execAndWait) {
        case .rolledBack(let reason):
            throw VMMError("the update failed and the guest was taken back: \(reason)")
        case .successor(let copy):
            guardian = copy
        }
    }

    /// Once in a step, and always before the copy is made.
    func prepareOnce() {
        guard !isPrepared else { return }
        isPrepared = true
        prepareForExec()
    }

    /// In the copy that has taken the guest back: what it shared with the
    /// process before and what was that one's alone becomes its own.
    private func ownAgain() {
        guardian = nil
        helpers.forget()
        do throws(VMMError) { try vm.loop.beginAnew() } catch { Report.warning(error.message) }
    }

    /// The step has ended in this process.
    func dismissGuardian() {
        guard let guardian else { return }
        self.guardian = nil
        guard !Lifeboat.recall(guardian) else { return }
        helpers.add(guardian.pid)
        helpers.reap(on: vm.loop)
    }
}
