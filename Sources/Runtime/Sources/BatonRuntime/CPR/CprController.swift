import CBaton
import Glibc

/// Save, exec and load: the life of an update, the same for every mode.
///
/// Main thread only. A failed operation leaves the VM as it was: a guest that
/// ran runs again.
public final class CprController {
    public let vm: VirtualMachine
    public let memory: GuestMemory
    public let registry: ModuleRegistry
    public let fds = PreservedFDs()
    /// Modes enabled with `-cpr-enable`, in order.
    public private(set) var enabledModes: [any CprMode] = []
    /// The state that this process took over; nil in a fresh start.
    public let inherited: CprState?
    /// The phases of the update in hand, or of the last one.
    public internal(set) var times: UpdateTimes
    /// The mode of the last `cpr-save`, while the VM is in `save-vm`.
    private var saved: (mode: any CprMode, stateBefore: RunState)?
    /// The mode of the save in hand, or of the last one: for what its promises
    /// mean to a part in `.save`.
    public private(set) var modeOfSave: (any CprMode)?
    private var observers: [(CprPhase) throws(VMMError) -> Void] = []
    /// Whether `cpr-load` has succeeded or was never due: until then the guest
    /// of the process before must not be started or reset.
    public private(set) var awaitsLoad: Bool

    /// - Parameters:
    ///   - inherited: what `CprState.inherited()` gave.
    ///   - startedAt: CLOCK_MONOTONIC in nanoseconds when `main` began.
    public init(
        vm: VirtualMachine, memory: GuestMemory, registry: ModuleRegistry, inherited: CprState?, startedAt: Int64
    ) {
        self.vm = vm
        self.memory = memory
        self.registry = registry
        self.inherited = inherited
        times = inherited?.times ?? UpdateTimes()
        times.started = startedAt
        awaitsLoad = inherited != nil
        if let inherited {
            fds.inherit(inherited.fds)
            memory.records.inherit(inherited.ram)
        }
        vm.cpr = self
        vm.namedFDs.keep(in: fds)
        vm.onRunStateChange { [unowned self] state in if state == .running { guestStarted() } }
        vm.startBlocker = { [unowned self] in
            awaitsLoad
                ? VMMError("the VM waits for cpr-load", hint: "This process took over a guest; give it its state with cpr-load.")
                : nil
        }
    }

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
    func requireMode(_ name: String) throws(VMMError) -> any CprMode {
        if !isEnabled(name), let modeLoader { enable(try modeLoader(name)) }
        return try enabledMode(name)
    }

    public func isEnabled(_ name: String) -> Bool { enabledModes.contains { $0.name == name } }

    /// Checks, once the machine stands, that everything inherited has found
    /// its owner and the mode is enabled.
    /// - Parameter state: loads the state at once, from where the command line
    ///   says; the start's time limit covers it.
    /// - Throws: what the new command line lacks: fatal.
    public func machineBuilt(loading state: (() throws(VMMError) -> Void)? = nil) throws(VMMError) {
        times.built = EventLoop.now
        try checkHeritage()
        if let state { return try state() }
        guard let inherited else { return }
        if let link = inherited.lifeboat { Lifeboat.reportStanding(link) }
        if let fd = inherited.checkpointFD {
            let checkpoint = OwnedFD(adopting: fd)
            try load(from: checkpoint.raw, mode: try enabledMode(inherited.mode), name: "the checkpoint")
        }
    }

    private func checkHeritage() throws(VMMError) {
        guard let inherited else { return }
        guard isEnabled(inherited.mode) else {
            throw VMMError(
                "this process takes over a VM that was saved in mode '\(inherited.mode)', which is not enabled",
                hint: "Add -cpr-enable \(inherited.mode) to the arguments of cpr-exec.")
        }
        if let record = memory.records.inherited.first {
            throw VMMError(
                "the CPR state has the RAM block '\(record.name)' (\(record.usedLength) bytes), which this command line lacks",
                hint: "Start the new VMM with the memory and device arguments of the old one.")
        }
    }

