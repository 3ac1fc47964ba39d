import CKVM

/// Registers as text, in QEMU's format.
extension KVMVirtualCPU {
    private static func hex(_ value: UInt64, _ digits: Int) -> String {
        let text = String(value, radix: 16)
        return String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
    }

    private static let generalNames = [
        "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15",
    ]

    /// Of a CPU that does not run.
    var registersText: String {
        guard let state = try? getState() else { return "(the registers cannot be read)\n" }
        let (regs, sregs, debug) = (state.regs, state.sregs, state.debug)
        let hex = KVMVirtualCPU.hex
        let values = [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9, regs.r10,
            regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ]
        var text = ""
        for (place, name) in KVMVirtualCPU.generalNames.enumerated() {
            text += "\(name)=\(hex(values[place], 16))" + (place % 4 == 3 ? "\n" : " ")
        }
        let flags: [(Character, UInt64)] = [("D", 10), ("O", 11), ("S", 7), ("Z", 6), ("A", 4), ("P", 2), ("C", 0)]
        let flagText = String(flags.map { regs.rflags >> $0.1 & 1 != 0 ? $0.0 : "-" })
        text += "RIP=\(hex(regs.rip, 16)) RFL=\(hex(regs.rflags, 8)) [\(flagText)] CPL=\(sregs.ss.dpl) "
        text += "II=\(state.events.interrupt.shadow != 0 ? 1 : 0) A20=1 SMM=\(state.events.smi.smm) "
        text += "HLT=\(state.isHalted ? 1 : 0)\n"
        let segments = [
            ("ES", sregs.es), ("CS", sregs.cs), ("SS", sregs.ss), ("DS", sregs.ds), ("FS", sregs.fs), ("GS", sregs.gs),
            ("LDT", sregs.ldt), ("TR", sregs.tr),
        ]
        for (name, segment) in segments { text += KVMVirtualCPU.text(name, segment) }
        text += "GDT=     \(hex(sregs.gdt.base, 16)) \(hex(UInt64(sregs.gdt.limit), 8))\n"
        text += "IDT=     \(hex(sregs.idt.base, 16)) \(hex(UInt64(sregs.idt.limit), 8))\n"
        text += "CR0=\(hex(sregs.cr0, 8)) CR2=\(hex(sregs.cr2, 16)) "
        text += "CR3=\(hex(sregs.cr3, 16)) CR4=\(hex(sregs.cr4, 8))\n"
        text += "DR0=\(hex(debug.db.0, 16)) DR1=\(hex(debug.db.1, 16)) "
        text += "DR2=\(hex(debug.db.2, 16)) DR3=\(hex(debug.db.3, 16)) \n"
        text += "DR6=\(hex(debug.dr6, 16)) DR7=\(hex(debug.dr7, 16))\n"
        return text + "EFER=\(hex(sregs.efer, 16))\n"
    }

    private static func text(_ name: String, _ segment: kvm_segment) -> String {
        let padded = name + String(repeating: " ", count: 3 - name.utf8.count)
        let attributes = segment.attributes
        var text =
            "\(padded)=\(hex(UInt64(segment.selector), 4)) \(hex(segment.base, 16)) "
            + "\(hex(UInt64(segment.limit), 8)) \(hex(attributes, 8))"
        guard segment.present != 0, segment.unusable == 0 else { return text + "\n" }
        text += " DPL=\(segment.dpl) "
        let type = segment.type
        if segment.s == 0 {
            text += type & 0xd == 9 ? "TSS64-\(type & 2 != 0 ? "busy" : "avl")" : type == 2 ? "LDT" : "Reserved"
        } else if type & 8 != 0 {
            text += segment.l != 0 ? "CS64" : segment.db != 0 ? "CS32" : "CS16"
            text += " [\(type & 4 != 0 ? "C" : "-")\(type & 2 != 0 ? "R" : "-")\(type & 1 != 0 ? "A" : "-")]"
        } else {
            text += segment.db != 0 ? "DS  " : "DS16"
            text += " [\(type & 4 != 0 ? "E" : "-")\(type & 2 != 0 ? "W" : "-")\(type & 1 != 0 ? "A" : "-")]"
        }
        return text + "\n"
    }
}

extension kvm_segment {
    /// The bits of a descriptor's second word that are no address or limit.
    var attributes: UInt64 {
        UInt64(type) << 8 | UInt64(s) << 12 | UInt64(dpl) << 13 | UInt64(present) << 15 | UInt64(avl) << 20
            | UInt64(l) << 21 | UInt64(db) << 22 | UInt64(g) << 23
    }
}
