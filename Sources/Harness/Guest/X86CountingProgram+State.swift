/// Where the guest's devices are, and their registers.
enum X86Devices {
    /// A port: a 16550.
    static let serial: UInt64 = 0x3f8
    static let localAPIC: UInt64 = 0xfee0_0000
    static let ioapic: UInt64 = 0xfec0_0000
    static let virtio: (start: UInt64, count: UInt64, stride: Int32) = (0xfeb0_0000, 8, 512)
    /// Ticks of KVM's local APIC, of 1 GHz, that the guest sleeps: 4 ms.
    static let sleep: UInt64 = 4_000_000

    /// Offsets (Intel SDM volume 3, table 12-1).
    enum LocalAPIC {
        static let endOfInterrupt: Int32 = 0xb0
        static let logicalDestination: Int32 = 0xd0
        static let spurious: Int32 = 0xf0
        static let command: Int32 = 0x300
        static let timer: Int32 = 0x320
        static let lint0: Int32 = 0x350
        static let error: Int32 = 0x370
        static let initialCount: Int32 = 0x380
        static let divide: Int32 = 0x3e0
    }
}

/// What the guest sets once and finds again: registers of its CPU and its devices.
extension X86CountingProgram {
    private static let control = 0x0bad_cafe_1234 as UInt64
    /// FS and GS base, LSTAR, kernel GS base and SYSENTER_ESP, which all take an address.
    private static let registers: [UInt64] = [0xc000_0100, 0xc000_0101, 0xc000_0082, 0xc000_0102, 0x175]
    /// The task priority's class, below which interrupts wait.
    private static let priority: UInt64 = 1
    private static let scratch: UInt64 = 0x5a
    /// DR7 with no breakpoint.
    private static let noBreakpoint: UInt64 = 0x400

    private static let localAPIC: [(register: Int32, value: UInt64)] = [
        (X86Devices.LocalAPIC.spurious, 0x1ff), (X86Devices.LocalAPIC.logicalDestination, 0x5a00_0000),
        (X86Devices.LocalAPIC.timer, UInt64(Vector.timer)), (X86Devices.LocalAPIC.lint0, 0x1_0700),
        (X86Devices.LocalAPIC.error, 0x1_00a5), (X86Devices.LocalAPIC.divide, 0xb),
    ]
    /// Two pins' routes, by the registers' numbers: the serial port's, and one that is masked.
    private static let ioapic: [(register: UInt64, value: UInt64)] = [
        (0x18, UInt64(Vector.serial)), (0x19, 0), (0x38, 0x1_00a5), (0x39, 0x5a00_0000),
    ]

    // MARK: Setting

    static func prepareRegisters(_ code: inout X86Assembler) {
        for (index, register) in kept.enumerated() { code.constant(register, Counting.pattern(index)) }
        for index in 0..<32 {
            code.constant(.rax, Counting.pattern(100 + index))
            code.store(.quadword, .rax, .rbx, Field.vectors + Int32(8 * index))
        }
        for number in 0..<UInt8(16) { code.loadVector(number, .rbx, Field.vectors + 16 * Int32(number)) }
        code.constant(.rax, control)
        code.writeControl(2, .rax)
        for number in 0..<UInt8(4) {
            code.constant(.rax, control + UInt64(number))
            code.writeDebug(number, .rax)
        }
        code.constant(.rax, noBreakpoint)
        code.writeDebug(7, .rax)
        code.constant(.rax, priority)
        code.writeControl(8, .rax)
        for (index, register) in registers.enumerated() {
            code.constant(.rcx, register)
            code.constant(.rax, (control + UInt64(index)) & 0xffff_ffff)
            code.constant(.rdx, control >> 32)
            code.writeMSR()
        }
        readTime(&code)
        code.store(.quadword, .rax, .rbx, Field.time)
    }

    static func prepareDevices(_ code: inout X86Assembler) {
        func out(_ port: UInt64, _ value: UInt64) {
            code.constant(.rdx, port)
            code.constant(.rax, value)
            code.outByte()
        }
        // The older interrupt controllers are masked.
        for port in [0x21, 0xa1] as [UInt64] { out(port, 0xff) }
        out(X86Devices.serial + 7, scratch)
        out(X86Devices.serial + 2, 1)  // FIFOs
        out(X86Devices.serial + 1, 1)  // an interrupt for what is received
        code.constant(.rcx, X86Devices.localAPIC)
        for (register, value) in localAPIC {
            code.constant(.rax, value)
            code.store(.doubleword, .rax, .rcx, register)
        }
        code.constant(.rcx, X86Devices.ioapic)
        for (register, value) in ioapic.reversed() {
            code.constant(.rax, register)
            code.store(.doubleword, .rax, .rcx)
            code.constant(.rax, value)
            code.store(.doubleword, .rax, .rcx, 0x10)
        }
        eachVirtioDevice(&code) { code in
            code.constant(.rax, 3)  // ACKNOWLEDGE, DRIVER
            code.store(.doubleword, .rax, .rcx, 0x70)
        }
    }

    /// Has all other CPUs halt, in real mode.
    static func startOthers(_ code: inout X86Assembler) {
        code.constant(.rcx, 0x8000)
        code.constant(.rax, 0xfdeb_f4fa)  // cli, hlt, and back
        code.store(.doubleword, .rax, .rcx)
        code.constant(.rcx, X86Devices.localAPIC)
        for command in [0xc_4500, 0xc_4608, 0xc_4608] as [UInt64] {  // INIT, and start at 0x8000
            code.constant(.rax, command)
            code.store(.doubleword, .rax, .rcx, X86Devices.LocalAPIC.command)
        }
    }