    /// This process gives up before it owns the guest: tells whoever waits.
    public static func giveUp(_ error: VMMError) {
        if let link = CprState.lifeboatOfThisProcess { Lifeboat.reportFailure(link, error.message) }
    }

    // MARK: Observers

    /// Tells `observer` of each phase. In `.save` and `.exec` an error ends the
    /// update.
    public func onPhase(_ observer: @escaping (CprPhase) throws(VMMError) -> Void) { observers.append(observer) }

    private func notify(_ phase: CprPhase) throws(VMMError) {
        for preserver in registry.preservers { try preserver.notify(phase, cpr: self) }
        for observer in observers { try observer(phase) }
    }

    /// Tells of a phase that nobody can object to.
    private func announce(_ phase: CprPhase) {
        for preserver in registry.preservers {
            do throws(VMMError) { try preserver.notify(phase, cpr: self) } catch { Report.warning("\(preserver.name): \(error.message)") }
        }
        for observer in observers {
            do throws(VMMError) { try observer(phase) } catch { Report.warning(error.message) }
        }
    }

    // MARK: cpr-save

    private func enabledMode(_ name: String) throws(VMMError) -> any CprMode {
        if let mode = enabledModes.first(where: { $0.name == name }) { return mode }
        throw VMMError("cpr mode is not enabled.  Use -cpr-enable.")
    }

    /// Why the VM could not be saved in a mode now; empty when it could.
    public func blockers(_ mode: any CprMode) -> [VMMError] {
        var result = mode.blockers(cpr: self)
        for preserver in registry.preservers { result += preserver.blockers(mode: mode.name).map { VMMError($0) } }
        return result
    }

    /// Stops the guest and writes its checkpoint; the run state becomes `save-vm`.
    public func save(to path: String, mode name: String) throws(VMMError) {
        let mode = try enabledMode(name)
        guard saved == nil else { throw VMMError("cpr-save has been done already; use cpr-exec, cpr-load or cont") }
        guard !awaitsLoad else { throw VMMError("the VM waits for cpr-load") }
        if let blocker = blockers(mode).first { throw blocker }
        let stateBefore = vm.runState
        do throws(VMMError) {
            let (container, contents) = try stopAndCollect(mode)
            try Checkpoint.write(container, contents: contents, to: path, durable: mode.promises.contains(.survivesHostReboot))
        } catch {
            announce(.saveFailed)
            giveBack(stateBefore)
            throw error
        }
        times.saved = EventLoop.now
        saved = (mode, stateBefore)
        Log.trace("cpr_save", "file \(path) mode \(name)")
    }

    /// Stops the guest and collects the state of everything.
    /// - Returns: the sections, and the blocks whose contents are to follow.
    private func stopAndCollect(_ mode: any CprMode) throws(VMMError) -> (SectionContainer, [RAMBlock]) {
        let stateBefore = vm.runState
        // A VM that has never run has no state to save until its first reset.
        vm.resetIfNew()
        vm.stop(.saveVM)
        times = UpdateTimes(generation: times.generation)
        times.stopped = EventLoop.now
        modeOfSave = mode
        try notify(.save)
        var container = Checkpoint.collect(vm, memory: memory, runState: stateBefore, mode: mode.name)
        let contents = mode.volatileBlocks(cpr: self)
        RAMContents.describe(contents, in: &container)
        try mode.save(to: &container, cpr: self)
        return (container, contents)
    }

    /// Puts the VM back into the state that it was stopped in.
    private func giveBack(_ stateBefore: RunState) {
        if stateBefore == .running {
            do throws(VMMError) { try vm.start() } catch { Report.warning(error.message) }
        } else {
            vm.setStoppedState(stateBefore)
        }
    }

