import BatonRuntime
import CKVM

/// A CPU's section in a checkpoint.
extension KVMVirtualCPU {
    func save(to writer: inout StateWriter) {
        writer.put("cpuid", cpuid.flatMap { $0.words.map(UInt64.init) })
        writer.put("tsc-khz", UInt64(tscFrequency))
        // When the guest's counter was what it is; and of which host, as after a reboot that goes on from another.
        writer.put("host-tsc", accelerator.stoppedTSC)
        writer.put("host-boot", HostBoot.id)
        do throws(VMMError) {
            try getState().save(to: &writer)
        } catch {
            // Nothing is saved then, and this VMM keeps the guest.
            accelerator.note(failure: error)
        }
        if thread != nil, !place.isFresh {
            place.note(threadID, process: accelerator.processPlace)
        }
        place.save(to: &writer)
    }

    func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        try checkCPUID(reader)
        let frequency = UInt32(try reader.unsigned("tsc-khz", in: 0...UInt64(UInt32.max)))
        let changesRate = try checkRate(frequency, reader)
        let hostTSC = try reader.unsigned("host-tsc")
        let sameBoot = try reader.string("host-boot") == HostBoot.id && !HostBoot.id.isEmpty
        var state = try CPUState(reader)
        try check(state, reader)
        let takePlace = try place.loader(reader, isSameBoot: sameBoot)
        try reader.finish()
        // What this kernel has and the state does not is as after power-on.
        for register in initialState?.registers ?? [] where register.index != CPUState.deadline {
            if !state.registers.contains(where: { $0.index == register.index }) { state.registers.append(register) }
        }
        return { [self] in
            if index == 0 { accelerator.forgetFailure() }
            if changesRate, let error = setTSCFrequency(frequency) { return accelerator.note(failure: error) }
            var state = state
            // After a reboot the counter goes on from where it was, by as much as the guest's other clocks do.
            if !sameBoot, let offset = state.tscOffset {
                let passed = accelerator.ticks(of: accelerator.clock.gap, kilohertz: frequency)
                state.tscOffset = offset &+ hostTSC &+ passed &- accelerator.loadTSC(hostTSC)
            }
            if let error = set(state) { accelerator.note(failure: error) }
            takePlace()
            guard thread != nil else { return }
            do throws(VMMError) { try place.take(threadID) } catch { accelerator.note(failure: error) }
        }
    }

    // MARK: Checks

    private func checkCPUID(_ reader: StateReader) throws(VMMError) {
        let words = try reader.array("cpuid", count: 0...(7 * 1024))
        guard words.count % 7 == 0, words.allSatisfy({ $0 <= UInt64(UInt32.max) }) else {
            throw VMMError("field 'cpuid' of section '\(reader.section)' is damaged")
        }
        let saved = stride(from: 0, to: words.count, by: 7).map { place in
            let words = words[place..<place + 7].map { UInt32($0) }
            return CPUIDEntry(
                function: words[0], index: words[1], hasIndex: words[2] != 0, eax: words[3], ebx: words[4],
                ecx: words[5], edx: words[6])
        }
        if let difference = CPUIDTable.difference(saved, cpuid) {
            throw VMMError(
                "the guest's CPU \(index) is another than -cpu and -smp make here: \(difference)",
                hint: "Start with the -cpu and -smp that the guest has, on a host whose processor and kernel offer it.")
        }
    }

    /// - Returns: whether the counter's rate is to be changed.
    private func checkRate(_ frequency: UInt32, _ reader: StateReader) throws(VMMError) -> Bool {
        guard frequency != 0, tscFrequency != 0 else { return false }
        let difference = UInt64(max(frequency, tscFrequency) - min(frequency, tscFrequency))
        // Calibrations differ by less than guests correct by themselves: 250 ppm, as in KVM.
        guard difference * 4000 > UInt64(tscFrequency) else { return false }
        guard system.hasTSCControl else {
            throw VMMError(
                "the guest's time-stamp counter runs at \(frequency) kHz, that of this host at \(tscFrequency) kHz",
                hint: "This host's KVM cannot change the rate (KVM_CAP_TSC_CONTROL).")
        }
        return true
    }

    private func check(_ state: CPUState, _ reader: StateReader) throws(VMMError) {
        func wrong(_ field: String, _ what: String) -> VMMError {
            VMMError("field '\(field)' of section '\(reader.section)' \(what)")
        }
        guard state.xsave.count == xsaveSize else {
            throw wrong("xsave", "has \(state.xsave.count) bytes, not the \(xsaveSize) of this host")
        }
        for (number, value) in state.xcrs {
            let allowed = extendedComponents
            // x87 always; AVX with SSE.
            guard number == 0, value & 1 != 0, value & ~allowed == 0, value & 6 != 4 else {
                throw wrong("xcrs", "has \(Hex(value)) in XCR\(number), of the components \(Hex(allowed))")
            }
        }
        let header = state.xsave[512..<576]
        let present = header.prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard present & ~(extendedComponents | 3) == 0, header.dropFirst(16).allSatisfy({ $0 == 0 }) else {
            throw wrong("xsave", "has components that this CPU does not have")
        }
        guard state.xsave[26] == 0, state.xsave[27] == 0 else { throw wrong("xsave", "has reserved bits in MXCSR") }
        for (number, _) in state.registers where !stateRegisters.contains(number) {
            throw wrong("msrs", "has MSR \(Hex(UInt64(number))), which this host's KVM does not keep")
        }
        guard (state.tscOffset != nil) == hasTSCOffset else {
            throw wrong("tsc-offset", "is \(hasTSCOffset ? "missing" : "there, and this host's KVM has none")")
        }
        // Bits 0 to 7 and 9 are reserved; the x2APIC (bit 10) is one that is enabled (bit 11).
        guard state.sregs.apic_base & 0x2ff == 0,
            state.sregs.apic_base & 1 << 11 != 0 || state.sregs.apic_base & 1 << 10 == 0
        else { throw wrong("apic-base", "is impossible") }
    }

    /// What CPUID allows in XCR0.
    private var extendedComponents: UInt64 {
        guard let leaf = cpuid.first(where: { $0.function == 0xd && $0.index == 0 }) else { return 1 }
        return UInt64(leaf.edx) << 32 | UInt64(leaf.eax)
    }
}
