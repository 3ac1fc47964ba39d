import BatonRuntime

/// A hart's part of a checkpoint. TLBs and decoded code are not in it: they
/// start empty. A reservation is lost, as on a context switch.
extension Hart {
    /// The registers that are saved as they are.
    private static let plain: [(name: String, path: WritableKeyPath<HartState, UInt64>)] = [
        ("medeleg", \.medeleg), ("mideleg", \.mideleg), ("mie", \.mie), ("mip", \.mip), ("mtvec", \.mtvec),
        ("mepc", \.mepc), ("mcause", \.mcause), ("mtval", \.mtval), ("mscratch", \.mscratch),
        ("mcounteren", \.mcounteren), ("mcountinhibit", \.mcountinhibit), ("menvcfg", \.menvcfg),
        ("senvcfg", \.senvcfg), ("stvec", \.stvec), ("sepc", \.sepc), ("scause", \.scause), ("stval", \.stval),
        ("sscratch", \.sscratch), ("scounteren", \.scounteren), ("satp", \.satp), ("stimecmp", \.stimecmp),
        ("mtimecmp", \.mtimecmp), ("instret-offset", \.instretOffset), ("cycle-offset", \.cycleOffset),
    ]

    /// Bits that may be set in a register of a checkpoint; all where not named, or by `allowedEnvironment`.
    private static let allowed: [String: UInt64] = [
        "medeleg": CSR.delegableExceptions, "mideleg": CSR.supervisorInterrupts, "mie": CSR.allInterrupts,
        "mip": CSR.allInterrupts, "mtvec": ~2, "mepc": ~1, "mcounteren": 0xffff_ffff, "mcountinhibit": 0xffff_fffd,
        "stvec": ~2, "sepc": ~1, "scounteren": 0xffff_ffff,
    ]

    /// The bits of menvcfg and senvcfg, which depend on what the hart has.
    private func allowedEnvironment(_ has: RISCVExtensions) -> [String: UInt64] {
        let timer = accelerator.sbi == nil ? 0 : EnvCfg.stce
        return ["menvcfg": EnvCfg.machine(has) | timer, "senvcfg": EnvCfg.supervisor(has)]
    }

