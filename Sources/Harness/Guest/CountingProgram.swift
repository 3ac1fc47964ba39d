/// The guest for the riscv64 board `virt`. It runs in M-mode from the start of RAM (`-bios none -kernel`).
enum CountingProgram: GuestProgram {
    static let page: UInt64 = 0x8040_0000
    static let stepsPerLine: UInt64 = 1 << 16
    static let filled: Range<UInt64> = 0x8060_0000..<0x8070_0000
    /// Ticks of 10 MHz that it sleeps: 4 ms.
    private static let sleep: UInt64 = 40_000

    private static let uart: UInt64 = 0x1000_0000
    private static let virtio: UInt64 = 0x1000_1000
    private static let timer: UInt64 = 0x0200_4000
    private static let clock: UInt64 = 0x0200_bff8
    private static let priority: UInt64 = 0x0c00_0000 + 4 * 3
    /// Configuration space of bus 0.
    private static let pci: UInt64 = 0x3000_0000
    private static let scratch = 0x5a
    private static let controlPattern: UInt64 = 0x0bad_cafe_1234_5678
    private static let kept: [Assembler.Register] = [.gp, .tp, .s2, .s3, .s4, .s5, .s6, .s7, .s8, .s9, .s10, .s11]

    // a0 count, a1 checksum, a2 and a3 the sequence's constants, a4 lines, a6
    // the time last seen, s0 the page, s1 the UART; t* are free everywhere.

    /// The flat image.
    static func image() -> [UInt8] {
        var code = Assembler()
        let park = code.label()
        let main = code.label()
        code.csrRead(.t0, .mhartid)
        code.branch(.beq, .t0, .zero, to: main)
        code.place(park)
        code.wfi()
        code.jump(to: park)
        code.place(main)
        prepare(&code)
        let outer = code.here()
        count(&code)
        echo(&code)
        check(&code, failure: park)
        answerButtons(&code)
        line(&code)
        sleep(&code)
        code.jump(to: outer)
        return code.assembled()
    }

    private static func prepare(_ code: inout Assembler) {
        code.constant(.s0, page)
        code.constant(.s1, uart)
        code.constant(.a2, Counting.multiplier)
        code.constant(.a3, Counting.increment)
        for register in [Assembler.Register.a0, .a1, .a4, .a6] { code.move(register, .zero) }
        for offset in [8, 16, 24, 32, 40] { code.store(.sd, .zero, offset, .s0) }
        // RAM that is only there to stay as it is.
        code.constant(.t0, filled.lowerBound)
        code.constant(.t1, filled.upperBound)
        code.move(.t2, .a3)
        let fill = code.here()
        code.operate(.mul, .t2, .t2, .a2)
        code.operate(.add, .t2, .t2, .a3)
        code.store(.sd, .t2, 0, .t0)
        code.addi(.t0, .t0, 8)
        code.branch(.bltu, .t0, .t1, to: fill)
        // Registers.
        for (index, register) in kept.enumerated() { code.constant(register, Counting.pattern(index)) }
        code.constant(.t0, 0x2000)  // mstatus.FS
        code.csrSet(.mstatus, .t0)
        for float in 0..<UInt32(32) {
            code.constant(.t0, Counting.pattern(100 + Int(float)))
            code.moveToFloat(float, .t0)
        }
        code.constant(.t0, controlPattern)
        code.csrWrite(.mscratch, .t0)
        code.csrWrite(.mepc, .t0)
        code.constant(.t0, 0x80)  // the timer wakes; mstatus.MIE is clear, so nothing traps
        code.csrWrite(.mie, .t0)
        // Devices.
        code.constant(.t0, UInt64(scratch))
        code.store(.sb, .t0, 7, .s1)
        code.constant(.t0, 1)
        code.store(.sb, .t0, 2, .s1)  // FIFOs
        code.constant(.t1, priority)
        code.constant(.t0, 5)
        code.store(.sw, .t0, 0, .t1)
        code.constant(.t0, 3)  // ACKNOWLEDGE, DRIVER
        code.constant(.t1, virtio)
        code.constant(.t2, virtio + 8 * 0x1000)
        code.constant(.t4, 0x1000)
        let next = code.label()
        let slot = code.here()
        code.load(.lw, .t3, 8, .t1)
        code.branch(.beq, .t3, .zero, to: next)
        code.store(.sw, .t0, 0x70, .t1)
        code.place(next)
        code.operate(.add, .t1, .t1, .t4)
        code.branch(.bltu, .t1, .t2, to: slot)
        code.constant(.t0, Counting.magic)
        code.store(.sd, .t0, 0, .s0)
    }

