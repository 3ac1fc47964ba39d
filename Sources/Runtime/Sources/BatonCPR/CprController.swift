import BatonBase
import BatonDeviceKit
import BatonMachine
import CBaton
import Glibc

/// What updates the VM: the enabled modes, what is preserved, and who is told
/// of an update's phases. The steps themselves are in extensions: save, exec
/// and update, load, preflight.
///
/// Main thread only. A failed operation leaves the VM as it was: a guest that
/// ran runs again.
public final class CprController {
    public let vm: VirtualMachine
    public let memory: GuestMemory
    public let registry: any PreserverRegistry
    public let fds = PreservedFDs()
    /// Modes enabled with `-cpr-enable`, in order.
    public private(set) var enabledModes: [any CprMode] = []
    /// The state that this process took over; nil in a fresh start.
    public private(set) var inherited: CprState?
    /// Whether this process is only to say whether it could take the guest
    /// over, while the process before runs it: the new process of a preflight.
    /// Nothing that anybody else sees may be opened, made or sent then.
    public var isTrial: Bool { inherited?.isTrial == true }
    /// The phases of the update in hand, or of the last one.
    public internal(set) var times: UpdateTimes
    /// How the guest's last updates ended.
    public internal(set) var history: UpdateHistory
    /// Reasons that parts have added why the VM cannot be saved.
    var addedBlockers: [CprBlocker] = []
    /// `-only-cpr-capable`.
    var onlyCapable = false
    /// Which operation may come next.
    var step: CprStep
    /// The mode of the save in hand, or of the last one: for what its promises
    /// mean to a part in `.save`.
    public internal(set) var modeOfSave: (any CprMode)?
    /// Nanoseconds that each call into a module may take in the update that
    /// has been asked for.
    var updateLimit = CprController.defaultStartLimit
    /// Calls into modules, which may hang or crash.
    let calls = BoundedCalls()
    /// The new VMM that is about to be executed: for what its state tells it.
    var successor: Successor?
    private var lateSteps: [() throws(VMMError) -> Void] = []
    /// Has something of this guest, until that goes on here.
    var keepingMode: (any CprMode)?
    /// Has the guest that this process has found, until it is this process' own.
    var finishingMode: (any CprMode)?
    /// See `KeptGuest.place`.
    var keptPlace = ""
    /// What was kept beside the memory of that guest, unless it is loaded at once.
    var keptCheckpoint: Int32?
    /// Where this service's descriptors stay while it does not run; set by the launcher. nil where nobody keeps any.
    public var descriptorStore: (any DescriptorStore)?
    /// Who takes over what has changed in the old VMM since this process was executed.
    let changes = ChangeTakers()
    /// What earlier updates of this process have left.
    let endingChildren: EndingChildren
    /// What successors find in their environment, beside the rest of it: for
    /// what this process was told by its own and keeps from other children.
    public var successorEnvironment: [(name: String, value: String)] = []
    /// Lets go of what the new VMM may not find in use.
    private var preparations: [() -> Void] = []
    /// While `.saveFailed` is announced after an update that failed: whether the new VMM was as far as to answer
    /// the monitors' clients in the place of this one.
    public internal(set) var successorAnswered = false
    /// Whether the client that asked for the update in hand wants its
    /// connection closed by it, as QEMU's is, instead of kept.
    public internal(set) var closesConnection = false
    /// What becomes of the monitors' sockets in the update in hand: others than
    /// `.handedOver` are for QEMU's `migrate`, and for a new VMM that is another's process.
    public var monitorSockets = MonitorSockets.handedOver
    /// By which a process that an update starts knows that it is no VM of its own.
    private var mark: UpdateMark?
    private var observers: [(CprPhase) throws(VMMError) -> Void] = []
    private var outgoingParts: [(name: String, version: UInt32, writer: StateWriter)] = []

