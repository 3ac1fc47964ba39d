import BatonBase
import BatonQMP
import Glibc

/// The virtual machine: its parts, its run state, and the loop that alternates
/// between slices of the guest and the host's events.
///
/// Everything is called with `lock` held. The command line builds one on the main thread, in this order: modules, CPR
/// state, memory, accelerator and board, devices, monitors; then `run`.
public final class VirtualMachine: GuestRequests {
    public var name: String?
    /// `-uuid`; all zeroes when not given.
    public var uuid = VirtualMachine.noUUID
    private static let noUUID = "00000000-0000-0000-0000-000000000000"
    /// `-uuid`, in small letters; nil when it was not given.
    public var givenUUID: String? { uuid == VirtualMachine.noUUID ? nil : uuid.lowercased() }
    /// QEMU's name of the machine type.
    public var machineType = "none"
    /// The instruction set of the CPUs, by QEMU's name of the target; set by the board.
    public var architecture = "none"
    /// `-m`: bytes of main memory, set by the board.
    public var ramSize: UInt64 = 0

    public let loop: EventLoop
    public let clock = GuestClock()
    public let addressSpace = AddressSpace()
    /// Ports, on machines that have them: by the same rules as memory, without RAM.
    public let portSpace = AddressSpace()
    /// Held by whoever calls devices, monitors or the loop; from the start on by the main thread.
    public let lock: VMLock
    public let commands = CommandRegistry()
    /// What clients have given with `getfd`.
    public let namedFDs = NamedFDs()
    /// What parts know of updates of this VM; nil in a VM that cannot be updated.
    public package(set) weak var handover: (any MachineHandover)?
    public private(set) var accelerator: (any Accelerator)?

    /// Every device, in the order in which they were added: the order of their
    /// sections in a checkpoint, and of loading.
    public private(set) var devices: [any Device] = []
    private var deviceNames: Set<String> = []
    private var partLists = MachinePartLists()

    /// The monitors: their chardevs hold them weakly.
    public private(set) var monitors: [AnyObject] = []

    public init() throws(VMMError) {
        loop = try EventLoop()
        lock = try VMLock()
        lock.acquire()
    }

    // MARK: Parts

    public func setAccelerator(_ accelerator: any Accelerator) throws(VMMError) {
        self.accelerator = accelerator
        if accelerator.hasThreads { try loop.share(lock) }
    }
    public func add(monitor: AnyObject) { monitors.append(monitor) }

    /// - Throws: an error when another device has the same state name.
    public func add(_ device: any Device) throws(VMMError) {
        guard deviceNames.insert(device.stateName).inserted else {
            throw VMMError("Duplicate device ID '\(device.stateName)'")
        }
        devices.append(device)
    }

    /// Takes a device away, which is not told: it is in its state of after a reset, and does nothing.
    public func remove(_ device: any Device) {
        devices.removeAll { $0 === device }
        deviceNames.remove(device.stateName)
    }

    /// The parts of one kind, for the floor that has the kind.
    public func parts<List: MachineParts>(_ kind: List.Type) -> List { partLists.list(kind) }

    // MARK: Run state

    public private(set) var runState: RunState = .prelaunch
    public var isRunning: Bool { runState == .running }
    private var runStateObservers: [(RunState) -> Void] = []
    private var needsReset = true
    private var isNew = true
    /// The machine has ended or cannot go on: until its next reset the guest must not run, whatever state the VM is
    /// in meanwhile. A save, for one, is a state of its own.
    private var requiresReset = false
    /// Why the guest must not run before a reset, in QEMU's words; nil when it may.
    public var resetRefusal: VMMError? {
        requiresReset ? VMMError("Resetting the Virtual Machine is required") : nil
    }

    /// Calls `observer` after every change of the run state.
    public func onRunStateChange(_ observer: @escaping (RunState) -> Void) { runStateObservers.append(observer) }

    /// Changes between two states in which the guest does not run.
    public func setStoppedState(_ state: RunState) {
        precondition(!isRunning && state != .running)
        change(to: state)
    }

    private func change(to state: RunState) {
        guard state != runState else { return }
        runState = state
        if state == .internalError || state == .shutdown { requiresReset = true }
        for observer in runStateObservers { observer(state) }
    }

    /// Resets every device to power-on state, in order.
    public func resetDevices() {
        needsReset = false
        requiresReset = false
        isNew = false
        for device in devices { device.reset() }
    }

    /// The first reset, for what needs devices in their power-on state before
    /// the guest has ever run.
    public func resetIfNew() throws(VMMError) {
        guard isNew else { return }
        try beforeMemoryChanges()
        resetDevices()
    }

    /// Whether a guest that ran when its state was saved runs again once that
    /// is loaded: off with `-S`; `stop` and `cont` change it while the VM waits.
    public var autostart = true

