import BatonDevices
import BatonRuntime
import CKVM
import Glibc

/// Runs x86-64 CPUs by Linux' KVM, each on a thread, with interrupt controllers and timers in the kernel.
public final class KVMAccelerator: X86Accelerator {
    public let name = "kvm"
    public let hasThreads = true

    let system: KVMSystem
    private unowned(unsafe) let vm: VirtualMachine
    private let lock: VMLock
    let gate = KVMGate()
    let interrupts: KVMInterrupts
    private let memory: KVMMemory
    private let doorbells: KVMDoorbells
    private var assignment: KVMAssignment
    private(set) var virtualCPUs: [KVMVirtualCPU] = []
    public private(set) var systemDevices: [any Device] = []
    private var noted: VMMError?

    /// Whether the threads are there, and whether they run.
    private var hasMadeThreads = false
    private var isRunning = false
    private var stoppedPlace: ProcessPlace?
    /// The host's time-stamp counter when the CPUs last stopped.
    private var stopTSC: UInt64?
    /// The one that was saved, and the one from which it goes on: the same for all CPUs of a load.
    private var loadedTSC: (saved: UInt64, now: UInt64)?

    /// Where Intel's processors need four pages of their own, as in QEMU.
    static let reservedPages: UInt64 = 0xfeff_c000
    /// Messages to local APICs: 1 MiB (Intel SDM 3A, 11.11.1).
    private static let messages: (start: UInt64, size: UInt64) = (0xfee0_0000, 0x10_0000)

    /// - Parameter device: the path of KVM's device; nil for the kernel's own place.
    /// - Throws: why KVM cannot be used here.
    public init(vm: VirtualMachine, device: String? = nil) throws(VMMError) {
        self.vm = vm
        lock = vm.lock
        system = try KVMSystem(path: device ?? KVMSystem.defaultPath)
        interrupts = KVMInterrupts(system: system, loop: vm.loop)
        memory = KVMMemory(system: system, space: vm.addressSpace)
        doorbells = KVMDoorbells(system: system)
        assignment = KVMAssignment(system: system)
        let code = ckvm_prepare_signals()
        guard code == 0 else { throw .system("Could not prepare the signal that stops CPUs", errno: code) }
    }

    deinit {
        pauseCPUs()
        endThreads()
    }

    public var physicalAddressBits: Int {
        let entry = virtualCPUs.first?.cpuid.first { $0.function == 0x8000_0008 }
        return Int(entry?.eax ?? 36) & 0xff
    }

    // MARK: Building

    public func build(_ machine: X86MachineDescription) throws(VMMError) {
        for count in [machine.sockets, machine.cores, machine.threads] where !(1...0xffff ~= count) {
            throw VMMError("Invalid CPU topology: \(count) is not from 1 to 65535")
        }
        let topology = CPUTopology(sockets: machine.sockets, cores: machine.cores, threads: machine.threads)
        try checkCount(topology)
        let model = try CPUModel(machine.model)
        try KVMDescriptor.check(
            system.vm.call(CKVM_SET_TSS_ADDR, value: UInt(KVMAccelerator.reservedPages + 0x1000)), "KVM_SET_TSS_ADDR")
        var address = KVMAccelerator.reservedPages
        try KVMDescriptor.check(
            system.vm.call(CKVM_SET_IDENTITY_MAP_ADDR, &address), "KVM_SET_IDENTITY_MAP_ADDR")
        // Counters of events are no part of a state: KVM_PMU_CAP_DISABLE.
        system.enable(Int32(CKVM_CAP_PMU_CAPABILITY), 1)
        system.enable(KVM_CAP_EXCEPTION_PAYLOAD)
        system.enable(Int32(CKVM_CAP_TRIPLE_FAULT_EVENT))
        // Before all else: later on the kernel waits for others to see each change.
        vm.addressSpace.add(memory)
        if let failure = memory.failure { throw failure }
        try interrupts.build(hasPIC: machine.hasPIC, hasPIT: machine.hasPIT)
        try makeCPUs(topology, model)
        try vm.addressSpace.map(
            MessageWindow(interrupts), at: KVMAccelerator.messages.start, size: KVMAccelerator.messages.size,
            name: "kvm-apic-msi")
        systemDevices = [KVMIOAPIC(self), KVMPIC(self)]
        if machine.hasPIT { systemDevices.append(KVMPIT(self)) }
        systemDevices.append(KVMClock(self))
        try KVMExits.register(self, vm.commands)
        vm.metrics.add { [unowned self] in [KVMExits.metrics(self)] }
    }

