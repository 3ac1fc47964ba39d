import BatonBase
import BatonMachine
import CBaton
import Glibc

/// `cpr-load`: a VM takes its state from a checkpoint.
extension CprController {
    /// Takes over the state of a checkpoint; the guest runs again if it ran
    /// when it was saved.
    /// - Throws: why not; nothing of the VM has changed, and it can be given
    ///   another checkpoint. Until it has one, it does not start another guest: that
    ///   would work on the disks and the memory of the one which was to come.
    public func load(from path: String, mode name: String) throws(VMMError) {
        guard !vm.isRunning else { throw VMMError("cpr-load called for a running VM") }
        guard vm.runState == .prelaunch || vm.runState == .inmigrate else {
            throw VMMError("cpr-load needs a VM that was started with -S, this one is \(vm.runState.rawValue)")
        }
        switch step {
        case .idle, .awaitingState: break
        case .saved, .busy, .handedOver: if let refusal = step.refusal { throw refusal }
        }
        do throws(VMMError) { try loadWhatWaits(in: path, mode: try enabledMode(name)) } catch {
            step = .awaitingState
            throw error
        }
    }

    private func loadWhatWaits(in path: String, mode: any CprMode) throws(VMMError) {
        if let inherited, inherited.mode != mode.name {
            throw VMMError("this process was started by cpr-exec in mode '\(inherited.mode)', not '\(mode.name)'")
        }
        if let absence = absenceOfKept(mode) { throw absence }
        func attempt(_ fd: Int32, _ name: String) throws(VMMError) {
            do throws(VMMError) { try load(from: fd, mode: mode, name: name) } catch {
                tellOldVMM(.waiting)
                throw error
            }
        }
        if let kept = checkpoint(insteadOf: path) { return try attempt(kept, Self.checkpointName) }
        // The old VMM is not told of a load before there is one.
        let file = try FD.open(path, O_RDONLY | O_NONBLOCK)
        try attempt(file.raw, path)
    }

    /// The VM waits for its state (`-incoming`), and for nothing else.
    public func awaitIncoming() {
        step = .awaitingState
        vm.setStoppedState(.inmigrate)
    }

    /// Takes over the state that `-incoming` or `migrate-incoming` names.
    /// - Parameters:
    ///   - fd: borrowed.
    ///   - mode: of a state that no process before has left: the mode's name.
    public func load(incoming fd: Int32, mode: String, name: String) throws(VMMError) {
        let mode = try requireMode(inherited?.mode ?? mode)
        try load(from: fd, mode: mode, name: name, autostart: vm.autostart)
    }

    /// A load has failed, and the client may ask for another, when it likes.
    public func awaitAnotherLoad() { tellOldVMM(.waiting) }

    /// - Parameter autostart: whether a guest that ran when it was saved runs
    ///   again now, or stays paused.
    func load(from fd: Int32, mode: any CprMode, name: String, autostart: Bool = true) throws(VMMError) {
        // A reset or an end that was asked for is of the VM as it is now. One that
        // takes over a guest cannot be reset, and its end is the guest's.
        if inherited == nil { try vm.settleRequests() }
        times.loadRequested = EventLoop.now
        tellOldVMM(.loading)
        let container = try Checkpoint.read(fd, name: name)
        let checkpoint: CheckedCheckpoint
        do throws(VMMError) {
            checkpoint = try CheckedCheckpoint(container, from: fd, for: self, mode: mode, name: name)
            if !isTrial { try notify(.load) }
            try checkpoint.checkComplete(ownSections: try mode.load(from: container, cpr: self))
            try take(checkpoint, runs: checkpoint.runState == .running && autostart)
        } catch {
            if !isTrial { announce(.loadFailed) }
            throw error
        }
        if isTrial {
            // Everything that can be known without the guest is.
            tellOldVMM(.passed)
            exit(0)
        }
        times.loaded = EventLoop.now
        let hasLeft = HandoverLink.ofThisProcess != nil
        let monitors = hasLeft ? monitorChardevs : []
        for monitor in monitors { monitor.holdOutput() }
        announce(.commit)
        updateLimit = CprController.defaultStartLimit
        // Until a device does something in this process, the old one has the guest if this one dies. A device may do
        // so as soon as it goes on, and a client by its next command.
        vm.beforeDevicesResume = { [unowned self] in letOldVMMGo() }
        goOn(checkpoint.runState, autostart: autostart)
        vm.beforeDevicesResume = nil
        letOldVMMGo()
        times.resumed = EventLoop.now
        endingChildren.reap(on: vm.loop)
        let tell = { [unowned self] in
            fds.forgetAsked()
            if let report = times.report?.objectValue {
                vm.emit("CPR_UPDATED", report)
                history.append(mode: mode.name, times: times, from: inherited?.version)
                vm.reportThreads()
            }
            for monitor in monitors { monitor.releaseOutput() }
            MainProcess.watchOldVMM(on: vm.loop)
        }
        // Whoever is told takes a processor, and telling takes time: the guest comes first.
        if hasLeft { vm.afterGuestRan = tell } else { tell() }
        Log.trace("cpr_load", "file \(name) mode \(mode.name)")
    }