    /// The guest was started again (`cont`) after a save: the save is void.
    func guestStarted() {
        guard saved != nil else { return }
        saved = nil
        announce(.saveFailed)
    }

    // MARK: cpr-exec

    /// Replaces this process. Returns only by throwing.
    public func exec(_ argv: [String]) throws(VMMError) {
        guard vm.runState == .saveVM else { throw VMMError("runstate is not save-vm") }
        guard let saved else { throw VMMError("cpr-exec requires cpr-save with restart mode") }
        startLimit = CprController.defaultStartLimit
        defer { startLimit = nil }
        try exec(argv, saved.mode, stateBefore: saved.stateBefore)
    }

    private func exec(_ argv: [String], _ mode: any CprMode, stateBefore: RunState) throws(VMMError) {
        guard argv.first?.isEmpty == false else {
            throw VMMError("cpr-exec requires a non-empty argv", hint: "argv[0] is the program to execute.")
        }
        let pid = getpid()
        outgoingParts = []
        successorAnswered = false
        do throws(VMMError) {
            try notify(.exec)
            times.exec = EventLoop.now
            try mode.exec(argv, cpr: self)
            throw VMMError("mode '\(mode.name)' returned from cpr-exec without an error")
        } catch {
            // A mode that has no exec has not touched anything: the VM stays saved.
            guard mode.promises.contains(.samePID) else { throw error }
            saved = nil
            successorAnswered = Lifeboat.successorStood && checkpointFD == nil
            announce(.saveFailed)
            giveBack(stateBefore)
            if getpid() != pid {
                Report.warning(error.message)
                vm.emit("CPR_ROLLED_BACK", ["reason": .string(error.message), "pid": .int(Int64(getpid()))])
            }
            throw error
        }
    }

    // MARK: cpr-update

    /// What an update is limited by.
    public static let defaultStartLimit: Int64 = 10_000_000_000
    /// Nanoseconds that the next successor has to start; nil without a lifeboat.
    public private(set) var startLimit: Int64?
    /// After an exec that failed: whether the successor was as far as to answer
    /// the monitors' clients in the place of this process.
    public private(set) var successorAnswered = false
    /// The checkpoint that the next successor loads without being asked.
    private var checkpointFD: Int32?

    /// Save, exec, load and commit in one step, watched over by a lifeboat:
    /// the guest goes on in the new VMM, or, whatever is wrong with that, here.
    /// Returns only by throwing.
    /// - Parameters:
    ///   - startLimit: nanoseconds that the new VMM has to start.
    ///   - mode: by default the first enabled one that executes its successor.
    public func update(_ argv: [String], mode name: String?, startLimit: Int64) throws(VMMError) {
        let preferred = enabledModes.first { $0.promises.contains(.samePID) }?.name
        let mode = try enabledMode(name ?? preferred ?? "")
        guard saved == nil, vm.runState != .saveVM else { throw VMMError("cpr-save has been done already") }
        guard !awaitsLoad else { throw VMMError("the VM waits for cpr-load") }
        guard argv.first?.isEmpty == false else { throw VMMError("cpr-update requires a non-empty argv") }
        guard mode.promises.contains(.samePID) else {
            throw VMMError("cpr-update needs a mode that executes the new VMM, such as restart")
        }
        if let blocker = blockers(mode).first { throw blocker }
        let stateBefore = vm.runState
        let checkpoint: (sections: SectionContainer, contents: [RAMBlock])
        do throws(VMMError) {
            checkpoint = try stopAndCollect(mode)
        } catch {
            announce(.saveFailed)
            giveBack(stateBefore)
            throw error
        }
        let memfd = cbaton_memfd_create("cpr-checkpoint", 0)
        self.startLimit = startLimit
        checkpointFD = memfd
        defer {
            self.startLimit = nil
            checkpointFD = nil
            if memfd >= 0 { close(memfd) }
        }
        do throws(VMMError) {
            guard memfd >= 0 else { throw .system("cannot write the checkpoint") }
            let bytes = checkpoint.sections.encoded()
            try FD.writeAll(memfd, bytes, to: "the checkpoint")
            try RAMContents.write(checkpoint.contents, to: memfd, after: bytes.count, name: "the checkpoint")
        } catch {
            announce(.saveFailed)
            giveBack(stateBefore)
            throw error
        }
        times.saved = EventLoop.now
        try exec(argv, mode, stateBefore: stateBefore)
    }