    /// Why the guest must not be started now; nil when it may.
    public var startBlocker: () -> VMMError? = { nil }

    /// Called before the guest runs or a reset writes to memory; an error keeps
    /// it from that.
    public var beforeMemoryChanges: () throws(VMMError) -> Void = { () throws(VMMError) in }

    /// Memory was changed by a load that failed: the next start resets the VM.
    package func loadFailed() { needsReset = true }

    /// The devices have taken a checkpoint's state over, which stands for the
    /// first reset.
    public func tookOverState() {
        needsReset = false
        requiresReset = false
        isNew = false
    }

    /// CLOCK_MONOTONIC in nanoseconds when the guest last stopped and its
    /// devices began to drain.
    public private(set) var stoppedAt: Int64 = 0

    /// Lets the guest run (QMP `cont`). Does nothing when it runs.
    /// Emits RESUME.
    /// - Throws: why the guest must not run now.
    public func start() throws(VMMError) {
        guard !isRunning else { return }
        // Why it ended comes before what to do.
        if let blocker = startBlocker() { throw blocker }
        if let refusal = resetRefusal { throw refusal }
        try beforeMemoryChanges()
        try accelerator?.makeThreads()
        lacksThreads = false
        if needsReset {
            resetDevices()
            if let failure = accelerator?.failure { throw failure }
        }
        if let body = beforeDevicesResume {
            beforeDevicesResume = nil
            body()
        }
        clock.vmStarted()
        for device in devices { device.resume() }
        change(to: .running)
        emit("RESUME")
        if owesThreadReport { reportThreads() }
        makeUpTime()
    }

    /// While the guest runs, has its clock catch up with the host's.
    private func makeUpTime() {
        guard clock.owed > 0, !isMakingUpTime else { return }
        isMakingUpTime = true
        loop.schedule(at: EventLoop.now + GuestClock.stepInterval) { [weak self] in
            guard let self else { return }
            isMakingUpTime = false
            guard isRunning else { return }
            clock.makeUp()
            makeUpTime()
        }
    }
    private var isMakingUpTime = false

    private let mainThread = pthread_self()
    var isOnMainThread: Bool { pthread_equal(pthread_self(), mainThread) != 0 }
    /// The accelerator's threads run the guest: since the loop came round after `start`.
    private var threadsRun = false

    private func stopCPUs() {
        guard threadsRun else { return }
        threadsRun = false
        accelerator?.pauseCPUs()
    }

    /// Calls `body` while CPUs stand between two instructions, as they do on the main thread anyway.
    public func whileCPUsStand(_ body: () -> Void) {
        let ran = threadsRun
        stopCPUs()
        body()
        if ran { resumeCPUs() }
    }

    /// Calls `body` while no thread but the main one is left, for which the guest stands still. Afterwards, which may
    /// be in a child with the same memory, the guest goes on.
    public func withoutThreads(_ body: () throws(VMMError) -> Void) throws(VMMError) {
        for end in threadEnders { end() }
        guard let accelerator, accelerator.hasThreads else { return try body() }
        let ran = threadsRun
        stopCPUs()
        accelerator.endThreads()
        var failure: VMMError?
        do throws(VMMError) { try body() } catch { failure = error }
        do throws(VMMError) {
            try accelerator.makeThreads()
            if ran { resumeCPUs() }
        } catch {
            // There is nobody who could run it, for now: where others have taken what threads need.
            Report.error(error.prefixed("the guest stands still until its CPUs have threads"))
            if isRunning {
                stop(.paused)
                lacksThreads = true
                tryAgain()
            }
        }
        if let failure { throw failure }
    }

    /// Whether the guest stands still for want of threads alone.
    private var lacksThreads = false
    private static let threadRetry: Int64 = 100_000_000

    private func tryAgain() {
        _ = loop.schedule(at: EventLoop.now + VirtualMachine.threadRetry) { [weak self] in
            guard let self, lacksThreads, runState == .paused else { return }
            do throws(VMMError) { try start() } catch { tryAgain() }
        }
    }

    /// The run state that the guest is to have in another process.
    public var runStateToKeep: RunState { lacksThreads && runState == .paused ? .running : runState }

    private var threadEnders: [() -> Void] = []

    /// Has `body` called before the process becomes two, of which the one that goes on with the guest has nothing that
    /// the kernel keeps for a process but its memory and descriptors: threads beside the accelerator's end, and what
    /// they did begins anew when it is needed.
    public func whenThreadsEnd(_ body: @escaping () -> Void) { threadEnders.append(body) }

    // MARK: Draining

