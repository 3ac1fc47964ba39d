import BatonRuntime
import CKVM

/// A CPU's state as fields of a section.
extension CPUState {
    private static let generalNames = [
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "rip", "rflags",
    ]
    private static let segmentNames = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"]
    private static let controlNames = ["cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic-base"]

    // MARK: Saving

    func save(to writer: inout StateWriter) {
        writer.put("mp-state", UInt64(mpState))
        let general = [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, regs.rbp, regs.r8, regs.r9, regs.r10,
            regs.r11, regs.r12, regs.r13, regs.r14, regs.r15, regs.rip, regs.rflags,
        ]
        for (name, value) in zip(CPUState.generalNames, general) { writer.put(name, value) }
        let segments = [sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.tr, sregs.ldt]
        for (name, segment) in zip(CPUState.segmentNames, segments) {
            writer.put(
                name,
                [
                    segment.base, UInt64(segment.limit), UInt64(segment.selector), segment.attributes,
                    UInt64(segment.unusable),
                ])
        }
        writer.put("gdt", [sregs.gdt.base, UInt64(sregs.gdt.limit)])
        writer.put("idt", [sregs.idt.base, UInt64(sregs.idt.limit)])
        let control = [sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer, sregs.apic_base]
        for (name, value) in zip(CPUState.controlNames, control) { writer.put(name, value) }
        // Only there when the processor has them loaded.
        let pdptrs = sregs.pdptrs
        writer.put("pdptrs", sregs.flags & 1 != 0 ? [pdptrs.0, pdptrs.1, pdptrs.2, pdptrs.3] : [])
        writer.put("xcrs", xcrs.flatMap { [UInt64($0.number), $0.value] })
        writer.put("xsave", bytes: xsave)
        writer.put("msrs", registers.flatMap { [UInt64($0.index), $0.value] })
        writer.put("debug", [debug.db.0, debug.db.1, debug.db.2, debug.db.3, debug.dr6, debug.dr7, debug.flags])
        writer.put("lapic", bytes: lapic)
        saveEvents(to: &writer)
        if let tscOffset { writer.put("tsc-offset", tscOffset) }
    }

    private func saveEvents(to writer: inout StateWriter) {
        let (exception, interrupt) = (events.exception, events.interrupt)
        let payload = events.exception_payload
        writer.put(
            "exception",
            [
                UInt64(exception.injected), UInt64(exception.nr), UInt64(exception.has_error_code),
                UInt64(exception.pending), UInt64(exception.error_code), UInt64(events.exception_has_payload), payload,
            ])
        writer.put(
            "interrupt",
            [UInt64(interrupt.injected), UInt64(interrupt.nr), UInt64(interrupt.soft), UInt64(interrupt.shadow)])
        writer.put("nmi", [UInt64(events.nmi.injected), UInt64(events.nmi.pending), UInt64(events.nmi.masked)])
        writer.put("sipi-vector", UInt64(events.sipi_vector))
        writer.put(
            "smi",
            [
                UInt64(events.smi.smm), UInt64(events.smi.pending), UInt64(events.smi.smm_inside_nmi),
                UInt64(events.smi.latched_init),
            ])
        writer.put("triple-fault", UInt64(events.triple_fault.pending))
        writer.put("event-flags", UInt64(events.flags))
    }

    // MARK: Reading

