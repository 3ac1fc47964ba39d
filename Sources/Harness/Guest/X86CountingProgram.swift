/// The guest for x86-64 machines with QEMU's `microvm` layout. It runs in long mode, and starts by PVH
/// (`-kernel` with an ELF file). A second CPU is started and halts.
enum X86CountingProgram: GuestProgram {
    static let page: UInt64 = 0x40_0000
    /// A KVM that is emulated may carry out less than a million instructions in a second, and takes some tens of
    /// milliseconds for a line.
    static let stepsPerLine: UInt64 = 1 << 10
    static let filled: Range<UInt64> = 0x60_0000..<0x70_0000
    private static let stack: UInt64 = 0x30_0000

    /// Where fields are on the page, as displacements.
    enum Field {
        static let counter: Int32 = 8
        static let checksums: Int32 = 16
        static let finding: Int32 = 32
        static let lines: Int32 = 40
        /// The time-stamp counter when it was last looked at.
        static let time: Int32 = 48
        /// Timer interrupts that came: one for each line.
        static let ticks: Int32 = 56
        /// Interrupts of the serial port that came.
        static let received: Int32 = 64
        /// How many those were before the port was last seen empty.
        static let expected: Int32 = 72
        /// Not 0 when something has been echoed since then.
        static let echoed: Int32 = 80
        static let vector: Int32 = 0x80
        /// What the XMM registers are set from.
        static let vectors: Int32 = 0x100
    }

    // R12 count, R13 checksum, R14 and R15 the sequence's constants, RBP lines, RBX the page; RAX, RCX and RDX are free
    // everywhere. The others keep patterns, except RSP.
    static let kept: [X86Assembler.Register] = [.rsi, .rdi, .r8, .r9, .r10, .r11]

    enum Vector {
        static let timer: UInt8 = 0x40
        static let serial: UInt8 = 0x41
    }

    /// What the parts of the program call.
    struct Labels {
        /// Sends AL.
        var transmit: X86Assembler.Label
        /// Sends RAX as 16 digits.
        var hex: X86Assembler.Label
        /// Notes the finding in RCX, and stops for good.
        var failure: X86Assembler.Label
    }

    static func image() -> [UInt8] {
        var code = X86Assembler(at: X86Image.entry)
        X86Image.enterLongMode(&code)
        let labels = Labels(transmit: code.label(), hex: code.label(), failure: code.label())
        prepare(&code)
        prepareRegisters(&code)
        prepareDevices(&code)
        startOthers(&code)
        code.constant(.rax, Counting.magic)
        code.store(.quadword, .rax, .rbx)
        code.enableInterrupts()
        let outer = code.here()
        count(&code, labels)
        echo(&code, labels)
        check(&code, labels)
        line(&code, labels)
        sleep(&code)
        code.jump(to: outer)
        let (timer, serial, exception) = (code.label(), code.label(), code.label())
        subroutines(&code, labels)
        handler(&code, timer, counting: Field.ticks)
        handler(&code, serial, counting: Field.received)
        code.place(exception)
        code.constant(.rbx, page)
        code.constant(.rcx, Finding.exception.rawValue)
        code.jump(to: labels.failure)
        return X86Image.file(code.assembled()) { vector in
            switch vector {
            case Vector.timer: code.address(of: timer)
            case Vector.serial: code.address(of: serial)
            default: code.address(of: exception)
            }
        }
    }

    private static func prepare(_ code: inout X86Assembler) {
        code.constant(.rax, X86Image.data)
        for segment: UInt8 in [0xd8, 0xc0, 0xd0, 0xe0, 0xe8] { code.raw(0x8e, segment) }  // DS, ES, SS, FS, GS
        code.constant(.rsp, stack)
        code.constant(.rax, X86Image.idtPointer)
        code.loadInterruptTable(.rax)
        code.constant(.rbx, page)
        code.constant(.r14, Counting.multiplier)
        code.constant(.r15, Counting.increment)
        for register in [X86Assembler.Register.r12, .r13, .rbp] { code.constant(register, 0) }
        for field in stride(from: Field.counter, through: Field.echoed, by: 8) {
            code.store(.quadword, .r12, .rbx, field)
        }
        // RAM that is only there to stay as it is: some of each page.
        code.constant(.rcx, filled.lowerBound)
        code.constant(.rdx, filled.upperBound)
        code.move(.rax, .r15)
        let fill = code.here()
        code.multiply(.rax, .r14)
        code.operate(.add, .rax, .r15)
        code.store(.quadword, .rax, .rcx)
        code.operate(.add, .rcx, 512)
        code.operate(.cmp, .rcx, .rdx)
        code.branch(.below, to: fill)
    }

    private static func count(_ code: inout X86Assembler, _ labels: Labels) {
        code.constant(.rdx, stepsPerLine)
        code.constant(.rcx, Finding.counter.rawValue)
        let step = code.here()
        code.load(.quadword, .rax, .rbx, Field.counter)
        code.operate(.cmp, .rax, .r12)
        code.branch(.notEqual, to: labels.failure)
        code.operate(.add, .r12, 1)
        code.multiply(.r13, .r14)
        code.operate(.add, .r13, .r15)
        code.move(.rax, .r12)
        code.operate(.and, .rax, 1)
        code.shiftLeft(.rax, 3)
        code.operate(.add, .rax, .rbx)
        code.store(.quadword, .r13, .rax, Field.checksums)
        code.store(.quadword, .r12, .rbx, Field.counter)
        code.operate(.sub, .rdx, 1)
        code.branch(.notEqual, to: step)
    }

