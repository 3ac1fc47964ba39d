import BatonRuntime
import CKVM

/// Reads and sets all of a CPU's state. The CPU does not run.
extension KVMVirtualCPU {
    // MARK: Reading

    /// - Throws: what the kernel did not tell.
    func getState() throws(VMMError) -> CPUState {
        var state = CPUState()
        // This takes in what other CPUs have sent, so it comes first.
        var mp = kvm_mp_state()
        try check(file.call(CKVM_GET_MP_STATE, &mp), "KVM_GET_MP_STATE")
        state.mpState = mp.mp_state
        try check(file.call(CKVM_GET_VCPU_EVENTS, &state.events), "KVM_GET_VCPU_EVENTS")
        try check(file.call(CKVM_GET_REGS, &state.regs), "KVM_GET_REGS")
        try getSystemRegisters(&state)
        state.xsave = [UInt8](repeating: 0, count: xsaveSize)
        let request = xsaveSize > 4096 ? CKVM_GET_XSAVE2 : CKVM_GET_XSAVE
        let result = state.xsave.withUnsafeMutableBytes { file.call(request, bytes: $0) }
        try check(result, "KVM_GET_XSAVE")
        var xcrs = kvm_xcrs()
        try check(file.call(CKVM_GET_XCRS, &xcrs), "KVM_GET_XCRS")
        state.xcrs = withUnsafeBytes(of: &xcrs.xcrs) { bytes in
            let list = bytes.bindMemory(to: kvm_xcr.self)
            return (0..<min(list.count, Int(xcrs.nr_xcrs))).map { (list[$0].xcr, list[$0].value) }
        }
        var list = RegisterList(stateRegisters.map { ($0, 0) })
        let count = try check(list.call(CKVM_GET_MSRS, file), "KVM_GET_MSRS")
        guard count == stateRegisters.count else {
            throw VMMError("CPU \(index): KVM_GET_MSRS does not tell MSR \(Hex(UInt64(stateRegisters[Int(count)])))")
        }
        state.registers = list.registers
        try check(file.call(CKVM_GET_DEBUGREGS, &state.debug), "KVM_GET_DEBUGREGS")
        state.lapic = [UInt8](repeating: 0, count: CPUState.lapicSize)
        try check(state.lapic.withUnsafeMutableBytes { file.call(CKVM_GET_LAPIC, bytes: $0) }, "KVM_GET_LAPIC")
        describeTimer(&state.lapic)
        if hasTSCOffset { state.tscOffset = try check(tscOffset(CKVM_GET_DEVICE_ATTR, 0), "the TSC's offset") }
        return state
    }

    private func getSystemRegisters(_ state: inout CPUState) throws(VMMError) {
        if system.hasSREGS2 {
            try check(file.call(CKVM_GET_SREGS2, &state.sregs), "KVM_GET_SREGS2")
            return
        }
        var old = kvm_sregs()
        try check(file.call(CKVM_GET_SREGS, &old), "KVM_GET_SREGS")
        state.sregs = kvm_sregs2(old)
    }

    @discardableResult
    private func check(_ result: Int32, _ name: String) throws(VMMError) -> Int32 {
        guard result >= 0 else { throw .system("CPU \(index): \(name) failed", errno: -result) }
        return result
    }

    private func check(_ result: (code: Int32, value: UInt64), _ name: String) throws(VMMError) -> UInt64 {
        try check(result.code, name)
        return result.value
    }

    private func tscOffset(_ request: UInt, _ value: UInt64) -> (code: Int32, value: UInt64) {
        var value = value
        let code = file.attribute(request, group: KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, &value)
        return (code, value)
    }

    // MARK: Setting

    /// Sets a state, whatever the CPU has done before.
    ///
    /// In this order: registers that decide what others may be; the time before what is told by it; the local APIC
    /// before its deadline; whether the CPU runs; and last the events in hand, which setting registers drops.
    /// - Returns: what the kernel did not take; the rest is not set then.
    func set(_ state: CPUState) -> VMMError? {
        hasTimerRunOut = false
        do throws(VMMError) {
            // What other CPUs have sent to this one's life before is over.
            var mp = kvm_mp_state()
            file.call(CKVM_GET_MP_STATE, &mp)
            try setSystemRegisters(state)
            try setExtendedState(state)
            var (regs, debug, events) = (state.regs, state.debug, state.events)
            try check(file.call(CKVM_SET_REGS, &regs), "KVM_SET_REGS")
            try check(file.call(CKVM_SET_DEBUGREGS, &debug), "KVM_SET_DEBUGREGS")
            if let offset = state.tscOffset { try set(tscOffset: offset) }
            try set(state.registers.filter { $0.index != CPUState.deadline })
            var lapic = state.lapic
            try check(lapic.withUnsafeMutableBytes { file.call(CKVM_SET_LAPIC, bytes: $0) }, "KVM_SET_LAPIC")
            try set(state.registers.filter { $0.index == CPUState.deadline })
            mp.mp_state = state.mpState
            try check(file.call(CKVM_SET_MP_STATE, &mp), "KVM_SET_MP_STATE")
            try check(file.call(CKVM_SET_VCPU_EVENTS, &events), "KVM_SET_VCPU_EVENTS")
        } catch {
            return error
        }
        lastProgramCounter = state.regs.rip
        wasHalted = state.isHalted
        return nil
    }

