import BatonDevices
import BatonRuntime
import CKVM

/// All that KVM knows of a CPU.
struct CPUState {
    var regs = kvm_regs()
    var sregs = kvm_sregs2()
    /// As KVM_GET_XSAVE2 gives it.
    var xsave: [UInt8] = []
    var xcrs: [(number: UInt32, value: UInt64)] = []
    var registers: [(index: UInt32, value: UInt64)] = []
    var events = kvm_vcpu_events()
    var debug = kvm_debugregs()
    /// Registers of the local APIC.
    var lapic: [UInt8] = []
    var mpState = UInt32(KVM_MP_STATE_RUNNABLE)
    /// The guest's time-stamp counter minus the host's; nil to leave it as it is.
    var tscOffset: UInt64?

    var isHalted: Bool { mpState == UInt32(KVM_MP_STATE_HALTED) }
    var isWaitingForStart: Bool { mpState == UInt32(KVM_MP_STATE_UNINITIALIZED) }

    static let lapicSize = 1024
    static let timeStampCounter: UInt32 = 0x10
    static let deadline: UInt32 = 0x6e0

    /// Registers that have state, and which the kernel does not list: how memory is cached (MTRRs), branches are traced,
    /// and machine checks are reported, of `banks` banks.
    static func unlisted(banks: UInt32) -> [UInt32] {
        let ranges: [UInt32] = Array(0x200...0x20f) + [0x250, 0x258, 0x259] + Array(0x268...0x26f) + [0x2ff, 0x1d9]
        return ranges + (0..<4 * banks).map { 0x400 + $0 }
    }

    /// Registers of which the kernel tells that they have state, but which are none of a CPU's: the older and the
    /// newer place of the wall clock (to set one makes the kernel store to guest memory; a guest sets it before it
    /// reads), the older one of the clock, and what another hypervisor would have.
    static func isCarried(_ index: UInt32) -> Bool {
        switch index {
        case 0x11, 0x12, 0x4b56_4d00, 0x4000_0000...0x4000_01ff: false
        default: true
        }
    }

    // MARK: Where a CPU starts

    /// Puts a CPU that is as after power-on to where a boot protocol wants it.
    mutating func start(_ start: X86StartState) {
        guard start.mode != .reset else { return }
        let isLong = start.mode == .long
        func segment(_ selector: UInt16, _ type: UInt8, code: Bool) -> kvm_segment {
            var segment = kvm_segment()
            (segment.limit, segment.selector, segment.type) = (0xffff_ffff, selector, type)
            (segment.present, segment.s, segment.g) = (1, 1, 1)
            (segment.l, segment.db) = code && isLong ? (1, 0) : (0, 1)
            return segment
        }
        // Flat: execute and read, accessed; read and write, accessed.
        sregs.cs = segment(X86StartState.codeSelector, 0xb, code: true)
        let data = segment(X86StartState.dataSelector, 3, code: false)
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data)
        // A busy TSS, which the processor must have.
        var task = kvm_segment()
        (task.limit, task.type, task.present) = (0x67, 0xb, 1)
        sregs.tr = task
        sregs.gdt.base = start.gdtBase
        sregs.gdt.limit = start.gdtLimit
        (sregs.idt.base, sregs.idt.limit) = (0, 0)
        // PE and ET; in long mode PG, PAE, LME and LMA.
        sregs.cr0 = isLong ? 0x8000_0011 : 0x11
        sregs.cr3 = isLong ? start.cr3 : 0
        sregs.cr4 = isLong ? 0x20 : 0
        sregs.efer = isLong ? 0x500 : 0
        regs = kvm_regs()
        (regs.rip, regs.rbx, regs.rsi, regs.rsp) = (start.rip, start.rbx, start.rsi, start.rsp)
        regs.rflags = 2
    }
}

/// The list of KVM_GET_MSRS and KVM_SET_MSRS.
struct RegisterList {
    private(set) var registers: [(index: UInt32, value: UInt64)]
    /// The kernel takes fewer than 256 at once.
    private static let most = 128

    init(_ registers: [(index: UInt32, value: UInt64)]) { self.registers = registers }

    /// - Returns: how many were read, or set, up to the first that cannot be; or a negative errno value.
    mutating func call(_ request: UInt, _ file: KVMDescriptor) -> Int32 {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 8 + 16 * RegisterList.most, alignment: 8)
        defer { buffer.deallocate() }
        var done = 0
        while done < registers.count {
            let count = min(RegisterList.most, registers.count - done)
            buffer.storeBytes(of: UInt64(count), as: UInt64.self)
            for place in 0..<count {
                let (index, value) = registers[done + place]
                buffer.storeBytes(of: UInt64(index), toByteOffset: 8 + 16 * place, as: UInt64.self)
                buffer.storeBytes(of: value, toByteOffset: 16 + 16 * place, as: UInt64.self)
            }
            let result = file.call(request, bytes: buffer)
            guard result >= 0 else { return result }
            for place in 0..<min(count, Int(result)) {
                registers[done + place].value = buffer.load(fromByteOffset: 16 + 16 * place, as: UInt64.self)
            }
            done += Int(result)
            if result < count { break }
        }
        return Int32(done)
    }
}