    private static func count(_ code: inout Assembler) {
        code.constant(.t0, stepsPerLine)
        code.constant(.t6, Finding.counter.rawValue)
        let step = code.here()
        code.load(.ld, .t1, 8, .s0)
        let fine = code.label()
        code.branch(.beq, .t1, .a0, to: fine)
        code.store(.sd, .t6, 32, .s0)
        code.place(fine)
        code.addi(.a0, .a0, 1)
        code.operate(.mul, .a1, .a1, .a2)
        code.operate(.add, .a1, .a1, .a3)
        code.andi(.t1, .a0, 1)
        code.slli(.t1, .t1, 3)
        code.operate(.add, .t1, .t1, .s0)
        code.store(.sd, .a1, 16, .t1)
        code.store(.sd, .a0, 8, .s0)
        code.addi(.t0, .t0, -1)
        code.branch(.bne, .t0, .zero, to: step)
    }

    private static func echo(_ code: inout Assembler) {
        let done = code.label()
        let again = code.here()
        code.load(.lbu, .t1, 5, .s1)
        code.andi(.t1, .t1, 1)
        code.branch(.beq, .t1, .zero, to: done)
        code.load(.lbu, .t2, 0, .s1)
        transmit(&code, .t2)
        code.jump(to: again)
        code.place(done)
    }

    /// Waits until the UART takes a byte; changes t1.
    private static func transmit(_ code: inout Assembler, _ byte: Assembler.Register) {
        let full = code.here()
        code.load(.lbu, .t1, 5, .s1)
        code.andi(.t1, .t1, 0x20)
        code.branch(.beq, .t1, .zero, to: full)
        code.store(.sb, byte, 0, .s1)
    }

    /// Compares what must not have changed, and stops for good where it has.
    private static func check(_ code: inout Assembler, failure park: Assembler.Label) {
        func compare(_ finding: Finding, _ expected: Assembler.Register, _ found: Assembler.Register) {
            let fine = code.label()
            code.branch(.beq, expected, found, to: fine)
            code.constant(.t0, finding.rawValue)
            code.store(.sd, .t0, 32, .s0)
            code.jump(to: park)
            code.place(fine)
        }
        code.load(.ld, .t1, 32, .s0)
        let nothing = code.label()
        code.branch(.beq, .t1, .zero, to: nothing)
        code.jump(to: park)
        code.place(nothing)
        for (index, register) in kept.enumerated() {
            code.constant(.t1, Counting.pattern(index))
            compare(.registers, .t1, register)
        }
        for float in 0..<UInt32(32) {
            code.constant(.t1, Counting.pattern(100 + Int(float)))
            code.moveFromFloat(.t2, float)
            compare(.floatRegisters, .t1, .t2)
        }
        code.constant(.t1, controlPattern)
        code.csrRead(.t2, .mscratch)
        compare(.controlRegisters, .t1, .t2)
        code.csrRead(.t2, .mepc)
        compare(.controlRegisters, .t1, .t2)
        code.constant(.t1, clock)
        code.load(.ld, .t2, 0, .t1)
        let forwards = code.label()
        code.branch(.bgeu, .t2, .a6, to: forwards)
        code.constant(.t0, Finding.time.rawValue)
        code.store(.sd, .t0, 32, .s0)
        code.jump(to: park)
        code.place(forwards)
        code.move(.a6, .t2)
        code.constant(.t1, UInt64(scratch))
        code.load(.lbu, .t2, 7, .s1)
        compare(.serialPort, .t1, .t2)
        code.constant(.t2, priority)
        code.load(.lw, .t2, 0, .t2)
        code.constant(.t1, 5)
        compare(.interruptController, .t1, .t2)
        code.constant(.t3, virtio)
        code.constant(.t4, virtio + 8 * 0x1000)
        code.constant(.t5, 0x1000)
        let next = code.label()
        let slot = code.here()
        code.load(.lw, .t1, 8, .t3)
        code.branch(.beq, .t1, .zero, to: next)
        code.load(.lw, .t2, 0x70, .t3)
        code.constant(.t1, 3)
        compare(.virtio, .t1, .t2)
        code.place(next)
        code.operate(.add, .t3, .t3, .t5)
        code.branch(.bltu, .t3, .t4, to: slot)
    }

