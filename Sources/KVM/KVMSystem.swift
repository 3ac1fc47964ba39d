import BatonRuntime
import CKVM

/// A descriptor of KVM's: of the system, a VM, a CPU. It is closed by an exec, and never handed on: a VM belongs to the
/// memory that made it.
final class KVMDescriptor {
    let fd: Int32

    init(_ fd: Int32) { self.fd = fd }
    deinit { ckvm_close(fd) }

    /// An ioctl that reads or fills a structure.
    /// - Returns: what the kernel does, or a negative errno value.
    @discardableResult
    func call<T>(_ request: UInt, _ argument: inout T) -> Int32 {
        withUnsafeMutablePointer(to: &argument) { ckvm_ioctl(fd, request, $0) }
    }

    @discardableResult
    func call(_ request: UInt, bytes: UnsafeMutableRawBufferPointer) -> Int32 {
        ckvm_ioctl(fd, request, bytes.baseAddress)
    }

    @discardableResult
    func call(_ request: UInt, value: UInt = 0) -> Int32 { ckvm_ioctl_value(fd, request, value) }

    /// An ioctl for an attribute of a device or CPU (Documentation/virt/kvm/devices of the kernel's).
    /// - Parameter value: the attribute's, which is read or filled.
    func attribute<T>(_ request: UInt, group: Int32, _ attribute: Int32, _ value: inout T) -> Int32 {
        withUnsafeMutablePointer(to: &value) { place in
            var argument = kvm_device_attr()
            argument.group = UInt32(group)
            argument.attr = UInt64(attribute)
            argument.addr = UInt64(UInt(bitPattern: place))
            return call(request, &argument)
        }
    }

    /// 0 for a capability that there is not.
    func capability(_ number: Int32) -> Int { max(0, Int(call(CKVM_CHECK_EXTENSION, value: UInt(number)))) }

    /// - Parameter name: the ioctl, for the error.
    /// - Returns: the kernel's answer.
    @discardableResult
    static func check(_ result: Int32, _ name: String) throws(VMMError) -> Int32 {
        guard result >= 0 else { throw .system("\(name) failed", errno: -result) }
        return result
    }
}

/// The host's KVM, and a VM in it without CPUs or memory.
final class KVMSystem {
    let system: KVMDescriptor
    let vm: KVMDescriptor
    /// Bytes of a CPU's `kvm_run` and what is behind it.
    let runSize: Int
    let maximumCPUs: Int
    let recommendedCPUs: Int
    let maximumCPUID: Int
    let maximumSlots: Int
    let maximumRoutes: Int
    /// Banks of registers that report machine checks: as many as QEMU gives a guest, or fewer.
    let machineCheckBanks: UInt32
    let hasSREGS2: Bool
    let hasTSCDeadline: Bool
    let hasTSCControl: Bool
    let hasAnyLengthDoorbells: Bool