    /// Gives the VM what has been checked, and makes the guest its own.
    /// - Parameter runs: whether the guest runs at once.
    private func take(_ checkpoint: CheckedCheckpoint, runs: Bool) throws(VMMError) {
        do throws(VMMError) {
            try checkpoint.copyContents()
            checkpoint.apply()
            if let loss = memory.loss { throw loss }
            if let failure = vm.accelerator?.failure { throw failure }
            if isTrial { return }
            if runs { try vm.accelerator?.makeThreads() }
            try commit(runs: runs)
        } catch {
            vm.loadFailed()
            throw error
        }
        if !runs { memory.identity = checkpoint.memoryIdentity }
        vm.tookOverState()
    }

    /// Makes the guest this process' own, for good: first all that can fail,
    /// then the token, and nothing that can fail after it.
    /// - Parameter runs: whether the guest runs at once.
    private func commit(runs: Bool) throws(VMMError) {
        try memory.makeWritable()
        // Without its mark the memory's file goes with no checkpoint any more.
        if runs { try memory.willChange() }
        // The last thing that can fail.
        do throws(VMMError) { try finishKept() } catch {
            memory.putMarksBack()
            throw error
        }
        if let link = HandoverLink.ofThisProcess, !link.take() { tooLate() }
        Log.trace("cpr_commit", "by pid \(getpid())")
        memory.commit()
        step = .idle
    }

    private func letOldVMMGo() {
        guard let link = HandoverLink.ofThisProcess else { return }
        vm.loop.unwatch(link.channel)
        if !link.release() { tooLate() }
        HandoverLink.ofThisProcess = nil
    }

    /// While a client takes its time for `cpr-load`: a VMM that has been given up ends, and leaves the guest's monitors
    /// to the old one. That is so where it could not be ended, as PID 1.
    func watchOldVMM(_ link: HandoverLink) throws(VMMError) {
        try vm.loop.watch(link.channel, .readable) { [unowned self] _ in
            if HandoverLink.ofThisProcess?.isTakenBack == true { tooLate() }
            // The old VMM has ended, and the guest can be had all the same.
            vm.loop.unwatch(link.channel)
        }
    }

    /// The old VMM runs the guest again, and nothing here may touch it any more.
    private func tooLate() -> Never {
        Report.error(VMMError("the guest was taken back by the VMM before"))
        exit(1)
    }

    /// The guest goes on in the state that it was saved in. There is no way
    /// back any more: what keeps it from running is reported.
    private func goOn(_ runState: RunState, autostart: Bool) {
        guard runState == .running else { return vm.setStoppedState(runState) }
        guard autostart else { return vm.setStoppedState(.paused) }
        do throws(VMMError) {
            try vm.start()
        } catch {
            Report.error(error)
            vm.setStoppedState(memory.loss == nil ? .paused : .internalError)
        }
    }
}