    /// - Parameters:
    ///   - inherited: what `CprState.inherited()` gave.
    ///   - startedAt: CLOCK_MONOTONIC in nanoseconds when `main` began.
    public init(
        vm: VirtualMachine, memory: GuestMemory, registry: any PreserverRegistry, inherited: CprState?, startedAt: Int64
    ) {
        self.vm = vm
        self.memory = memory
        self.registry = registry
        self.inherited = inherited
        times = inherited?.times ?? UpdateTimes()
        times.started = startedAt
        history = inherited?.history ?? UpdateHistory()
        endingChildren = EndingChildren(inherited?.endingChildren ?? [])
        step = inherited == nil ? .idle : .awaitingState
        if let inherited { takeOver(inherited) }
        Placeholder.isToEnd = { [weak vm] in
            vm?.takeSignals()
            return vm?.isEnding == true
        }
        vm.handover = self
        mark = inherited?.mark.map { UpdateMark(inherited: $0) }
        // When there is time: not while another process' guest waits to be this one's.
        if !isTrial { vm.loop.later { [weak self] in self?.makeMark() } }
        vm.namedFDs.keep(in: fds)
        // A guest that is started or reset is not the one that was saved.
        vm.onRunStateChange { [unowned self] state in if state == .running || state == .prelaunch { voidSave() } }
        vm.beforeMemoryChanges = { [unowned self] () throws(VMMError) in
            try self.memory.willChange()
            // While it is being kept it changes all the time.
            if case .saved = step { self.letGoOfKept() }
        }
        vm.startBlocker = { [unowned self] in
            switch step {
            case .handedOver, .awaitingState: return step.refusal
            // What was saved is about to go over.
            case .busy where vm.runState == .saveVM: return step.refusal
            case .idle, .saved, .busy: return memory.loss
            }
        }
    }

    private func takeOver(_ state: CprState) {
        updateLimit = state.callLimit ?? updateLimit
        fds.inherit(state.fds)
        memory.records.inherit(state.ram)
        memory.isTrial = state.isTrial
    }

    /// Takes over the guest of a VMM that reaches this one over a mode's channel. Returns
    /// when that has come, and comes before anything of the machine is there.
    /// - Parameters:
    ///   - mode: promises `connects`.
    ///   - channel: as its `receive` has it.
    public func receive(_ mode: any CprMode, _ channel: String) throws(VMMError) {
        guard mode.promises.contains(.connects) else {
            throw VMMError("the mode '\(mode.name)' takes no guest over from another process")
        }
        enable(mode)
        let fd = OwnedFD(adopting: try mode.receive(channel, cpr: self))
        let started = EventLoop.now
        var state = try Predecessor.introduction(fd.release())
        guard state.mode == mode.name else {
            throw VMMError("the guest is handed over in mode '\(state.mode)', not '\(mode.name)'")
        }
        state.times.started = started
        adopt(state)
    }

    /// Takes over the guest of a process that has not executed this one.
    func adopt(_ state: CprState) {
        inherited = state
        times = state.times
        history = state.history
        step = .awaitingState
        takeOver(state)
    }

    /// Makes what could not be made in a sandbox.
    public func prepareForSandbox() { makeMark() }

    /// Before whatever executes the command of an update: old and new VMM have the
    /// mark, and the command its number.
    func makeMark() { if mark == nil { mark = UpdateMark() } }

    // MARK: Modes

    /// Enables a mode: `-cpr-enable NAME`. Enabling it twice is no error.
    public func enable(_ mode: any CprMode) {
        guard !isEnabled(mode.name) else { return }
        enabledModes.append(mode)
        if let hook = mode.allocatorHook { memory.addHook(hook) }
    }

    /// Finds the module of a mode that the command line has not enabled; set by
    /// the launcher.
    public var modeLoader: ((String) throws(VMMError) -> any CprMode)?

    /// A mode that something asks for by a name of its own, such as QEMU's
    /// `cpr-exec`: enabled now if it is not yet.
    public func requireMode(_ name: String) throws(VMMError) -> any CprMode {
        if !isEnabled(name), let modeLoader { enable(try modeLoader(name)) }
        return try enabledMode(name)
    }

    public func isEnabled(_ name: String) -> Bool { enabledModes.contains { $0.name == name } }