    /// Drives the slots of root ports, as far as it takes for devices to come and go: whoever presses a slot's button gets
    /// power for what is in it, or has it let go of (PCI Express 5.0, 6.7.1).
    private static func answerButtons(_ code: inout Assembler) {
        code.constant(.t1, pci)
        code.constant(.t2, pci + 32 << 15)
        code.constant(.t3, 0x000c_1b36)  // pcie-root-port
        let next = code.label()
        let device = code.here()
        code.load(.lw, .t0, 0, .t1)
        code.branch(.bne, .t0, .t3, to: next)
        // Its PCI Express capability.
        code.load(.lbu, .t4, 0x34, .t1)
        code.operate(.add, .t4, .t4, .t1)
        code.constant(.t5, 0x10)
        let express = code.label()
        let capability = code.here()
        code.load(.lbu, .t0, 0, .t4)
        code.branch(.beq, .t0, .t5, to: express)
        code.load(.lbu, .t4, 1, .t4)
        code.operate(.add, .t4, .t4, .t1)
        code.jump(to: capability)
        code.place(express)
        // The slot's status: the button, and whether there is a device.
        code.load(.lhu, .t0, 0x1a, .t4)
        code.andi(.t5, .t0, 1)
        code.branch(.beq, .t5, .zero, to: next)
        code.store(.sh, .t5, 0x1a, .t4)
        code.andi(.t5, .t0, 0x40)
        code.branch(.beq, .t5, .zero, to: next)
        // Its control: power and its indicator are off, or on.
        code.load(.lhu, .t0, 0x18, .t4)
        code.andi(.t5, .t0, 0x700)
        code.constant(.t6, 0x700)
        let (isOff, done) = (code.label(), code.label())
        code.branch(.beq, .t5, .t6, to: isOff)
        code.operate(.or, .t0, .t0, .t6)
        code.jump(to: done)
        code.place(isOff)
        code.constant(.t6, 0x600)
        code.operate(.xor, .t0, .t0, .t6)
        code.place(done)
        code.store(.sh, .t0, 0x18, .t4)
        code.place(next)
        code.constant(.t0, 1 << 15)
        code.operate(.add, .t1, .t1, .t0)
        code.branch(.bltu, .t1, .t2, to: device)
    }

    /// `count=%016x line=%016x\r\n`.
    private static func line(_ code: inout Assembler) {
        code.addi(.a4, .a4, 1)
        text(&code, "count=")
        hex(&code, .a0)
        text(&code, " line=")
        hex(&code, .a4)
        text(&code, "\r\n")
        code.store(.sd, .a4, 40, .s0)
    }

    private static func text(_ code: inout Assembler, _ text: String) {
        for byte in text.utf8 {
            code.constant(.t2, UInt64(byte))
            transmit(&code, .t2)
        }
    }

    private static func hex(_ code: inout Assembler, _ value: Assembler.Register) {
        code.move(.t3, value)
        code.constant(.t4, 16)
        let digit = code.here()
        code.srli(.t2, .t3, 60)
        code.slli(.t3, .t3, 4)
        let decimal = code.label()
        code.addi(.t5, .t2, -10)
        code.addi(.t2, .t2, 0x30)
        code.branch(.blt, .t5, .zero, to: decimal)
        code.addi(.t2, .t2, 0x27)
        code.place(decimal)
        transmit(&code, .t2)
        code.addi(.t4, .t4, -1)
        code.branch(.bne, .t4, .zero, to: digit)
    }

    private static func sleep(_ code: inout Assembler) {
        code.constant(.t1, clock)
        code.load(.ld, .t2, 0, .t1)
        code.constant(.t3, sleep)
        code.operate(.add, .t2, .t2, .t3)
        code.constant(.t1, timer)
        code.store(.sd, .t2, 0, .t1)
        let wait = code.here()
        code.wfi()
        code.csrRead(.t2, .mip)
        code.andi(.t2, .t2, 0x80)
        code.branch(.beq, .t2, .zero, to: wait)
    }
}
