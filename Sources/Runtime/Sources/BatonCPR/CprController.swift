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
    public let inherited: CprState?
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
    /// Whether `cpr-load` has succeeded or was never due: until then the guest
    /// of the process before must not be started or reset.
    public internal(set) var awaitsLoad: Bool

    /// The mode of the last `cpr-save`, while the VM is in `save-vm`.
    var saved: (mode: any CprMode, stateBefore: RunState)?
    /// The mode of the save in hand, or of the last one: for what its promises
    /// mean to a part in `.save`.
    public internal(set) var modeOfSave: (any CprMode)?
    /// A trial run is going on beside the guest.
    var isInPreflight = false
    /// Nanoseconds that each stage of the step in hand may take; nil outside of one.
    var stepLimit: Int64?
    /// Nanoseconds that each call into a module may take in the update that
    /// has been asked for.
    var updateLimit = CprController.defaultStartLimit
    /// Calls of which nobody but this process sees that they hang.
    let calls = BoundedCalls()
    /// What watches over the step in hand.
    var guardian: Lifeboat.Guardian?
    /// Whether the step in hand ends in an exec, and whether the successor may
    /// then wait for its client.
    var stepEnd = StepEnd.checkpoint
    var isPrepared = false
    /// What earlier updates of this process have left.
    let helpers: HelperProcesses
    /// What successors find in their environment, beside the rest of it: for
    /// what this process was told by its own and keeps from other children.
    public var successorEnvironment: [(name: String, value: String)] = []
    /// Lets go of what outlives this process and nothing that follows may find
    /// in use. Before the copy is made, which could not do that.
    private var preparations: [() -> Void] = []
    /// The checkpoint that the next successor loads without being asked.
    var checkpointFD: Int32?
    /// After an exec that failed: whether the successor was as far as to answer
    /// the monitors' clients in the place of this process.
    public internal(set) var successorAnswered = false
    /// Whether the client that asked for the update in hand wants its
    /// connection closed by it, as QEMU's is, instead of kept.
    public internal(set) var closesConnection = false
    /// Whether the exec in hand ends the sessions of all monitors, as QEMU's
    /// `cpr-exec` does: the new process begins new ones.
    public var endsMonitorSessions = false {
        didSet {
            Lifeboat.whenSuccessorStands =
                !endsMonitorSessions
                ? nil
                : { [unowned vm] in
                    for chardev in vm.chardevs where chardev.frontend?.isMonitor == true { chardev.endConnection() }
                }
        }
    }
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
        helpers = HelperProcesses(inherited?.helpers ?? [])
        awaitsLoad = inherited != nil
        if let inherited {
            updateLimit = inherited.callLimit ?? updateLimit
            fds.inherit(inherited.fds)
            memory.records.inherit(inherited.ram)
            memory.isTrial = inherited.isTrial
        }
        vm.handover = self
        mark = inherited?.mark.map { UpdateMark(inherited: $0) }
        // When there is time: not while another process' guest waits to be this one's.
        if !isTrial { vm.loop.later { [weak self] in self?.makeMark() } }
        vm.namedFDs.keep(in: fds)
        // A guest that is started or reset is not the one that was saved.
        vm.onRunStateChange { [unowned self] state in if state == .running || state == .prelaunch { voidSave() } }
        vm.beforeMemoryChanges = { [unowned self] () throws(VMMError) in try self.memory.willChange() }
        vm.startBlocker = { [unowned self] in
            awaitsLoad
                ? VMMError(
                    "the VM waits for cpr-load",
                    hint: "This process took over a guest; give it its state with cpr-load.")
                : self.memory.loss
        }
    }

    /// Before whatever executes the command of an update, and before the copy
    /// is made that takes the guest back: it has the mark too.
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
        times.built = EventLoop.now
        times.mapping = memory.mappingTime
        try watchMemory()
        try checkHeritage()
        if let state { return try state() }
        guard let inherited else { return }
        guard let fd = inherited.checkpointFD else {
            tellGuardian(.waiting)
            return
        }
        let checkpoint = OwnedFD(adopting: fd)
        try load(from: checkpoint.raw, mode: try enabledMode(inherited.mode), name: "the checkpoint")
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

    /// In a successor: tells the lifeboat how far it is.
    func tellGuardian(_ stage: UpdateStage) {
        if let link = CprState.lifeboatOfThisProcess { Lifeboat.report(link, stage) }
    }

    /// This process gives up before it owns the guest: tells whoever waits.
    public static func giveUp(_ error: VMMError) {
        guard let link = CprState.lifeboatOfThisProcess else { return }
        Lifeboat.reportFailure(link, error.message)
        stayIfLast()
    }

    /// The guest is another process' again. PID 1 of a namespace does not
    /// return: its end would be that process' too.
    static func stayIfLast() { if getpid() == 1 { cbaton_keep_namespace() } }

    /// What is to be known before an update.
    var warnings: [String] {
        guard getpid() == 1 else { return [] }
        return [
            "this VMM is PID 1 of its namespace: should the new VMM crash, the namespace ends, and the guest with it; "
                + "one that refuses or hangs leads back to this VMM"
        ]
    }

    /// The VMM was told to end. One that still waits for its guest's state
    /// ends the guest too: no lifeboat takes it back.
    public func ending() {
        // Destructors of a module may wait for what a stopped call of it holds.
        if !calls.late.isEmpty { alarm(2) }
        guard let link = CprState.lifeboatOfThisProcess else { return }
        if Lifeboat.take(link) { Lifeboat.release(link) }
        CprState.lifeboatOfThisProcess = nil
    }

    /// Has `body` called in a process that takes its guest back, before
    /// anything else, while the one that failed may still be there.
    public static func whenTakenBack(_ body: @escaping () -> Void) { Lifeboat.whenTakenBack = body }

    // MARK: Phases

    /// Tells `observer` of each phase. In `.survey`, `.save` and `.exec` an
    /// error ends what is in hand.
    public func onPhase(_ observer: @escaping (CprPhase) throws(VMMError) -> Void) { observers.append(observer) }

    /// Has `body` called when this process is to be replaced, before the copy is
    /// made that can take the guest back: it lets go of what outlives the process
    /// and the next one must not find in use, such as a terminal's raw mode.
    /// `.saveFailed` follows when nothing comes of it.
    public func beforeExec(_ body: @escaping () -> Void) { preparations.append(body) }

    func prepareForExec() { for prepare in preparations { prepare() } }

    /// Tells of a phase in which anybody may object.
    /// - Parameter watching: called when those have been told who are known not
    ///   to hang: the copy that it makes knows what they have done.
    func notify(_ phase: CprPhase, watching: (() throws(VMMError) -> Void)? = nil) throws(VMMError) {
        if phase == .survey || phase == .exec { outgoingParts = [] }
        if phase == .survey {
            if let error = tellPreservers(phase).first { throw error }
        } else {
            try notify(registry.preservers.filter(\.neverHangs), phase)
            try watching?()
            // A lifeboat sees it when one does not come back.
            try notify(registry.preservers.filter { !$0.neverHangs }, phase)
        }
        for observer in observers { try observer(phase) }
        tell(phase)
    }

    private func notify(_ preservers: [any FdPreserver], _ phase: CprPhase) throws(VMMError) {
        for preserver in preservers {
            do throws(VMMError) {
                try preserver.notify(phase, cpr: self)
            } catch {
                throw error.prefixed(preserver.name)
            }
        }
    }

    /// Tells of a phase that nobody can object to.
    func announce(_ phase: CprPhase) {
        for error in tellPreservers(phase) { Report.warning(error.message) }
        for observer in observers {
            do throws(VMMError) { try observer(phase) } catch { Report.warning(error.message) }
        }
        tell(phase)
    }

    /// Tells the preservers of a phase in which no lifeboat waits.
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

    /// Nanoseconds that each call into a module may take now.
    var callLimit: Int64 { stepLimit ?? updateLimit }

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
        state.checkpointFD = checkpointFD
        state.lifeboat = guardian?.link
        state.lifeboatPID = guardian?.pid ?? 0
        // One update may follow the other too soon for any to have been waited for.
        helpers.collect()
        state.helpers = helpers.pids.suffix(HelperProcesses.limit - 2) + (guardian.map { [$0.pid] } ?? [])
        state.environment = successorEnvironment
        state.callLimit = callLimit
        state.timerSlack = UInt(cbaton_timer_slack())
        state.markedTimerSlack = mark?.timerSlack
        state.mark = mark.map { CprState.Mark(fd: $0.fd, number: $0.number) }
        state.memoryIdentity = memory.identity
        state.history = history
        for part in outgoingParts { state.addPart(part.name, version: part.version, part.writer) }
        return state
    }
}