    func enabledMode(_ name: String) throws(VMMError) -> any CprMode {
        if let mode = enabledModes.first(where: { $0.name == name }) { return mode }
        throw VMMError("cpr mode is not enabled.  Use -cpr-enable.")
    }

    // MARK: Start and end

    /// Checks, once the machine stands, that everything inherited has found
    /// its owner and the mode is enabled; loads the checkpoint of an update in
    /// one step. Does not return from a trial run.
    /// - Parameter state: loads the state at once, from where the command line
    ///   says; the start's time limit covers it.
    /// - Throws: what the new command line lacks: fatal.
    public func machineBuilt(loading state: (() throws(VMMError) -> Void)? = nil) throws(VMMError) {
        for preserver in registry.preservers { preserver.takesPart(self) }
        try watchMemory()
        try checkHeritage()
        // In three steps the guest waits for it.
        if inherited?.checkpointFollows == true {
            memory.prepareInherited(until: EventLoop.now + callLimit / 2)
            vm.accelerator?.prepareThreads()
            rehearse()
        }
        times.built = EventLoop.now
        times.mapping = memory.mappingTime
        if let fd = inherited?.checkpointFD {
            let checkpoint = OwnedFD(adopting: fd)
            return try load(from: checkpoint.raw, name: Self.checkpointName)
        }
        if let link = HandoverLink.ofThisProcess {
            let handed = try Predecessor(link).awaitState(vm)
            try takeChanges(handed)
            if inherited?.checkpointFollows == true {
                guard let fd = handed.checkpoint else { throw VMMError("the guest's state lacks the checkpoint") }
                let checkpoint = OwnedFD(adopting: fd)
                // Who starts a VMM himself says whether its guest is to run (-S).
                return try load(
                    from: checkpoint.raw, name: Self.checkpointName, autostart: !link.isAnothers || vm.autostart)
            }
            if state == nil {
                try watchOldVMM(link)
                tellOldVMM(.waiting)
            }
        }
        try state?()
    }

    /// Goes the way once that the guest's state is about to come, with that of this machine as it is, and changes
    /// nothing. Code that has never run comes page by page from its file, and types that nobody has used are set up at
    /// their first use: a fifth of a millisecond for which the guest need not wait.
    private func rehearse() {
        do throws(VMMError) {
            let mode = try enabledMode(inherited?.mode ?? "")
            _ = blockers(mode)
            let identity = memory.identity
            memory.identity = inherited?.memoryIdentity
            defer { memory.identity = identity }
            var container = try Checkpoint.collect(vm, memory: memory, runState: .running, mode: mode.name, plugged: [])
            RAMContents.describe([], in: &container)
            let contents: [RAMBlock]
            (container, contents) = try call(mode, "rehearsal") { (container, []) }
            let memfd = OwnedFD(adopting: cbaton_memfd_create("cpr-rehearsal", 0))
            try Checkpoint.write(container, contents: contents, toMemfd: memfd.raw)
            _ = try CheckedCheckpoint(
                try Checkpoint.read(memfd.raw, name: "the rehearsal"), from: memfd.raw, for: self, mode: mode,
                name: "the rehearsal")
        } catch {
            // Only time is lost.
            Log.trace("cpr_rehearsal", error.message)
        }
    }

    private func load(from fd: Int32, name: String, autostart: Bool = true) throws(VMMError) {
        try load(from: fd, mode: try enabledMode(inherited?.mode ?? ""), name: name, autostart: autostart)
    }

    static let checkpointName = "the checkpoint"