    /// Whether the exec in hand ends the sessions of monitors, as QEMU's
    /// `cpr-exec` does: the new process begins new ones.
    public var endsMonitorSessions = false {
        didSet {
            Lifeboat.whenSuccessorStands = !endsMonitorSessions ? nil : { [unowned vm] in
                for chardev in vm.chardevs where chardev.frontend?.isMonitor == true { chardev.endConnection() }
            }
        }
    }

    /// A part's state for the next process, to be given in the `.exec` phase;
    /// the part finds it in `inherited?.part(name)`.
    public func handOver(_ name: String, version: UInt32 = 1, _ writer: StateWriter) {
        outgoingParts.append((name, version, writer))
    }
    private var outgoingParts: [(name: String, version: UInt32, writer: StateWriter)] = []

    /// The state for the next process: what is preserved now.
    public func stateForExec(mode: any CprMode) -> CprState {
        var next = times
        next.generation += 1
        var state = CprState(mode: mode.name, fds: fds.entries, ram: memory.records.current, times: next)
        state.checkpointFD = checkpointFD
        for part in outgoingParts { state.addPart(part.name, version: part.version, part.writer) }
        return state
    }

    // MARK: cpr-load

    /// Takes over the state of a checkpoint; the guest runs again if it ran
    /// when it was saved.
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
        try load(from: file.raw, mode: mode, name: path)
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
    private func load(from fd: Int32, mode: any CprMode, name: String, autostart: Bool = true) throws(VMMError) {
        times.loadRequested = EventLoop.now
        let container = try Checkpoint.read(fd, name: name)
        let runState: RunState
        do throws(VMMError) {
            let contents = try RAMContents.check(container, from: fd, memory: memory, name: name)
            try notify(.load)
            contents?.copy()
            let own = try mode.load(from: container, cpr: self)
            runState = try Checkpoint.apply(container, to: vm, memory: memory, mode: mode.name, ownSections: own, name: name)
        } catch {
            announce(.loadFailed)
            throw error
        }
        try commit()
        vm.tookOverState()
        times.loaded = EventLoop.now
        announce(.commit)
        if runState == .running && autostart {
            try vm.start()
        } else {
            vm.setStoppedState(runState == .running ? .paused : runState)
        }
        times.resumed = EventLoop.now
        if let report = times.report?.objectValue { vm.emit("CPR_UPDATED", report) }
        Log.trace("cpr_load", "file \(name) mode \(mode.name)")
    }

    /// The VMM was told to end. One that still waits for its guest's state
    /// ends the guest too: no lifeboat takes it back.
    public func ending() {
        guard let link = CprState.lifeboatOfThisProcess else { return }
        _ = Lifeboat.take(token: link.token)
    }

    /// Makes the guest this process' own, for good.
    private func commit() throws(VMMError) {
        if let link = CprState.lifeboatOfThisProcess {
            guard Lifeboat.take(token: link.token) else {
                // Too late: the process before runs the guest again, and
                // nothing here may touch it any more.
                Report.error(VMMError("the guest was taken back by the VMM before"))
                exit(1)
            }
            Lifeboat.release(link)
            CprState.lifeboatOfThisProcess = nil
        }
        try memory.commit()
        awaitsLoad = false
    }
}

extension UpdateTimes {
    init(generation: UInt64) {
        self.init()
        self.generation = generation
    }
}