    /// Reads and checks what can be checked without the kernel.
    init(_ reader: StateReader) throws(VMMError) {
        mpState = UInt32(try reader.unsigned("mp-state", in: 0...UInt64(KVM_MP_STATE_SIPI_RECEIVED)))
        var general: [UInt64] = []
        for name in CPUState.generalNames { general.append(try reader.unsigned(name)) }
        setGeneral(general)
        var segments: [kvm_segment] = []
        for name in CPUState.segmentNames { segments.append(try CPUState.segment(reader, name)) }
        (sregs.cs, sregs.ds, sregs.es, sregs.fs) = (segments[0], segments[1], segments[2], segments[3])
        (sregs.gs, sregs.ss, sregs.tr, sregs.ldt) = (segments[4], segments[5], segments[6], segments[7])
        sregs.gdt = try CPUState.table(reader, "gdt")
        sregs.idt = try CPUState.table(reader, "idt")
        var control: [UInt64] = []
        for name in CPUState.controlNames { control.append(try reader.unsigned(name)) }
        (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) = (control[0], control[1], control[2], control[3])
        (sregs.cr8, sregs.efer, sregs.apic_base) = (control[4], control[5], control[6])
        let pdptrs = try reader.array("pdptrs", count: 0...4)
        guard pdptrs.isEmpty || pdptrs.count == 4 else { throw CPUState.wrong(reader, "pdptrs", "is not four words") }
        if pdptrs.count == 4 {
            sregs.flags = 1
            sregs.pdptrs = (pdptrs[0], pdptrs[1], pdptrs[2], pdptrs[3])
        }
        xcrs = try CPUState.pairs(reader, "xcrs", count: Int(KVM_MAX_XCRS))
        xsave = try reader.bytes("xsave", count: 4096...(1 << 20))
        registers = try CPUState.pairs(reader, "msrs", count: 4096)
        let debug = try reader.array("debug", count: 7...7)
        guard debug[4] >> 32 == 0, debug[5] >> 32 == 0, debug[6] == 0 else {
            throw CPUState.wrong(reader, "debug", "has reserved bits set")
        }
        self.debug.db = (debug[0], debug[1], debug[2], debug[3])
        (self.debug.dr6, self.debug.dr7) = (debug[4], debug[5])
        lapic = try reader.bytes("lapic", count: CPUState.lapicSize...CPUState.lapicSize)
        try readEvents(reader)
        if reader.has("tsc-offset") { tscOffset = try reader.unsigned("tsc-offset") }
        try checkSystemRegisters(reader)
    }

    private static func wrong(_ reader: StateReader, _ field: String, _ what: String) -> VMMError {
        VMMError("field '\(field)' of section '\(reader.section)' \(what)")
    }