    /// What nothing goes without. Names as in the kernel's documentation.
    private static let required: [(name: String, number: Int32)] = [
        ("KVM_CAP_IRQCHIP", KVM_CAP_IRQCHIP), ("KVM_CAP_USER_MEMORY", KVM_CAP_USER_MEMORY),
        ("KVM_CAP_SET_TSS_ADDR", KVM_CAP_SET_TSS_ADDR), ("KVM_CAP_EXT_CPUID", KVM_CAP_EXT_CPUID),
        ("KVM_CAP_MP_STATE", KVM_CAP_MP_STATE),
        ("KVM_CAP_DESTROY_MEMORY_REGION_WORKS", KVM_CAP_DESTROY_MEMORY_REGION_WORKS),
        ("KVM_CAP_IRQ_ROUTING", KVM_CAP_IRQ_ROUTING), ("KVM_CAP_IRQFD", KVM_CAP_IRQFD),
        ("KVM_CAP_IOEVENTFD", KVM_CAP_IOEVENTFD),
        ("KVM_CAP_SET_IDENTITY_MAP_ADDR", KVM_CAP_SET_IDENTITY_MAP_ADDR),
        ("KVM_CAP_ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK), ("KVM_CAP_VCPU_EVENTS", KVM_CAP_VCPU_EVENTS),
        ("KVM_CAP_DEBUGREGS", KVM_CAP_DEBUGREGS), ("KVM_CAP_XSAVE", KVM_CAP_XSAVE), ("KVM_CAP_XCRS", KVM_CAP_XCRS),
        ("KVM_CAP_GET_TSC_KHZ", KVM_CAP_GET_TSC_KHZ), ("KVM_CAP_SIGNAL_MSI", KVM_CAP_SIGNAL_MSI),
        ("KVM_CAP_READONLY_MEM", KVM_CAP_READONLY_MEM), ("KVM_CAP_IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT),
    ]
    /// Where the kernel has it.
    static let defaultPath = "/dev/kvm"

    /// - Parameter path: of KVM's device.
    /// - Throws: what is missing, and what to do about it.
    init(path: String) throws(VMMError) {
        let fd = ckvm_open(path)
        guard fd >= 0 else { throw KVMSystem.openError(path, -fd) }
        system = KVMDescriptor(fd)
        let version = system.call(CKVM_GET_API_VERSION)
        guard version >= 0 else {
            throw .system(
                "\(path) is not KVM", errno: -version,
                hint: "Give KVM's own file with -accel kvm,device=, or leave it out.")
        }
        guard version == KVM_API_VERSION else {
            throw VMMError(
                "kvm version \(version < KVM_API_VERSION ? "too old" : "not supported") (\(version), not 12)",
                hint: KVMSystem.otherMachine)
        }
        for (name, number) in KVMSystem.required where system.capability(number) == 0 {
            throw VMMError(
                "kvm does not support \(name)", hint: "The host needs Linux 4.12 or later with the whole of KVM.")
        }
        var made: Int32
        repeat { made = system.call(CKVM_CREATE_VM) } while made == -EINTR
        guard made >= 0 else {
            throw .system(
                "ioctl(KVM_CREATE_VM) failed", errno: -made,
                hint: made == -EBUSY || made == -EOPNOTSUPP ? "Another hypervisor may be using the processor." : nil)
        }
        vm = KVMDescriptor(made)
        runSize = Int(try KVMDescriptor.check(system.call(CKVM_GET_VCPU_MMAP_SIZE), "KVM_GET_VCPU_MMAP_SIZE"))
        recommendedCPUs = max(1, vm.capability(KVM_CAP_NR_VCPUS))
        maximumCPUs = max(recommendedCPUs, vm.capability(KVM_CAP_MAX_VCPUS))
        maximumCPUID = max(maximumCPUs, vm.capability(KVM_CAP_MAX_VCPU_ID))
        let slots = vm.capability(KVM_CAP_NR_MEMSLOTS)
        maximumSlots = slots > 0 ? slots : 32
        maximumRoutes = max(24, vm.capability(KVM_CAP_IRQ_ROUTING))
        machineCheckBanks = UInt32(min(10, system.capability(KVM_CAP_MCE)))
        hasSREGS2 = vm.capability(KVM_CAP_SREGS2) != 0
        hasTSCDeadline = vm.capability(KVM_CAP_TSC_DEADLINE_TIMER) != 0
        hasTSCControl = vm.capability(KVM_CAP_TSC_CONTROL) != 0
        hasAnyLengthDoorbells = vm.capability(KVM_CAP_IOEVENTFD_ANY_LENGTH) != 0
    }

    /// x86-64 CPUs are KVM's alone.
    private static let otherMachine = "Without KVM there is the riscv64 machine: -machine virt -accel tcg."

    private static func openError(_ path: String, _ code: Int32) -> VMMError {
        let hint =
            switch code {
            case ENOENT where path != defaultPath: "Give KVM's own file with -accel kvm,device=, or leave it out."
            case ENOENT, ENODEV, ENXIO:
                "Load the module kvm_intel or kvm_amd, and enable virtualization in the host's firmware. \(otherMachine)"
            case EACCES, EPERM: "Add the user to the group that \(path) belongs to. \(otherMachine)"
            default: otherMachine
            }
        let what = "Could not access KVM kernel module"
        return .system(path == defaultPath ? what : "\(what): \(path)", errno: code, hint: hint)
    }

    /// Turns a capability of the VM on.
    /// - Returns: whether it is on.
    @discardableResult
    func enable(_ capability: Int32, _ argument: UInt64 = 1) -> Bool {
        guard vm.capability(capability) != 0 else { return false }
        var request = kvm_enable_cap()
        request.cap = UInt32(capability)
        request.args.0 = argument
        return vm.call(CKVM_ENABLE_CAP, &request) >= 0
    }

    /// KVM_GET_SUPPORTED_CPUID.
    func supportedCPUID() throws(VMMError) -> [CPUIDEntry] {
        var capacity = 128
        while true {
            let buffer = CPUIDEntry.buffer(capacity)
            defer { buffer.deallocate() }
            let result = system.call(CKVM_GET_SUPPORTED_CPUID, bytes: buffer)
            if result == -E2BIG, capacity < 4096 {
                capacity *= 2
                continue
            }
            try KVMDescriptor.check(result, "KVM_GET_SUPPORTED_CPUID")
            return CPUIDEntry.entries(buffer)
        }
    }

    /// KVM_GET_MSR_INDEX_LIST: registers that have state.
    func stateRegisters() throws(VMMError) -> [UInt32] {
        let capacity = 4096
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4 + 4 * capacity, alignment: 8)
        defer { buffer.deallocate() }
        buffer.storeBytes(of: UInt32(capacity), as: UInt32.self)
        try KVMDescriptor.check(system.call(CKVM_GET_MSR_INDEX_LIST, bytes: buffer), "KVM_GET_MSR_INDEX_LIST")
        let count = min(capacity, Int(buffer.load(as: UInt32.self)))
        return (0..<count).map { buffer.load(fromByteOffset: 4 + 4 * $0, as: UInt32.self) }
    }
}