    /// Does something with each virtio-mmio device, whose address is in RCX.
    private static func eachVirtioDevice(_ code: inout X86Assembler, _ body: (inout X86Assembler) -> Void) {
        let virtio = X86Devices.virtio
        code.constant(.rcx, virtio.start)
        let next = code.label()
        let slot = code.here()
        code.load(.doubleword, .rax, .rcx, 8)
        code.operate(.cmp, .rax, 0)
        code.branch(.equal, to: next)
        body(&code)
        code.place(next)
        code.operate(.add, .rcx, virtio.stride)
        code.constant(.rax, virtio.start + virtio.count * UInt64(virtio.stride))
        code.operate(.cmp, .rcx, .rax)
        code.branch(.below, to: slot)
    }

    /// The time-stamp counter to RAX.
    private static func readTime(_ code: inout X86Assembler) {
        code.readTimeStampCounter()
        code.shiftLeft(.rdx, 32)
        code.operate(.or, .rax, .rdx)
    }

    // MARK: Finding again

    /// Compares what must not have changed, and stops for good where it has.
    static func check(_ code: inout X86Assembler, _ labels: Labels) {
        checkRegisters(&code, labels)
        checkControl(&code, labels)
        checkTime(&code, labels)
        checkDevices(&code, labels)
    }

    /// Of a register with a value; changes RCX and RDX.
    private static func expect(
        _ code: inout X86Assembler, _ found: X86Assembler.Register, _ value: UInt64, _ finding: Finding,
        _ labels: Labels
    ) {
        code.constant(.rdx, value)
        code.operate(.cmp, found, .rdx)
        fail(&code, unless: .equal, finding, labels)
    }

    static func fail(
        _ code: inout X86Assembler, unless condition: X86Assembler.Condition, _ finding: Finding, _ labels: Labels
    ) {
        let fine = code.label()
        code.branch(condition, to: fine)
        code.constant(.rcx, finding.rawValue)
        code.jump(to: labels.failure)
        code.place(fine)
    }

    private static func checkRegisters(_ code: inout X86Assembler, _ labels: Labels) {
        for (index, register) in kept.enumerated() {
            expect(&code, register, Counting.pattern(index), .registers, labels)
        }
        for number in 0..<16 {
            code.storeVector(UInt8(number), .rbx, Field.vector)
            for half in 0..<2 {
                code.load(.quadword, .rax, .rbx, Field.vector + 8 * Int32(half))
                expect(&code, .rax, Counting.pattern(100 + 2 * number + half), .floatRegisters, labels)
            }
        }
    }

    private static func checkControl(_ code: inout X86Assembler, _ labels: Labels) {
        code.readControl(2, .rax)
        expect(&code, .rax, control, .controlRegisters, labels)
        for number in 0..<UInt8(4) {
            code.readDebug(number, .rax)
            expect(&code, .rax, control + UInt64(number), .controlRegisters, labels)
        }
        code.readDebug(7, .rax)
        expect(&code, .rax, noBreakpoint, .controlRegisters, labels)
        code.readControl(8, .rax)
        expect(&code, .rax, priority, .controlRegisters, labels)
        for (index, register) in registers.enumerated() {
            code.constant(.rcx, register)
            code.readMSR()
            code.shiftLeft(.rdx, 32)
            code.operate(.or, .rax, .rdx)
            expect(&code, .rax, control + UInt64(index), .controlRegisters, labels)
        }
    }

    /// The time goes on, also while the VM is stopped, and by minutes at most: 2^40 ticks.
    private static func checkTime(_ code: inout X86Assembler, _ labels: Labels) {
        readTime(&code)
        code.load(.quadword, .rdx, .rbx, Field.time)
        code.operate(.cmp, .rax, .rdx)
        fail(&code, unless: .aboveOrEqual, .time, labels)
        code.store(.quadword, .rax, .rbx, Field.time)
        code.operate(.sub, .rax, .rdx)
        code.shiftRight(.rax, 40)
        expect(&code, .rax, 0, .time, labels)
    }

    private static func checkDevices(_ code: inout X86Assembler, _ labels: Labels) {
        func expectPort(_ port: UInt64, _ value: UInt64, _ finding: Finding) {
            code.constant(.rdx, port)
            code.constant(.rax, 0)
            code.inByte()
            expect(&code, .rax, value, finding, labels)
        }
        expectPort(X86Devices.serial + 7, scratch, .serialPort)
        expectPort(X86Devices.serial + 1, 1, .serialPort)
        for port in [0x21, 0xa1] as [UInt64] { expectPort(port, 0xff, .interruptController) }
        // One timer interrupt for each line.
        code.load(.quadword, .rax, .rbx, Field.ticks)
        code.operate(.cmp, .rax, .rbp)
        fail(&code, unless: .equal, .interruptController, labels)
        code.constant(.rcx, X86Devices.localAPIC)
        for (register, value) in localAPIC {
            code.load(.doubleword, .rax, .rcx, register)
            expect(&code, .rax, value, .interruptController, labels)
        }
        code.constant(.rcx, X86Devices.ioapic)
        for (register, value) in ioapic {
            code.constant(.rax, register)
            code.store(.doubleword, .rax, .rcx)
            code.load(.doubleword, .rax, .rcx, 0x10)
            expect(&code, .rax, value, .interruptController, labels)
        }
        eachVirtioDevice(&code) { code in
            code.load(.doubleword, .rax, .rcx, 0x70)
            expect(&code, .rax, 3, .virtio, labels)
        }
    }
}