    /// For what was received there was an interrupt: before it was read, and since the port was seen empty.
    private static func echo(_ code: inout X86Assembler, _ labels: Labels) {
        let (done, nothing) = (code.label(), code.label())
        let again = code.here()
        code.load(.quadword, .rcx, .rbx, Field.received)
        code.constant(.rdx, X86Devices.serial + 5)
        code.inByte()
        code.operate(.and, .rax, 1)
        code.branch(.equal, to: done)
        code.constant(.rdx, X86Devices.serial)
        code.inByte()
        code.call(labels.transmit)
        code.store(.quadword, .rbx, .rbx, Field.echoed)
        code.jump(to: again)
        code.place(done)
        code.load(.quadword, .rax, .rbx, Field.echoed)
        code.operate(.cmp, .rax, 0)
        code.branch(.equal, to: nothing)
        code.load(.quadword, .rax, .rbx, Field.received)
        code.load(.quadword, .rdx, .rbx, Field.expected)
        code.operate(.cmp, .rax, .rdx)
        fail(&code, unless: .above, .interruptController, labels)
        code.constant(.rax, 0)
        code.store(.quadword, .rax, .rbx, Field.echoed)
        code.place(nothing)
        code.store(.quadword, .rcx, .rbx, Field.expected)
    }

    /// `count=%016x line=%016x\r\n`.
    private static func line(_ code: inout X86Assembler, _ labels: Labels) {
        code.operate(.add, .rbp, 1)
        text(&code, "count=", labels)
        code.move(.rax, .r12)
        code.call(labels.hex)
        text(&code, " line=", labels)
        code.move(.rax, .rbp)
        code.call(labels.hex)
        text(&code, "\r\n", labels)
        code.store(.quadword, .rbp, .rbx, Field.lines)
    }

    private static func text(_ code: inout X86Assembler, _ text: String, _ labels: Labels) {
        for byte in text.utf8 {
            code.constant(.rax, UInt64(byte))
            code.call(labels.transmit)
        }
    }

    /// Until there was a timer interrupt for each line.
    private static func sleep(_ code: inout X86Assembler) {
        code.constant(.rcx, X86Devices.localAPIC)
        code.constant(.rax, X86Devices.sleep)
        code.store(.doubleword, .rax, .rcx, X86Devices.LocalAPIC.initialCount)
        let done = code.label()
        let wait = code.here()
        code.disableInterrupts()
        code.load(.quadword, .rax, .rbx, Field.ticks)
        code.operate(.cmp, .rax, .rbp)
        code.branch(.aboveOrEqual, to: done)
        code.enableInterrupts()
        code.halt()
        code.jump(to: wait)
        code.place(done)
        code.enableInterrupts()
    }

    // MARK: Subroutines

    private static func subroutines(_ code: inout X86Assembler, _ labels: Labels) {
        code.place(labels.transmit)
        code.move(.rcx, .rax)
        code.constant(.rdx, X86Devices.serial + 5)
        let full = code.here()
        code.inByte()
        code.operate(.and, .rax, 0x20)
        code.branch(.equal, to: full)
        code.constant(.rdx, X86Devices.serial)
        code.move(.rax, .rcx)
        code.outByte()
        code.ret()

        code.place(labels.hex)
        code.constant(.rcx, 16)
        let digit = code.here()
        code.push(.rax)
        code.push(.rcx)
        code.shiftRight(.rax, 60)
        code.operate(.add, .rax, 0x30)
        let decimal = code.label()
        code.operate(.cmp, .rax, 0x3a)
        code.branch(.below, to: decimal)
        code.operate(.add, .rax, 0x27)
        code.place(decimal)
        code.call(labels.transmit)
        code.pop(.rcx)
        code.pop(.rax)
        code.shiftLeft(.rax, 4)
        code.operate(.sub, .rcx, 1)
        code.branch(.notEqual, to: digit)
        code.ret()

        code.place(labels.failure)
        code.store(.quadword, .rcx, .rbx, Field.finding)
        let park = code.here()
        code.disableInterrupts()
        code.halt()
        code.jump(to: park)
    }

    /// An interrupt handler, which counts.
    private static func handler(_ code: inout X86Assembler, _ label: X86Assembler.Label, counting field: Int32) {
        code.place(label)
        code.push(.rax)
        code.push(.rcx)
        code.load(.quadword, .rax, .rbx, field)
        code.operate(.add, .rax, 1)
        code.store(.quadword, .rax, .rbx, field)
        code.constant(.rax, 0)
        code.constant(.rcx, X86Devices.localAPIC)
        code.store(.doubleword, .rax, .rcx, X86Devices.LocalAPIC.endOfInterrupt)
        code.pop(.rcx)
        code.pop(.rax)
        code.returnFromInterrupt()
    }
}
