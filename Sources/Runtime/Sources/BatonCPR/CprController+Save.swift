import BatonBase
import BatonMachine
import CBaton
import Glibc

/// `cpr-save`, and what every way of saving has in common.
extension CprController {
    /// Stops the guest and writes its checkpoint; the run state becomes `save-vm`.
    /// - Throws: why not; the guest is as before.
    public func save(to path: String, mode name: String) throws(VMMError) {
        let mode = try enabledMode(name)
        guard mode.promises.contains(.executes) || !mode.promises.contains(.connects) else {
            throw VMMError(
                "cpr-save is not for the mode '\(mode.name)', whose checkpoint nobody could load",
                hint: "The guest goes to a VMM that runs already by cpr-update with a channel.")
        }
        try checkIdle()
        if let blocker = blockers(mode).first { throw blocker }
        try WholeFile.check(path)
        try beside("cpr-save is under way") { () throws(VMMError) in
            do throws(VMMError) {
                try prepareToKeep(mode)
                for preserver in registry.preservers { preserver.letGo() }
                try drain(limit: updateLimit)
            } catch {
                letGoOfKept()
                announce(.saveFailed)
                throw error
            }
        }
        let (stateBefore, identityBefore) = (vm.runState, memory.identity)
        do throws(VMMError) {
            let (container, contents) = try stopAndCollect(mode)
            if mode.promises.outlivesProcess {
                try memory.keep(
                    memory.blocks.filter { block in
                        block.isPersistent && !contents.contains { $0 === block }
                    })
            }
            try keep(container, contents: contents, mode)
            try Checkpoint.write(container, contents: contents, to: path, durable: mode.promises.outlivesProcess) {
                [vm] done, total in
                vm.emit("CPR_PROGRESS", ["written": .int(Int64(done)), "total": .int(Int64(total))])
            }
        } catch {
            letGoOfKept()
            announce(.saveFailed)
            if identityBefore == nil { memory.abandonIdentity() }
            giveBack(stateBefore)
            throw error
        }
        times.saved = EventLoop.now
        step = .saved(mode, stateBefore: stateBefore)
        Log.trace("cpr_save", "file \(path) mode \(name)")
    }

    /// Carries out what has been asked for, so that it is part of what is saved.
    /// - Throws: an error while something of an update is in hand, or when the
    ///   VMM is ending.
    func checkIdle() throws(VMMError) {
        try vm.settleRequests()
        if let refusal = step.refusal { throw refusal }
    }

    /// Has devices finish what they have in hand, with the guest running on, so that it need not stand still for that.
    /// They take nothing new in hand until the guest is resumed, or `vm.release` is called.
    /// - Throws: what does not end, or that the VMM does.
    func drain(limit: Int64) throws(VMMError) {
        try vm.drain(limit: limit)
        do throws(VMMError) {
            // The guest has run meanwhile.
            try vm.settleRequests()
        } catch {
            vm.release()
            throw error
        }
    }

    /// Stops the guest and collects the state of everything. Nothing is in hand of its devices (`drain`).
    /// - Returns: the sections, and the blocks whose contents are to follow.
    func stopAndCollect(_ mode: any CprMode) throws(VMMError) -> (SectionContainer, [RAMBlock]) {
        let stateBefore = vm.runStateToKeep
        let before = times
        times = UpdateTimes(generation: before.generation)
        (times.requested, times.exec, times.execPause) = (EventLoop.now, before.exec, before.execPause)
        // A VM that has never run has no state to save until its first reset.
        try vm.resetIfNew()
        vm.stop(.saveVM)
        try memory.identify()
        times.drained = EventLoop.now
        times.stopped = stateBefore == .running ? vm.stoppedAt : times.drained
        modeOfSave = mode
        try notify(.save)
        return try collect(mode, stateBefore: stateBefore)
    }

    /// Collects the state of everything, of a guest that is not between its
    /// instructions now.
    func collect(_ mode: any CprMode, stateBefore: RunState) throws(VMMError) -> (SectionContainer, [RAMBlock]) {
        // A new VMM that takes a guest over is told otherwise.
        let common = try Checkpoint.collect(
            vm, memory: memory, runState: stateBefore, mode: mode.name,
            plugged: mode.promises.handsOver ? [] : plugged?.pluggedOptions ?? [])
        if let failure = vm.accelerator?.failure {
            // The guest can go on: what could not be read is as it was.
            vm.accelerator?.forgetFailure()
            throw failure
        }
        func complete() throws(VMMError) -> (SectionContainer, [RAMBlock]) {
            var container = common
            let contents = mode.volatileBlocks(cpr: self)
            RAMContents.describe(contents, in: &container)
            try mode.save(to: &container, cpr: self)
            // Zeroes in the place of what was lost are nobody's state.
            if let loss = memory.loss { throw loss }
            return (container, contents)
        }
        return try call(mode, "save", complete)
    }

    /// Puts the VM back into the state that it was stopped in.
    func giveBack(_ stateBefore: RunState) {
        if stateBefore == .running {
            do throws(VMMError) {
                try vm.start()
            } catch {
                Report.warning(error.message)
                vm.setStoppedState(memory.loss == nil ? .paused : .internalError)
            }
        } else {
            vm.release()
            vm.setStoppedState(stateBefore)
        }
    }
}