    /// Takes over what has changed since this process was executed.
    private func takeChanges(_ handed: Predecessor.State) throws(VMMError) {
        let state = handed.state
        inherited?.take(from: state)
        updateLimit = state.callLimit ?? updateLimit
        times.take(from: state.times)
        // The old VMM is a child of this process, as are those of before that the state of the exec names.
        for pid in state.endingChildren { endingChildren.add(pid) }
        memory.identity = nil
        let unasked = try changes.apply(
            state, fds: handed.fds, askedParts: inherited?.asked.parts ?? [], askedFDs: fds.asked ?? [])
        // Whoever asks later gets what there is now. What is let go of already, such as a chardev that the
        // command line has no more, stays so.
        inherited?.replaceParts(by: state)
        for (key, fd) in unasked {
            guard let before = fds.find(key.name, id: key.id) else {
                if let fd { close(fd) }
                continue
            }
            fds.delete(key.name, id: key.id)
            close(before)
            if let fd { try fds.save(key.name, id: key.id, fd) }
        }
        for body in lateSteps { try body() }
        lateSteps = []
    }

    public func whenHandedOver(_ body: @escaping () throws(VMMError) -> Void) throws(VMMError) {
        guard inherited?.link != nil, !isTrial else { return try body() }
        lateSteps.append(body)
    }

    public func onChange(
        of part: String, fds: String?, _ take: @escaping (PartChanges) throws(VMMError) -> Void
    ) {
        guard inherited?.link != nil, !isTrial else { return }
        changes.add(part: part, fds: fds, take)
    }

    /// Guest memory that cannot be had any more stops the guest, as an internal
    /// error does in QEMU.
    private func watchMemory() throws(VMMError) {
        let wake = cbaton_guard_wake_fd()
        guard wake >= 0 else { return }
        var isTold = false
        try vm.loop.watch(wake, .readable) { [unowned self] _ in
            _ = cbaton_eventfd_take(wake)
            guard !isTold, let loss = memory.loss else { return }
            isTold = true
            Report.error(loss)
            // While it waits for its state, the VMM before has the guest still.
            if !awaitsLoad { vm.stop(.internalError) }
        }
    }

    private func checkHeritage() throws(VMMError) {
        guard let inherited else { return }
        guard isEnabled(inherited.mode) else {
            throw VMMError(
                "this process takes over a VM that was saved in mode '\(inherited.mode)', which is not enabled",
                hint: "Add -cpr-enable \(inherited.mode) to the arguments of cpr-exec.")
        }
        if let missing = memory.records.missing { throw missing }
    }

    /// In a new VMM: tells the old one how far it is.
    func tellOldVMM(_ stage: UpdateStage) {
        if stage == .waiting { HandoverLink.ofThisProcess?.token?.noteWait() }
        HandoverLink.ofThisProcess?.report(stage)
    }

    /// This process gives up before it owns the guest: tells whoever waits. Does not
    /// return in the process that was started as the VM: that stays as a placeholder.
    public static func giveUp(_ error: VMMError) {
        guard let link = HandoverLink.ofThisProcess else { return }
        HandoverLink.ofThisProcess = nil
        link.reportFailure(error.message)
        Placeholder.stay(link)
    }

    /// What is to be known before an update.
    var warnings: [String] {
        guard getpid() == 1 else { return [] }
        return [
            "this VMM is PID 1 of its namespace: should the new VMM crash, or its command end before it, the namespace "
                + "ends, and the guest with it; "
                + "one that refuses or hangs leads back to this VMM"
        ]
    }

    /// The VMM was told to end. One that still waits for its guest's state
    /// ends the guest too: nobody takes it back.
    public func ending() {
        // Destructors of a module may wait for what a stopped call of it holds.
        if !calls.late.isEmpty { alarm(2) }
        guard let link = HandoverLink.ofThisProcess else { return }
        // The old VMM may take the guest back right now; then it is the one to end, and knows it first.
        if !link.isAnothers, let pid = Predecessor.pid { kill(pid, SIGTERM) }
        if link.take() { _ = link.release() }
        HandoverLink.ofThisProcess = nil
    }

    /// What clients have plugged: a checkpoint that another start will load names it. Borrowed.
    public weak var plugged: (any PluggedOptions)?

    /// Has `observer` told by whose end the VM ends, each time that this becomes another process by an update.
    public static func onMainProcess(_ observer: any MainProcessObserver) { MainProcess.observer = observer }

    // MARK: Phases