    /// Has every device take nothing new in hand, and waits until nothing is, with the guest and the loop running on.
    /// The devices stay so until the guest is resumed, or until `release`.
    /// - Parameter limit: nanoseconds.
    /// - Throws: what is still in hand then; the devices go on.
    public func drain(limit: Int64) throws(VMMError) {
        for device in devices { device.hold() }
        var busy = devices.filter { $0.isBusy }
        guard !busy.isEmpty else { return }
        let deadline = EventLoop.now + limit
        let timer = loop.schedule(at: deadline) {}
        run {
            busy.removeAll { !$0.isBusy }
            return busy.isEmpty || EventLoop.now >= deadline
        }
        timer.cancel()
        guard let first = busy.first(where: { $0.isBusy }) else { return }
        release()
        throw VMMError(
            "\(first.workInHand) did not end within \(limit / 1_000_000) ms", hint: "Look at what is behind the device."
        )
    }

    /// Lets devices go on that `drain` has held.
    public func release() { for device in devices { device.release() } }

    private func resumeCPUs() {
        threadsRun = true
        accelerator?.resumeCPUs()
    }

    /// Stops the guest between two instructions and drains its devices (QMP
    /// `stop`). Emits STOP when the guest ran; else only changes the state.
    /// From a CPU's thread, by a device: soon.
    public func stop(_ state: RunState = .paused) {
        guard isRunning else {
            if state == .paused { lacksThreads = false }
            return change(to: state)
        }
        guard isOnMainThread else {
            return loop.later { [weak self] in self?.stop(state) }
        }
        accelerator?.yield()
        for device in devices { device.prepareToPause() }
        stopCPUs()
        change(to: state)
        stoppedAt = EventLoop.now
        for device in devices { device.pause() }
        clock.vmStopped()
        emit("STOP")
    }

    // MARK: Requests, carried out between slices

    private var resetRequested: String?
    private var stopRequested: RunState?
    private var shutdownRequested: (cause: String, status: Int32)?
    private var powerdownHandlers: [() -> Void] = []
    /// `-no-reboot`: a guest's reset ends the VMM.
    public var noReboot = false
    /// `-no-shutdown`: a guest's power-off stops it, and the VMM stays.
    public var noShutdown = false
    /// The process' exit status, once the loop has ended.
    public private(set) var exitStatus: Int32?

    /// Stops the guest soon, between slices: for a device that has a reason.
    public func requestStop(_ state: RunState) {
        stopRequested = state
        accelerator?.yield()
        loop.wake()
    }

    public func guestRequestedShutdown(status: Int32) {
        shutdownRequested = ("guest-shutdown", status)
        accelerator?.yield()
    }

    public func guestRequestedReset() {
        if noReboot {
            shutdownRequested = ("guest-reset", 0)
        } else {
            resetRequested = "guest-reset"
        }
        accelerator?.yield()
    }

    /// QMP `system_reset`.
    /// - Throws: why the guest must not be reset now.
    public func requestReset() throws(VMMError) {
        if let blocker = startBlocker() { throw blocker }
        try beforeMemoryChanges()
        resetRequested = "host-qmp-system-reset"
        accelerator?.yield()
    }

    /// Reads what has come in by signals and not been looked at; set by the
    /// launcher.
    public var takeSignals: () -> Void = {}

    /// Becomes readable when there is something for `takeSignals`; -1 when there
    /// is no such descriptor. Borrowed.
    public var signalFD: Int32 = -1

    /// Forgets that something has asked for the end.
    package func forgetEnd() { shutdownRequested = nil }

    /// Carries out what was asked for and not carried out yet: before a step
    /// that saves or replaces this VM's state, which must hold it.
    /// - Throws: an error when the VMM is ending, by what was asked for.
    package func settleRequests() throws(VMMError) {
        takeSignals()
        carryOutRequests()
        if exitStatus != nil { throw VMMError("the VMM is ending") }
    }

    /// Whether something has asked for the end, and the loop has not come to it.
    public var isEnding: Bool { shutdownRequested != nil || exitStatus != nil }

    /// The guest is another process': ends the loop, and tells nobody that the guest has
    /// ended.
    package func end() { exitStatus = 0 }

    /// QMP `quit`, signals, and whatever else ends the VMM.
    /// - Parameter cause: of QEMU's `ShutdownCause`.
    public func requestQuit(cause: String = "host-qmp-quit", status: Int32 = 0) {
        shutdownRequested = (cause, status)
        accelerator?.yield()
    }

    /// As QEMU's `shutdown_caused_by_guest`.
    private static func isGuests(_ cause: String) -> Bool { cause.hasPrefix("guest-") }

    /// QMP `system_powerdown`: tells every device that can tell the guest.
    public func requestPowerdown() {
        emit("POWERDOWN")
        for handler in powerdownHandlers { handler() }
    }
    public func onPowerdown(_ handler: @escaping () -> Void) { powerdownHandlers.append(handler) }

