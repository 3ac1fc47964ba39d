import BatonBase
import BatonDeviceKit
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

    /// How the new VMM is found.
    public enum Target {
        /// A command that this process executes: program and arguments.
        case command([String])
        /// Where a VMM waits that somebody else has started, in the words of the mode;
        /// and the user that it runs as, nil for this VMM's or root.
        case channel(String, peer: UInt32?)

        /// What a mode has to promise for it.
        fileprivate var promise: CprModePromises {
            switch self {
            case .command: .executes
            case .channel: .connects
            }
        }

        fileprivate func check() throws(VMMError) {
            switch self {
            case .command(let argv):
                guard argv.first?.isEmpty == false else { throw VMMError("cpr-update requires a non-empty argv") }
                try Handover.check(argv)
            case .channel(let channel, _):
                guard !channel.isEmpty else { throw VMMError("cpr-update requires a non-empty channel") }
            }
        }
    }

    /// Replaces this VMM after `cpr-save`. Returns only by throwing: by then this
    /// may be another process, which has the guest back.
    /// - Parameter closesConnection: whether the asking client's connection is
    ///   closed by the update.
    public func exec(_ argv: [String], closesConnection: Bool = false) throws(VMMError) {
        try vm.settleRequests()
        guard vm.runState == .saveVM else { throw VMMError("runstate is not save-vm") }
        guard case .saved(let mode, let stateBefore) = step else { throw VMMError("cpr-exec requires cpr-save") }
        guard argv.first?.isEmpty == false else {
            throw VMMError("cpr-exec requires a non-empty argv", hint: "argv[0] is the program to execute.")
        }
        // A mode that has no exec has nothing to undo: the VM stays saved.
        guard mode.promises.contains(.executes) else { return try mode.exec(argv, cpr: self) }
        self.closesConnection = closesConnection
        defer { self.closesConnection = false }
        var options = UpdateOptions()
        // The guest stands still by its client's will.
        options.downtime = options.limit
        try beside("an update is under way") { () throws(VMMError) in
            try replace(.command(argv), mode, options, stateBefore: stateBefore, isSaved: true)
        }
    }

    /// Tries the new VMM, starts it beside the running guest, and hands the guest
    /// over, in one step: the guest goes on in the new VMM, or, whatever is wrong
    /// with that, here. Returns only when the new VMM is another's process, and has the
    /// guest: the run state is `postmigrate` then, and what this process had handed
    /// over is no more its own.
    public func update(_ target: Target, _ options: UpdateOptions) throws(VMMError) {
        let limitBefore = updateLimit
        updateLimit = options.limit
        defer { updateLimit = limitBefore }
        let mode = try modeOfUpdate(target, options.mode)
        // Another's process has no command that could be tried: it starts beside the guest as it is.
        if options.preflight, case .command(let argv) = target {
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
        let socketsBefore = monitorSockets
        if case .channel = target, monitorSockets == .handedOver { monitorSockets = .connectionsKept }
        defer { (closesConnection, monitorSockets) = (false, socketsBefore) }
        try beside("an update is under way") { () throws(VMMError) in
            try replace(target, mode, options, stateBefore: nil, isSaved: false)
        }
    }

    /// Checks what an update asks for.
    /// - Returns: its mode.
    func modeOfUpdate(_ target: Target, _ name: String?) throws(VMMError) -> any CprMode {
        let preferred = enabledModes.first { $0.promises.contains(target.promise) }?.name
        let mode = try enabledMode(name ?? preferred ?? "")
        try checkIdle()
        guard mode.promises.contains(target.promise) else {
            throw switch target {
            case .command:
                VMMError(
                    "cpr-update needs a mode that executes the new VMM, which '\(mode.name)' does not",
                    hint: mode.promises.contains(.connects) ? "It takes a channel, in place of argv." : nil)
            case .channel:
                VMMError(
                    "cpr-update needs a mode for a VMM that runs already, which '\(mode.name)' is not",
                    hint: "Enable one: -cpr-enable help shows which there are.")
            }
        }
        try target.check()
        try MemoryLimits.check()
        if let blocker = blockers(mode).first { throw blocker }
        makeMark()
        return mode
    }

    /// Starts the new VMM and hands the guest over. Returns only by throwing, the
    /// guest is as it was then, in this process or in a child of it; or, when the new VMM is
    /// another's process, without the guest.
    /// - Parameters:
    ///   - stateBefore: the guest's state before it was saved.
    ///   - isSaved: whether it has been, to a file that a client will have loaded.
    private func replace(
        _ target: Target, _ mode: any CprMode, _ options: UpdateOptions, stateBefore: RunState?, isSaved: Bool
    ) throws(VMMError) {
        let pid = getpid()
        var before = stateBefore
        var standing: Successor?
        do throws(VMMError) {
            let (successor, handed) = try start(target, mode, mayWait: isSaved)
            standing = successor
            successor.beforeEnd = { [memory] in memory.giveBackSlowly() }
            successor.stopFD = vm.signalFD
            try cancellable(by: successor.cancel) { () throws(VMMError) in
                try successor.awaitReady(vm.loop, limit: options.limit) { vm.run(until: $0) }
            }
            do throws(VMMError) {
                if !isSaved { try vm.drain(limit: options.limit) }
            } catch {
                if let error = successor.withdraw(error.message) { throw error }
                return leaveGuest(to: successor)
            }
            // What came meanwhile and was answered must not be lost with this process.
            vm.takeSignals()
            vm.settleStop()
            if vm.isEnding {
                successor.leave()
                throw VMMError("the VMM is ending")
            }
            if before == nil { before = vm.runState }
            let stopped = EventLoop.now
            // A client that is told something now would take a processor from the guest's way over.
            let monitors = isSaved ? [] : monitorChardevs
            for monitor in monitors { monitor.holdOutput() }
            defer { for monitor in monitors { monitor.releaseOutput() } }
            do throws(VMMError) {
                let limitBefore = updateLimit
                // The guest stands still for what modules do now.
                updateLimit = min(updateLimit, options.downtime)
                defer { updateLimit = limitBefore }
                try handOver(mode, to: successor, handed, isSaved: isSaved)
            } catch {
                if let error = successor.withdraw(error.message) { throw error }
                return leaveGuest(to: successor)
            }
            let failure = successor.awaitCommit(limit: options.downtime, since: stopped) {
                guard monitorSockets == .ended else { return }
                for chardev in monitorChardevs { chardev.endConnection() }
            }
            if let failure { throw failure }
            leaveGuest(to: successor)
        } catch {
            let isChild = getpid() != pid
            MainProcess.settle()
            step = .idle
            successorAnswered = standing?.hasWaited == true
            announce(.saveFailed)
            // A later save that comes to nothing has had no new VMM.
            successorAnswered = false
            if let before { giveBack(before) } else { vm.release() }
            if isChild || standing?.isAnothers == true {
                Report.warning(error.message)
                history.append(mode: mode.name, failure: error.message)
                vm.emit("CPR_ROLLED_BACK", ["reason": .string(error.message), "pid": .int(Int64(getpid()))])
                vm.reportThreads()
            }
            throw error
        }
    }

    /// Has the mode execute the new VMM, or reach it. The guest stands still for that only.
    /// - Returns: after an exec in the child that goes on with the guest.
    private func start(
        _ target: Target, _ mode: any CprMode, mayWait: Bool
    ) throws(VMMError) -> (Successor, HandedState) {
        makeMark()
        for warning in warnings { Report.warning(warning) }
        let successor = try Successor(mayWait: mayWait)
        self.successor = successor
        defer { self.successor = nil }
        if !mayWait { times = UpdateTimes(generation: times.generation) }
        if case .command = target { MainProcess.prepare(vm.loop) { vm.run(until: $0) } }
        // What a device has in hand of the kernel would end with the exec.
        for preserver in registry.preservers { preserver.letGo() }
        try drain(limit: updateLimit)
        defer { if !mayWait { vm.release() } }
        let start = EventLoop.now
        try vm.resetIfNew()
        var handed: HandedState?
        let fdsBefore = fds.snapshot
        func makeReady() throws(VMMError) {
            try notify(.survey)
            handed = HandedState(stateForExec(mode: mode), process: getpid())
            let command: String
            switch target {
            case .command(let argv):
                command = "cpr-exec"
                try call(mode, "exec") { () throws(VMMError) in try mode.exec(argv, cpr: self) }
            case .channel(let channel, let peer):
                command = "connect"
                try call(mode, "connect") { () throws(VMMError) in try mode.connect(channel, peer: peer, cpr: self) }
            }
            guard Handover.isAsked else {
                throw VMMError("mode '\(mode.name)' returned from \(command) without an error")
            }
        }
        do throws(VMMError) {
            try makeReady()
            // Two short pauses in place of a longer one. Nothing but the guest acts in between, and what it changes is
            // handed over at the change of hands.
            times.execPause = EventLoop.now - start
            vm.runBriefly()
            times.exec = EventLoop.now
            try vm.settleRequests()
            // It may have had a device let go of something, such as of an interrupt.
            if !Handover.isStillReady {
                Handover.forget()
                try makeReady()
            }
            try vm.withoutThreads { () throws(VMMError) in
                try successor.execute { () throws(VMMError) in try Handover.carryOut(for: successor) }
            }
            if let copies = successor.sentFDs { handed?.wereSent(as: copies) }
        } catch {
            Handover.forget()
            fds.snapshot = fdsBefore
            throw error
        }
        fds.snapshot = fdsBefore
        if !successor.isAnothers { endingChildren.forget() }
        times.execPause = max(times.execPause, EventLoop.now - times.exec)
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

    /// Those over which monitors speak with their clients.
    var monitorChardevs: [Chardev] { vm.chardevs.filter { $0.frontend?.isMonitor == true } }

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
        let (state, passed) = try handed.changes(to: stateOfNow(mode, for: successor))
        let stateFD = try state.writeMemfd()
        try successor.send(state: stateFD.raw, checkpoint: isSaved ? nil : memfd.raw, fds: passed)
    }

    /// The state at the change of hands: if this process was executed anew, it ends after
    /// it, as a child of the new VMM.
    private func stateOfNow(_ mode: any CprMode, for successor: Successor) -> CprState {
        var state = stateForExec(mode: mode)
        state.endingChildren = successor.isAnothers ? [] : [getpid()]
        return state
    }

    /// The guest, and everything that was handed over with it, is another process'.
    private func leaveGuest(to successor: Successor) {
        step = .handedOver
        vm.setStoppedState(.postmigrate)
        // Nothing of this VM but a monitor that stays may wait for anything.
        let monitors = monitorChardevs
        let handedOver = fds.entries.map(\.fd)
        vm.loop.keepOnly(Set(monitors.flatMap(\.descriptors) + [vm.signalFD]).subtracting(handedOver))
        // The numbers that its parts still have stand for nothing.
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        for fd in handedOver where null >= 0 && dup2(null, fd) == fd { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
        close(null)
        for monitor in monitors { monitor.releaseOutput() }
        vm.emit("CPR_HANDED_OVER", ["pid": .int(Int64(successor.pid))])
        // A stop of the VM that came while the guest changed hands.
        vm.takeSignals()
        if vm.isEnding { successor.passOnStop() }
    }
}