    private mutating func setGeneral(_ values: [UInt64]) {
        (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (values[0], values[1], values[2], values[3])
        (regs.rsi, regs.rdi, regs.rsp, regs.rbp) = (values[4], values[5], values[6], values[7])
        (regs.r8, regs.r9, regs.r10, regs.r11) = (values[8], values[9], values[10], values[11])
        (regs.r12, regs.r13, regs.r14, regs.r15) = (values[12], values[13], values[14], values[15])
        (regs.rip, regs.rflags) = (values[16], values[17])
    }

    private static func segment(_ reader: StateReader, _ name: String) throws(VMMError) -> kvm_segment {
        let words = try reader.array(name, count: 5...5)
        let attributes = words[3]
        guard let limit = UInt32(exactly: words[1]), let selector = UInt16(exactly: words[2]),
            attributes & ~0xf0_ff00 == 0, words[4] <= 1
        else { throw wrong(reader, name, "is no segment") }
        func bits(_ shift: UInt64, _ mask: UInt64 = 1) -> UInt8 { UInt8(attributes >> shift & mask) }
        var segment = kvm_segment()
        (segment.base, segment.limit, segment.selector) = (words[0], limit, selector)
        (segment.type, segment.s, segment.dpl, segment.present) = (bits(8, 15), bits(12), bits(13, 3), bits(15))
        (segment.avl, segment.l, segment.db, segment.g) = (bits(20), bits(21), bits(22), bits(23))
        segment.unusable = UInt8(words[4])
        return segment
    }

    private static func table(_ reader: StateReader, _ name: String) throws(VMMError) -> kvm_dtable {
        let words = try reader.array(name, count: 2...2)
        guard let limit = UInt16(exactly: words[1]) else { throw wrong(reader, name, "has a limit above 65535") }
        var table = kvm_dtable()
        (table.base, table.limit) = (words[0], limit)
        return table
    }

    /// Numbers and values, no number twice.
    private static func pairs(_ reader: StateReader, _ name: String, count: Int) throws(VMMError) -> [(UInt32, UInt64)]
    {
        let words = try reader.array(name, count: 0...(2 * count))
        guard words.count % 2 == 0 else { throw wrong(reader, name, "has a number without a value") }
        var result: [(UInt32, UInt64)] = []
        var seen: Set<UInt32> = []
        for place in stride(from: 0, to: words.count, by: 2) {
            guard let number = UInt32(exactly: words[place]), seen.insert(number).inserted else {
                throw wrong(reader, name, "has the number \(Hex(words[place])) twice, or it is none")
            }
            result.append((number, words[place + 1]))
        }
        return result
    }

    private mutating func readEvents(_ reader: StateReader) throws(VMMError) {
        func bytes(_ name: String, _ count: Int) throws(VMMError) -> [UInt8] {
            let words = try reader.array(name, count: count...count)
            guard words.allSatisfy({ $0 <= 255 }) else { throw CPUState.wrong(reader, name, "is out of range") }
            return words.map { UInt8($0) }
        }
        let exception = try reader.array("exception", count: 7...7)
        guard exception[0] <= 1, exception[1] <= 31, exception[2] <= 1, exception[3] <= 1,
            let code = UInt32(exactly: exception[4]), exception[5] <= 1
        else { throw CPUState.wrong(reader, "exception", "is out of range") }
        (events.exception.injected, events.exception.nr) = (UInt8(exception[0]), UInt8(exception[1]))
        (events.exception.has_error_code, events.exception.pending) = (UInt8(exception[2]), UInt8(exception[3]))
        events.exception.error_code = code
        (events.exception_has_payload, events.exception_payload) = (UInt8(exception[5]), exception[6])
        let interrupt = try bytes("interrupt", 4)
        guard interrupt[0] <= 1, interrupt[2] <= 1, interrupt[3] <= 3 else {
            throw CPUState.wrong(reader, "interrupt", "is out of range")
        }
        (events.interrupt.injected, events.interrupt.nr) = (interrupt[0], interrupt[1])
        (events.interrupt.soft, events.interrupt.shadow) = (interrupt[2], interrupt[3])
        let nmi = try bytes("nmi", 3)
        (events.nmi.injected, events.nmi.pending, events.nmi.masked) = (nmi[0], nmi[1], nmi[2])
        events.sipi_vector = UInt32(try reader.unsigned("sipi-vector", in: 0...255))
        let smi = try bytes("smi", 4)
        guard (nmi + smi).allSatisfy({ $0 <= 1 }) else { throw CPUState.wrong(reader, "nmi", "is out of range") }
        (events.smi.smm, events.smi.pending) = (smi[0], smi[1])
        (events.smi.smm_inside_nmi, events.smi.latched_init) = (smi[2], smi[3])
        events.triple_fault.pending = UInt8(try reader.unsigned("triple-fault", in: 0...1))
        // KVM_VCPUEVENT_VALID_…: from NMI_PENDING to TRIPLE_FAULT.
        events.flags = UInt32(try reader.unsigned("event-flags", in: 0...0x3f))
    }

    /// What no processor can be in (Intel SDM 3A, 2.5; AMD APM 2, 3.1).
    private func checkSystemRegisters(_ reader: StateReader) throws(VMMError) {
        let (cr0, cr4, efer) = (sregs.cr0, sregs.cr4, sregs.efer)
        let (hasPaging, isProtected) = (cr0 & 1 << 31 != 0, cr0 & 1 != 0)
        let (enabled, active) = (efer & 1 << 8 != 0, efer & 1 << 10 != 0)
        guard cr0 >> 32 == 0, isProtected || !hasPaging else { throw CPUState.wrong(reader, "cr0", "is impossible") }
        guard sregs.cr8 <= 15 else { throw CPUState.wrong(reader, "cr8", "is above 15") }
        guard active == (enabled && hasPaging), !active || cr4 & 1 << 5 != 0 else {
            throw CPUState.wrong(reader, "efer", "is impossible with these control registers")
        }
        guard regs.rflags & 2 != 0, regs.rflags & ~0x3f_7fd7 == 0 else {
            throw CPUState.wrong(reader, "rflags", "has reserved bits")
        }
    }
}