    private func checkCount(_ topology: CPUTopology) throws(VMMError) {
        let count = topology.cpuCount
        guard count <= system.maximumCPUs else {
            throw VMMError(
                "Number of SMP cpus requested (\(count)) exceeds the maximum cpus supported by KVM "
                    + "(\(system.maximumCPUs))", hint: "Give a smaller number with -smp.")
        }
        let last = Int(topology.apicID(count - 1))
        guard last < min(255, system.maximumCPUID) else {
            throw VMMError(
                "the APIC id of the last CPU is \(last), and the highest that is supported is 254",
                hint: "Give fewer CPUs with -smp, or numbers of cores and threads that are powers of two.")
        }
        // Once for a VM, and not again at each update.
        if count > system.recommendedCPUs, vm.handover?.isSuccessor != true, vm.handover?.isTrial != true {
            Report.warning(
                "Number of SMP cpus requested (\(count)) exceeds the recommended cpus supported by KVM "
                    + "(\(system.recommendedCPUs))")
        }
    }

    private func makeCPUs(_ topology: CPUTopology, _ model: CPUModel) throws(VMMError) {
        var supported = try system.supportedCPUID()
        // KVM tells of this one by a capability.
        if system.hasTSCDeadline {
            for place in supported.indices where supported[place].function == 1 { supported[place].ecx |= 1 << 24 }
        }
        for place in supported.indices where supported[place].function == 1 { supported[place].ecx |= 1 << 31 }
        let table = CPUIDTable(supported: supported, model: model, topology: topology)
        if model.check || model.enforce {
            for text in table.missing { Report.warning(text) }
        }
        if model.enforce, !table.missing.isEmpty {
            throw VMMError("Host doesn't support requested features", hint: table.missing.joined(separator: "\n"))
        }
        var registers: [UInt32] = []
        let banks = system.machineCheckBanks
        for index in 0..<topology.cpuCount {
            var entries = table.entries
            topology.personalize(&entries, apicID: topology.apicID(index))
            let cpu = try KVMVirtualCPU(
                index: index, apicID: topology.apicID(index), cpuid: entries, accelerator: self, vm: vm)
            cpu.setUpMachineChecks(banks)
            if index == 0 {
                registers = cpu.findStateRegisters(try system.stateRegisters() + CPUState.unlisted(banks: banks))
            }
            cpu.stateRegisters = registers
            virtualCPUs.append(cpu)
        }
        var offset: UInt64?
        for cpu in virtualCPUs {
            var state = try cpu.getState()
            // A reset leaves the time as it is; from the beginning on all CPUs have the same.
            state.registers.removeAll { $0.index == CPUState.timeStampCounter }
            if let offset { try cpu.set(tscOffset: offset) }
            offset = offset ?? state.tscOffset
            state.tscOffset = nil
            cpu.initialState = state
        }
    }

    // MARK: X86Accelerator

    public var x86CPUs: [any X86CPU] { virtualCPUs }
    public func line(gsi: Int) -> InterruptLine { interrupts.line(gsi: gsi) }
    public func send(address: UInt64, data: UInt32) -> Bool { interrupts.send(address: address, data: data) }
    public var timeStampFrequency: UInt64? {
        virtualCPUs.first.flatMap { $0.tscFrequency > 0 ? UInt64($0.tscFrequency) * 1000 : nil }
    }

    // MARK: Events

    public var takesDoorbells: Bool { true }
    public func add(_ doorbell: Doorbell) -> Bool { doorbells.add(doorbell) }
    public func remove(_ doorbell: Doorbell) { doorbells.remove(doorbell) }
    public func addDMA(file: Int32) { assignment.add(file) }
    public func makeMessageRoute(event: Int32) -> (any MessageRoute)? { interrupts.makeRoute(event: event) }

    // MARK: What went wrong

    public var failure: VMMError? { noted ?? memory.failure }
    /// The first counts.
    func note(failure: VMMError) { noted = noted ?? failure }
    /// All state is set anew.
    public func forgetFailure() { noted = nil }

    public func injectNMI() -> Bool {
        vm.whileCPUsStand { for cpu in virtualCPUs { cpu.file.call(CKVM_NMI) } }
        return true
    }

    // MARK: Threads

    public func prepareThreads() {
        guard !hasMadeThreads else { return }
        // Time that no guest waits for is the time to give up privileges.
        try? startThreads(enterRoleAtOnce: true)
    }