    func set(tscOffset offset: UInt64) throws(VMMError) {
        _ = try check(tscOffset(CKVM_SET_DEVICE_ATTR, offset), "the TSC's offset")
    }

    private func setSystemRegisters(_ state: CPUState) throws(VMMError) {
        if system.hasSREGS2 {
            var sregs = state.sregs
            try check(file.call(CKVM_SET_SREGS2, &sregs), "KVM_SET_SREGS2")
            return
        }
        var sregs = kvm_sregs(state.sregs)
        try check(file.call(CKVM_SET_SREGS, &sregs), "KVM_SET_SREGS")
    }

    private func setExtendedState(_ state: CPUState) throws(VMMError) {
        var xcrs = kvm_xcrs()
        xcrs.nr_xcrs = UInt32(state.xcrs.count)
        withUnsafeMutableBytes(of: &xcrs.xcrs) { bytes in
            let list = bytes.bindMemory(to: kvm_xcr.self)
            for (place, register) in state.xcrs.enumerated() where place < list.count {
                list[place].xcr = register.number
                list[place].value = register.value
            }
        }
        if !state.xcrs.isEmpty { try check(file.call(CKVM_SET_XCRS, &xcrs), "KVM_SET_XCRS") }
        var xsave = state.xsave
        try check(xsave.withUnsafeMutableBytes { file.call(CKVM_SET_XSAVE, bytes: $0) }, "KVM_SET_XSAVE")
    }

    private func set(_ registers: [(index: UInt32, value: UInt64)]) throws(VMMError) {
        guard !registers.isEmpty else { return }
        var list = RegisterList(registers)
        let count = try check(list.call(CKVM_SET_MSRS, file), "KVM_SET_MSRS")
        guard count == registers.count else {
            let (index, value) = registers[Int(count)]
            throw VMMError(
                "CPU \(self.index): KVM does not take \(Hex(value)) in MSR \(Hex(UInt64(index)))",
                hint: "The state is of another kind of processor, or kernel.")
        }
    }

    /// Makes the rate of the time-stamp counter that of a state.
    func setTSCFrequency(_ frequency: UInt32) -> VMMError? {
        let result = file.call(CKVM_SET_TSC_KHZ, value: UInt(frequency))
        return result < 0 ? .system("CPU \(index): KVM_SET_TSC_KHZ of \(frequency) kHz failed", errno: -result) : nil
    }

    // MARK: What there is

    /// Finds the registers whose state can be read and set again; asked of a CPU as KVM made it.
    func findStateRegisters(_ candidates: [UInt32]) -> [UInt32] {
        var seen: Set<UInt32> = hasTSCOffset ? [CPUState.timeStampCounter] : []
        var list = candidates.filter { CPUState.isCarried($0) && seen.insert($0).inserted }
        // What others are told by.
        if let place = list.firstIndex(of: CPUState.timeStampCounter) {
            list.insert(list.remove(at: place), at: 0)
        }
        for request in [CKVM_GET_MSRS, CKVM_SET_MSRS] {
            while !list.isEmpty {
                var values = RegisterList(list.map { ($0, 0) })
                var count = values.call(CKVM_GET_MSRS, file)
                if request == CKVM_SET_MSRS, count == list.count { count = values.call(CKVM_SET_MSRS, file) }
                guard count >= 0, count < list.count else { break }
                list.remove(at: Int(count))
            }
        }
        return list
    }
}

extension kvm_sregs2 {
    /// What the older structure has of it.
    init(_ old: kvm_sregs) {
        self.init()
        (cs, ds, es, fs, gs, ss) = (old.cs, old.ds, old.es, old.fs, old.gs, old.ss)
        (tr, ldt, gdt, idt) = (old.tr, old.ldt, old.gdt, old.idt)
        (cr0, cr2, cr3, cr4, cr8) = (old.cr0, old.cr2, old.cr3, old.cr4, old.cr8)
        (efer, apic_base) = (old.efer, old.apic_base)
    }
}

extension kvm_sregs {
    /// Without the interrupt in hand, which is among the events.
    init(_ new: kvm_sregs2) {
        self.init()
        (cs, ds, es, fs, gs, ss) = (new.cs, new.ds, new.es, new.fs, new.gs, new.ss)
        (tr, ldt, gdt, idt) = (new.tr, new.ldt, new.gdt, new.idt)
        (cr0, cr2, cr3, cr4, cr8) = (new.cr0, new.cr2, new.cr3, new.cr4, new.cr8)
        (efer, apic_base) = (new.efer, new.apic_base)
    }
}
