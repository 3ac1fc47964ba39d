import BatonDevices
import BatonRuntime
import CKVM
import Glibc

/// A CPU of KVM's, and the thread that runs it.
///
/// The main thread touches it only while the thread waits at the gate; `run`'s `immediate_exit` is what both use.
final class KVMVirtualCPU: X86CPU {
    let index: Int
    let apicID: UInt32
    let stateName: String
    let system: KVMSystem
    /// Both outlive the CPU's thread; what runs at each exit counts no references.
    unowned(unsafe) let accelerator: KVMAccelerator
    unowned(unsafe) let vm: VirtualMachine
    private let gate: KVMGate
    let file: KVMDescriptor
    let run: UnsafeMutablePointer<kvm_run>
    /// What CPUID answers.
    let cpuid: [CPUIDEntry]
    /// Bytes of the state of floating point and vectors.
    let xsaveSize: Int
    /// Whether the time-stamp counter is set by its distance to the host's.
    let hasTSCOffset: Bool
    /// kHz of the time-stamp counter.
    let tscFrequency: UInt32

    /// Registers that are in a state, model specific ones; the same for all CPUs.
    var stateRegisters: [UInt32] = []
    /// The state in which KVM makes a CPU: that after power-on.
    var initialState: CPUState?
    var startState: X86StartState?

    /// Of this process.
    let exits = KVMExits()

    private(set) var thread: pthread_t?
    private(set) var threadID: Int32 = 0
    /// Whether the thread has given up what it does not need, and whether it does so at its start. The first is the thread's
    /// own once that runs.
    private(set) var hasRole = false
    private var entersRoleAtOnce = false
    /// Where the thread is to run.
    let place = ThreadPlace()
    /// As of the last time the CPU was stopped.
    var lastProgramCounter: UInt64 = 0
    var wasHalted = false
    /// Whether the local APIC's timer, which counts once, had run out then; its interrupt has come.
    var hasTimerRunOut = false

    init(index: Int, apicID: UInt32, cpuid: [CPUIDEntry], accelerator: KVMAccelerator, vm: VirtualMachine)
        throws(VMMError)
    {
        (self.index, self.apicID, self.cpuid, self.vm) = (index, apicID, cpuid, vm)
        self.accelerator = accelerator
        stateName = "cpu\(index)"
        system = accelerator.system
        gate = accelerator.gate
        let made = system.vm.call(CKVM_CREATE_VCPU, value: UInt(apicID))
        guard made >= 0 else { throw .system("KVM_CREATE_VCPU of CPU \(index) failed", errno: -made) }
        file = KVMDescriptor(made)
        guard let run = ckvm_map_run(made, system.runSize) else {
            throw .system("Could not map the state of CPU \(index)")
        }
        self.run = run
        var offset: UInt64 = 0
        hasTSCOffset =
            file.attribute(CKVM_HAS_DEVICE_ATTR, group: KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, &offset) == 0
        tscFrequency = UInt32(max(0, file.call(CKVM_GET_TSC_KHZ)))
        let table = CPUIDEntry.buffer(of: cpuid)
        defer { table.deallocate() }
        let result = file.call(CKVM_SET_CPUID2, bytes: table)
        // Only a VM with its CPUID set tells how much there is.
        xsaveSize = max(4096, system.vm.capability(KVM_CAP_XSAVE2))
        try KVMDescriptor.check(result, "KVM_SET_CPUID2")
    }

    deinit {
        ckvm_unmap_run(run, system.runSize)
        exits.deallocate()
    }

    /// As QEMU's: banks with a control register, for a CPU that has them at all.
    func setUpMachineChecks(_ banks: UInt32) {
        // MCG_CTL_P and MCG_SER_P.
        var capabilities = UInt64(banks) | 1 << 8 | 1 << 24
        if banks > 0 { file.call(CKVM_X86_SETUP_MCE, &capabilities) }
    }

    // MARK: The thread

    /// - Parameter entersRoleAtOnce: whether the thread gives up what it does not need as soon as it is there. Else it does
    ///   so before it carries out the first thing that the guest asks for: that takes a tenth of a millisecond, for which
    ///   the guest would have to wait.
    func makeThread(entersRoleAtOnce: Bool) throws(VMMError) {
        guard thread == nil else { return }
        hasRole = false
        self.entersRoleAtOnce = entersRoleAtOnce
        var made = pthread_t()
        let code = ckvm_start_thread(
            &made,
            { cpu in
                guard let cpu else { return nil }
                Unmanaged<KVMVirtualCPU>.fromOpaque(cpu).takeUnretainedValue().threadMain()
                return nil
            }, Unmanaged.passUnretained(self).toOpaque())
        guard code == 0 else { throw .system("Could not make the thread of CPU \(index)", errno: code) }
        thread = made
    }

    private func threadMain() {
        threadID = Int32(ckvm_thread_id())
        ckvm_name_thread("CPU \(index)/KVM")
        if entersRoleAtOnce { enterRole() }
        while gate.pass() { runGuest() }
    }

    /// The CPU's thread.
    func enterRole() {
        SandboxRole.cpu.enter()
        hasRole = true
    }

    func joinThread() {
        guard let thread else { return }
        pthread_join(thread, nil)
        self.thread = nil
        threadID = 0
    }

    /// Has the CPU leave the guest, and stay out of it.
    func stopSoon() {
        ckvm_set_immediate_exit(run, 1)
        if let thread { _ = ckvm_kick(thread) }
    }

    func allowRun() { ckvm_set_immediate_exit(run, 0) }

    // MARK: X86CPU

    func setStartState(_ state: X86StartState?) { startState = state }

    func reset() {
        guard let initialState else { return }
        var state = initialState
        if let startState { state.start(startState) }
        if index == 0 { accelerator.forgetFailure() }
        if let error = set(state) { accelerator.note(failure: error) }
    }
}
