import CBaton
import Glibc

/// `cpr-load`: a VM takes its state from a checkpoint.
extension CprController {
    /// Takes over the state of a checkpoint; the guest runs again if it ran
    /// when it was saved.
    /// - Throws: why not; nothing of the VM has changed unless the file is
    ///   damaged in a way that only a device could find.
    public func load(from path: String, mode name: String) throws(VMMError) {
        guard !vm.isRunning else { throw VMMError("cpr-load called for a running VM") }
        let mode = try enabledMode(name)
        guard vm.runState == .prelaunch || vm.runState == .inmigrate else {
            throw VMMError("cpr-load needs a VM that was started with -S, this one is \(vm.runState.rawValue)")
        }
        if let inherited, inherited.mode != name {
            throw VMMError("this process was started by cpr-exec in mode '\(inherited.mode)', not '\(name)'")
        }
        let file = try FD.open(path, O_RDONLY | O_NONBLOCK)
        do throws(VMMError) {
            try load(from: file.raw, mode: mode, name: path)
        } catch {
            tellGuardian(.waiting)
            throw error
        }
    }

    /// The VM waits for its state (`-incoming`), and for nothing else.
    func awaitIncoming() {
        awaitsLoad = true
        vm.setStoppedState(.inmigrate)
    }

    /// Takes over the state that `-incoming` or `migrate-incoming` names.
    /// - Parameter fd: borrowed.
    func load(incoming fd: Int32, name: String) throws(VMMError) {
        let mode = try requireMode(inherited?.mode ?? "reboot")
        try load(from: fd, mode: mode, name: name, autostart: vm.autostart)
    }

    /// - Parameter autostart: whether a guest that ran when it was saved runs
    ///   again now, or stays paused.
    func load(from fd: Int32, mode: any CprMode, name: String, autostart: Bool = true) throws(VMMError) {
        times.loadRequested = EventLoop.now
        tellGuardian(.loading)
        let container = try Checkpoint.read(fd, name: name)
        let runState: RunState
        do throws(VMMError) {
            let contents = try RAMContents.check(container, from: fd, memory: memory, name: name)
            if !isTrial { try notify(.load) }
            contents?.copy()
            let own = try mode.load(from: container, cpr: self)
            runState = try Checkpoint.apply(
                container, to: vm, memory: memory, mode: mode.name, ownSections: own, name: name)
        } catch {
            if !isTrial { announce(.loadFailed) }
            throw error
        }
        if isTrial {
            // Everything that can be known without the guest is.
            tellGuardian(.passed)
            exit(0)
        }
        try commit()
        vm.tookOverState()
        times.loaded = EventLoop.now
        announce(.commit)
        updateLimit = CprController.defaultStartLimit
        if runState == .running && autostart {
            try vm.start()
        } else {
            vm.setStoppedState(runState == .running ? .paused : runState)
        }
        times.resumed = EventLoop.now
        helpers.reap(on: vm.loop)
        if let report = times.report?.objectValue {
            vm.emit("CPR_UPDATED", report)
            history.append(mode: mode.name, times: times, from: inherited?.version)
        }
        Log.trace("cpr_load", "file \(name) mode \(mode.name)")
    }

    /// Makes the guest this process' own, for good.
    private func commit() throws(VMMError) {
        if let link = CprState.lifeboatOfThisProcess {
            guard Lifeboat.take(link) else {
                // Too late: the process before runs the guest again, and
                // nothing here may touch it any more.
                Report.error(VMMError("the guest was taken back by the VMM before"))
                CprController.stayIfLast()
                exit(1)
            }
            Lifeboat.release(link)
            CprState.lifeboatOfThisProcess = nil
        }
        try memory.commit()
        awaitsLoad = false
    }
}