    public func makeThreads() throws(VMMError) {
        if let error = interrupts.flush() { throw error }
        guard !hasMadeThreads else { return }
        try startThreads(enterRoleAtOnce: false)
        do throws(VMMError) {
            for cpu in virtualCPUs { try cpu.place.take(cpu.threadID) }
        } catch {
            endThreads()
            throw error
        }
    }

    private func startThreads(enterRoleAtOnce: Bool) throws(VMMError) {
        gate.open()
        var made = 0
        do throws(VMMError) {
            for cpu in virtualCPUs {
                cpu.stopSoon()
                try cpu.makeThread(entersRoleAtOnce: enterRoleAtOnce)
                made += 1
            }
            gate.await(made)
            hasMadeThreads = true
        } catch {
            gate.await(made)
            hasMadeThreads = true
            endThreads()
            throw error
        }
    }

    public func resumeCPUs() {
        guard hasMadeThreads, !isRunning else { return }
        isRunning = true
        stoppedPlace = nil
        interrupts.isLive = true
        interrupts.settle()
        if let error = interrupts.flush() { Report.error(error) }
        for cpu in virtualCPUs { cpu.allowRun() }
        gate.release()
    }

    public func pauseCPUs() {
        guard isRunning else { return }
        for cpu in virtualCPUs { cpu.stopSoon() }
        // A CPU may be about to have an access carried out, which is finished first.
        lock.release()
        gate.awaitAll()
        lock.acquire()
        isRunning = false
        interrupts.isLive = false
        stopTSC = ckvm_rdtsc()
    }

    public func endThreads() {
        guard hasMadeThreads, !isRunning else { return }
        let process = processPlace
        for cpu in virtualCPUs { cpu.place.note(cpu.threadID, process: process) }
        gate.end()
        for cpu in virtualCPUs { cpu.joinThread() }
        hasMadeThreads = false
    }

    /// Where the main thread runs, looked up once for all CPUs that stop.
    var processPlace: ProcessPlace {
        let place = stoppedPlace ?? ProcessPlace()
        stoppedPlace = place
        return place
    }

    /// Has the main thread look at what was asked for.
    public func yield() { vm.loop.wake() }

    /// The guest's CPUs are the threads' affair.
    public func runSlice() -> SliceResult { .idle(until: nil) }

    // MARK: Time

    /// The host's time-stamp counter to which a state belongs.
    var stoppedTSC: UInt64 { stopTSC ?? ckvm_rdtsc() }

    var clock: GuestClock { vm.clock }

    /// - Parameter kilohertz: of a guest's time-stamp counter; 0 for a kernel that did not say.
    func ticks(of nanoseconds: Int64, kilohertz: UInt32) -> UInt64 {
        let product = UInt64(max(0, nanoseconds)).multipliedFullWidth(by: UInt64(kilohertz))
        return product.high < 1_000_000 ? (1_000_000 as UInt64).dividingFullWidth(product).quotient : 0
    }

    /// The host's counter from which a state of another boot goes on.
    func loadTSC(_ saved: UInt64) -> UInt64 {
        if let loadedTSC, loadedTSC.saved == saved { return loadedTSC.now }
        let now = ckvm_rdtsc()
        loadedTSC = (saved, now)
        return now
    }

    // MARK: Monitor

    /// Registers are those of the last stop: to ask a CPU that runs would stop it.
    public var cpus: [CPUInfo] {
        virtualCPUs.map { cpu in
            if !isRunning, let state = try? cpu.getState() {
                (cpu.lastProgramCounter, cpu.wasHalted) = (state.regs.rip, state.isHalted || state.isWaitingForStart)
            }
            return CPUInfo(
                index: cpu.index, qomPath: "/machine/unattached/device[\(cpu.index)]", threadID: cpu.threadID,
                target: "x86_64", halted: cpu.wasHalted, programCounter: cpu.lastProgramCounter)
        }
    }

    public func registers(ofCPU index: Int) -> String {
        guard virtualCPUs.indices.contains(index) else { return "" }
        let wasRunning = isRunning
        pauseCPUs()
        defer { if wasRunning { resumeCPUs() } }
        return virtualCPUs[index].registersText
    }
}

/// Where devices store messages: on to the local APICs. A CPU's own accesses stay in the kernel.
private final class MessageWindow: MMIODevice {
    private let interrupts: KVMInterrupts
    private static let base: UInt64 = 0xfee0_0000

    init(_ interrupts: KVMInterrupts) { self.interrupts = interrupts }

    func accepts(offset: UInt64, width: Int) -> Bool { width == 4 }
    func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }
    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        _ = interrupts.send(address: MessageWindow.base + offset, data: UInt32(truncatingIfNeeded: value))
    }
}
