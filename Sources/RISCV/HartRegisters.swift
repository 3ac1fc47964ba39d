extension Hart {
    private static let names = [
        "x0/zero", "x1/ra", "x2/sp", "x3/gp", "x4/tp", "x5/t0", "x6/t1", "x7/t2", "x8/s0", "x9/s1", "x10/a0",
        "x11/a1", "x12/a2", "x13/a3", "x14/a4", "x15/a5", "x16/a6", "x17/a7", "x18/s2", "x19/s3", "x20/s4",
        "x21/s5", "x22/s6", "x23/s7", "x24/s8", "x25/s9", "x26/s10", "x27/s11", "x28/t3", "x29/t4", "x30/t5",
        "x31/t6",
    ]

    /// Registers as text, in the layout of QEMU's `info registers`.
    var registersText: String {
        let s = state.pointee
        var text = ""
        func line(_ name: String, _ value: UInt64) {
            text += " " + padded(name, 8) + " " + hex16(value) + "\n"
        }
        line("pc", s.pc)
        line("mhartid", s.hartID)
        line("mstatus", s.mstatus | (s.mstatus & MStatus.fs == MStatus.fs ? MStatus.sd : 0))
        line("mip", s.pendingBits)
        line("mie", s.mie)
        line("mideleg", s.mideleg)
        line("medeleg", s.medeleg)
        line("mtvec", s.mtvec)
        line("stvec", s.stvec)
        line("mepc", s.mepc)
        line("sepc", s.sepc)
        line("mcause", s.mcause)
        line("scause", s.scause)
        line("mtval", s.mtval)
        line("stval", s.stval)
        line("mscratch", s.mscratch)
        line("sscratch", s.sscratch)
        line("satp", s.satp)
        for index in 0..<32 {
            text += " " + padded(Hart.names[index], 8) + " " + hex16(state.x[index])
            if index % 4 == 3 { text += "\n" }
        }
        return text
    }

    private func padded(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(0, width - text.utf8.count))
    }

    private func hex16(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.utf8.count) + digits
    }
}