    private var isAskedForSomething: Bool {
        shutdownRequested != nil || resetRequested != nil || stopRequested != nil
    }

    /// Stops the guest if a device has asked for that.
    package func settleStop() {
        guard let state = stopRequested else { return }
        stopRequested = nil
        if isRunning { stop(state) }
    }

    private func carryOutRequests() {
        settleStop()
        if let request = shutdownRequested {
            shutdownRequested = nil
            var data = JSONObject()
            let isGuests = VirtualMachine.isGuests(request.cause)
            data["guest"] = .bool(isGuests)
            data["reason"] = .string(request.cause)
            emit("SHUTDOWN", data)
            if isGuests && noShutdown {
                stop(.shutdown)
                needsReset = true
            } else {
                stop(.shutdown)
                exitStatus = request.status
            }
        }
        if let cause = resetRequested {
            resetRequested = nil
            stopCPUs()
            resetDevices()
            // As in QEMU: a machine that had ended can be started again.
            if !isRunning { change(to: .prelaunch) }
            if let failure = accelerator?.failure {
                Report.error(failure.prefixed("machine reset"))
                stop(.internalError)
            }
            var data = JSONObject()
            data["guest"] = .bool(VirtualMachine.isGuests(cause))
            data["reason"] = .string(cause)
            emit("RESET", data)
        }
    }

    // MARK: Events

    private var eventSinks: [(String, JSONObject) -> Void] = []
    /// Receives every event that `emit` is given: the QMP monitors.
    public func onEvent(_ sink: @escaping (_ name: String, _ data: JSONObject) -> Void) { eventSinks.append(sink) }
    public func emit(_ name: String, _ data: JSONObject = [:]) {
        for sink in eventSinks { sink(name, data) }
    }

    private var owesThreadReport = false

    /// Says which threads run the CPUs: they are others than before an update that has succeeded or failed. When there
    /// are none yet, it is said when the guest starts. Emits CPU_THREADS_CHANGED.
    package func reportThreads() {
        guard let accelerator, accelerator.hasThreads else { return }
        let cpus = accelerator.cpus
        owesThreadReport = cpus.contains { $0.threadID == 0 }
        guard !owesThreadReport else { return }
        emit(
            "CPU_THREADS_CHANGED",
            ["cpus": .array(cpus.map { ["cpu-index": JSON($0.index), "thread-id": .int(Int64($0.threadID))] })])
    }

    // MARK: The loop

    /// Called once, in `start` when nothing can fail any more, and before any device goes on with what it was at.
    package var beforeDevicesResume: (() -> Void)?

    /// Called once, when the guest has run for a while, or does not run: what can wait for that.
    package var afterGuestRan: (() -> Void)?

    /// Runs until something asks for the end.
    /// - Returns: the process' exit status.
    public func run() -> Int32 {
        run { false }
        return exitStatus ?? 0
    }

    /// Runs the guest and the host's events until `isDone`, which is asked
    /// between slices, or until something asks for the end. May be called by a
    /// command that waits for something which goes on beside the guest.
    public func run(until isDone: () -> Bool) {
        while exitStatus == nil, !isDone() {
            if isRunning, let accelerator {
                let rest = accelerator.hasThreads ? runBeside() : accelerator.runSlice()
                doWhatWaits()
                switch rest {
                case .busy:
                    loop.poll(timeout: 0)
                case .idle(let deadline):
                    loop.poll(timeout: deadline.map { max(0, $0 - EventLoop.now) } ?? -1)
                }
            } else {
                doWhatWaits()
                loop.poll(timeout: isAskedForSomething ? 0 : -1)
            }
            if isAskedForSomething { carryOutRequests() }
        }
    }

    /// Nanoseconds of the guest's between two pauses of one operation.
    private static let brief: Int64 = 1_000_000

    /// Runs the guest for about a millisecond, and nothing else: no event of the host's is looked at.
    package func runBriefly() {
        guard isRunning, let accelerator else { return }
        // It runs anyway, but for CPUs that wait for the lock.
        if accelerator.hasThreads {
            lock.release()
            lock.yieldToWaiters()
            return lock.acquire()
        }
        let end = EventLoop.now + VirtualMachine.brief
        while isRunning, EventLoop.now < end, !isAskedForSomething {
            guard case .busy = accelerator.runSlice() else { return }
        }
    }

    /// CPUs run on threads: the loop waits as long as it likes.
    private func runBeside() -> SliceResult {
        if !threadsRun { resumeCPUs() }
        return isAskedForSomething ? .busy : .idle(until: nil)
    }

    private func doWhatWaits() {
        guard let body = afterGuestRan else { return }
        afterGuestRan = nil
        if threadsRun { loop.schedule(at: EventLoop.now + VirtualMachine.brief, body) } else { body() }
    }
}