    /// Tells `observer` of each phase. In `.survey`, `.save` and `.exec` an
    /// error ends what is in hand.
    public func onPhase(_ observer: @escaping (CprPhase) throws(VMMError) -> Void) { observers.append(observer) }

    /// Has `body` called when the guest has been stopped and is about to be handed
    /// over: it lets go of what the new VMM must not find in use, such as the name
    /// of a socket that is to be opened anew. `.saveFailed` follows when nothing
    /// comes of it.
    public func beforeExec(_ body: @escaping () -> Void) { preparations.append(body) }

    func prepareForExec() { for prepare in preparations { prepare() } }

    /// Tells of a phase in which anybody may object.
    func notify(_ phase: CprPhase) throws(VMMError) {
        if phase == .survey || phase == .exec { outgoingParts = [] }
        if let error = tellPreservers(phase).first { throw error }
        // What is said at the change of hands goes over with the rest that is unsaid.
        if phase == .exec { tell(phase) }
        for observer in observers { try observer(phase) }
        if phase != .exec { tell(phase) }
    }

    /// Tells of a phase that nobody can object to.
    func announce(_ phase: CprPhase) {
        for error in tellPreservers(phase) { Report.warning(error.message) }
        for observer in observers {
            do throws(VMMError) { try observer(phase) } catch { Report.warning(error.message) }
        }
        tell(phase)
    }

    /// Tells the preservers of a phase.
    /// - Returns: what went wrong in them.
    private func tellPreservers(_ phase: CprPhase) -> [VMMError] {
        let preservers = registry.preservers
        let answers = calls.call(preservers, phase.rawValue, limit: callLimit) { [unowned self] index -> VMMError? in
            do throws(VMMError) { try preservers[index].notify(phase, cpr: self) } catch {
                return error.prefixed(preservers[index].name)
            }
            return nil
        }
        return answers.compactMap { answer in
            switch answer {
            case .success(let error): error
            case .failure(let late): late
            }
        }
    }

    /// Nanoseconds that each call into a module may take now. In a VMM that does not
    /// have the guest yet, nothing but its own end depends on it.
    var callLimit: Int64 {
        HandoverLink.ofThisProcess == nil ? max(updateLimit, BoundedCalls.leastLimit) : updateLimit
    }

    /// What the new VMM may give each of its modules: less than what it has itself,
    /// so that it can still say which of them was late.
    private var successorsCallLimit: Int64 { updateLimit / 4 * 3 }

    /// The monitors' clients.
    private func tell(_ phase: CprPhase) {
        guard phase != .survey else { return }
        vm.emit("CPR", ["phase": .string(phase.rawValue)])
    }

    // MARK: State for the next process

    /// A part's state for the next process, to be given in the `.exec` and
    /// `.survey` phases; the part finds it in `inherited?.part(name)`.
    public func handOver(_ name: String, version: UInt32 = 1, _ writer: StateWriter) {
        outgoingParts.append((name, version, writer))
    }

    /// The state for the next process: what is preserved now.
    public func stateForExec(mode: any CprMode) -> CprState {
        var next = times
        next.generation += 1
        var state = CprState(mode: mode.name, fds: fds.entries, ram: memory.records.current, times: next)
        state.link = successor?.link
        state.checkpointFollows = successor?.mayWait == false
        // One update may follow the other too soon for any to have been waited for. A few wait for the next one:
        // the kernel takes its time for each, and the guest waits.
        if endingChildren.pids.count > EndingChildren.few { endingChildren.collect() }
        state.endingChildren = endingChildren.pids
        state.placeholder = Placeholder.current
        state.environment = successorEnvironment
        state.callLimit = successorsCallLimit
        state.timerSlack = UInt(cbaton_timer_slack())
        state.markedTimerSlack = mark?.timerSlack
        state.mark = mark.map { CprState.Mark(fd: $0.fd, number: $0.number) }
        if HostAccess.socket >= 0 { state.warden = HostAccess.socket }
        state.memoryIdentity = memory.identity
        state.history = history
        for part in outgoingParts { state.addPart(part.name, version: part.version, part.writer) }
        return state
    }
}