    public func save(to writer: inout StateWriter) {
        let s = state.pointee
        accelerator.saveProcessor(to: &writer)
        writer.put("pc", s.pc)
        writer.put("mode", UInt64(s.mode))
        writer.put("x", (0..<32).map { state.x[$0] })
        writer.put("f", (0..<32).map { state.f[$0] })
        writer.put("fflags", UInt64(s.fflags))
        writer.put("frm", UInt64(s.frm))
        writer.put("mstatus", s.mstatus)
        for (name, path) in Hart.plain { writer.put(name, s[keyPath: path]) }
        writer.put("external-seip", s.externalSEIP)
        writer.put("pmpaddr", (0..<PMP.entries).map { state.pmpaddr[$0] })
        writer.put("pmpcfg", bytes: (0..<PMP.entries).map { state.pmpcfg[$0] })
        writer.put("retired", s.retired)
        writer.put("waiting", s.waiting)
        writer.put("hsm", UInt64(s.hsm.rawValue))
        writer.put("builtin-sbi", s.hasBuiltinSBI)
        saveSBI(to: &writer)
        writer.put("aia", s.hasAIA)
        if let aia {
            writer.put("aia-select", [aia.machineSelect, aia.supervisorSelect])
            writer.put("aia-machine-priorities", bytes: aia.machinePriorities)
            writer.put("aia-supervisor-priorities", bytes: aia.supervisorPriorities)
        }
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let processor = try accelerator.processorLoader(of: reader, hart: index)
        let has = processor.extensions
        let environment = allowedEnvironment(has)
        var new = state.pointee
        new.pc = try reader.unsigned("pc")
        new.mode = UInt8(truncatingIfNeeded: try reader.unsigned("mode", in: 0...3))
        let x = try reader.array("x", count: 32...32)
        let f = try reader.array("f", count: 32...32)
        new.fflags = UInt8(truncatingIfNeeded: try reader.unsigned("fflags", in: 0...31))
        new.frm = UInt8(truncatingIfNeeded: try reader.unsigned("frm", in: 0...7))
        new.mstatus = try reader.unsigned("mstatus")
        for (name, path) in Hart.plain {
            let value = try reader.unsigned(name)
            try check(reader, name, value, value & ~(environment[name] ?? Hart.allowed[name] ?? UInt64.max) == 0)
            new[keyPath: path] = value
        }
        new.externalSEIP = try reader.bool("external-seip")
        let pmpaddr = try reader.array("pmpaddr", count: PMP.entries...PMP.entries)
        let pmpcfg = try reader.bytes("pmpcfg", count: PMP.entries...PMP.entries)
        new.retiredAtEnd = try reader.unsigned("retired")
        new.waiting = try reader.bool("waiting")
        let hsm = try reader.unsigned("hsm")
        let usesSBI = try reader.bool("builtin-sbi")
        guard try reader.bool("aia") == new.hasAIA else {
            throw VMMError(
                "section '\(reader.section)' was saved \(new.hasAIA ? "without" : "with") the AIA",
                hint: "Start with the same -machine aia= as before.")
        }
        let applySBI = try loadSBI(from: reader)
        let applyAIA = try aia.map { aia throws(VMMError) in try Hart.load(aia, from: reader) }
        try reader.finish()

        try check(reader, "pc", new.pc, new.pc & 1 == 0)
        try check(reader, "mode", UInt64(new.mode), new.mode != 2)
        try check(reader, "x", x[0], x[0] == 0)
        try check(
            reader, "mstatus", new.mstatus,
            new.mstatus & ~MStatus.writable(has) == MStatus.fixed && new.mstatus & MStatus.mpp != 2 << 11)
        try check(reader, "satp", new.satp, SATPMode.isThere(new.satp >> 60, has))
        for address in pmpaddr { try check(reader, "pmpaddr", address, address & ~PMP.addressMask == 0) }
        for config in pmpcfg { try check(reader, "pmpcfg", UInt64(config), config & 0x60 == 0) }
        guard let hsmState = HSMState(rawValue: UInt8(truncatingIfNeeded: hsm)), hsm < 256 else {
            throw VMMError("field 'hsm' of section '\(reader.section)' has the invalid value \(hsm)")
        }
        guard usesSBI == (accelerator.sbi != nil) else {
            throw VMMError(
                "section '\(reader.section)' was saved \(usesSBI ? "with" : "without") the built-in SBI",
                hint: "Start with the same -bios option as before.")
        }

        return { [self] in
            applyAIA?()
            accelerator.processor = processor
            new.hsm = hsmState
            new.hasBuiltinSBI = usesSBI
            new.budget = 0
            new.withheld = 0
            new.reservation = HartState.noReservation
            new.floatReady = new.mstatus & MStatus.fs == MStatus.fs
            state.pointee = new
            applySBI()
            for index in 0..<32 {
                state.x[index] = x[index]
                state.f[index] = f[index]
            }
            for index in 0..<PMP.entries {
                state.pmpaddr[index] = pmpaddr[index]
                state.pmpcfg[index] = pmpcfg[index]
            }
            // RAM has been filled behind the back of the address space.
            state.pointee.cache.pointee.flush()
            state.updateFloatFast()
            state.updatePMP()
            state.setMode(new.mode)
            updateTimers()
        }
    }

    /// Reads and checks the state of the AIA.
    private static func load(_ aia: HartAIA, from reader: StateReader) throws(VMMError) -> () -> Void {
        let select = try reader.array("aia-select", count: 2...2)
        let machine = try reader.bytes("aia-machine-priorities", count: 64...64)
        let supervisor = try reader.bytes("aia-supervisor-priorities", count: 64...64)
        func isAllowed(_ priorities: [UInt8], _ choices: [Int]) -> Bool {
            priorities.indices.allSatisfy { priorities[$0] == 0 || choices.contains($0) }
        }
        guard select.allSatisfy({ $0 <= HartAIA.selectMask }), isAllowed(machine, HartAIA.machineChoices),
            isAllowed(supervisor, HartAIA.supervisorChoices)
        else { throw VMMError("section '\(reader.section)' has an invalid state of the AIA") }
        return {
            aia.machineSelect = select[0]
            aia.supervisorSelect = select[1]
            aia.machinePriorities = machine
            aia.supervisorPriorities = supervisor
        }
    }

    private func check(_ reader: StateReader, _ name: String, _ value: UInt64, _ valid: Bool) throws(VMMError) {
        guard valid else {
            throw VMMError("field '\(name)' of section '\(reader.section)' has the invalid value \(Hex(value))")
        }
    }
}
