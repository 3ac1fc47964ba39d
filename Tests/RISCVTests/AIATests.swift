import BatonRuntime
import RISCV
import Testing

/// Smaia and Ssaia as a program sees them. CSRs by number: 0x350 miselect,
/// 0x351 mireg, 0x35c mtopei, 0xfb0 mtopi, 0x150 siselect, 0x151 sireg, 0x15c
/// stopei, 0xdb0 stopi.
@Suite("AIA")
struct AIATests {
    private func machine(_ assembly: String) throws -> (TestMachine, HartAIA) {
        let machine = try TestMachine(assembly: assembly)
        let aia = machine.hart.enableAIA()
        machine.reset()
        return (machine, aia)
    }

    /// Ends with mcause when something traps.
    private static let trapped = """
            la t0, 8f
            csrw mtvec, t0
            j 7f
            .align 2
        8:  csrr a0, mcause
            \(TestMachine.finish("a0"))
        7:
        """

    @Test(
        "is not there unless it was asked for",
        arguments: [0x350, 0x351, 0x35c, 0xfb0, 0x150, 0x151, 0x15c, 0xdb0, 0x308, 0x309])
    func absent(_ number: Int) throws {
        let machine = try TestMachine(
            assembly: Self.trapped + "\n csrr a0, \(number)\n li a0, 77\n" + TestMachine.finish("a0"))
        #expect(try machine.runUntilDone() == 2)
    }

    @Test(
        "has no registers at reserved numbers",
        arguments: [0x00, 0x2f, 0x31, 0x40, 0x6f, 0x71, 0x73, 0x81, 0xc1, 0x100, 0xfff])
    func reserved(_ select: Int) throws {
        for (selectCSR, registerCSR) in [(0x350, 0x351), (0x150, 0x151)] {
            let (machine, _) = try machine(
                Self.trapped + "\n li t0, \(select)\n csrw \(selectCSR), t0\n csrr a0, \(registerCSR)\n"
                    + TestMachine.finish("t0"))
            #expect(try machine.runUntilDone() == 2)
        }
    }

    @Test("gives messages to a program that claims them, the least first")
    func claims() throws {
        let (machine, aia) = try machine(
            """
                li t0, 0x70
                csrw 0x350, t0
                csrwi 0x351, 1
                li t0, 0xc0
                csrw 0x350, t0
                li t0, -1
                csrw 0x351, t0
            1:  csrr t0, mip
                srli t0, t0, 11
                andi t0, t0, 1
                beqz t0, 1b
                csrr a1, 0x35c
                csrrw a0, 0x35c, x0
                bne a0, a1, 2f
                slli a0, a0, 32
                csrrw t0, 0x35c, x0
                or a0, a0, t0
                csrr t0, mip
                srli t0, t0, 11
                andi t0, t0, 1
                slli t0, t0, 63
                or a0, a0, t0
            2:  \(TestMachine.finish("a0"))
            """)
        _ = machine.accelerator.runSlice()
        aia.machineFile.receive(0)
        aia.machineFile.receive(256)
        #expect(!aia.machineFile.level)
        aia.machineFile.receive(61)
        aia.machineFile.receive(7)
        #expect(try machine.runUntilDone() == 7 << 48 | 7 << 32 | 61 << 16 | 61)
        #expect(aia.machineFile.pending == [0, 0, 0, 0] && aia.machineFile.enabled[0] == ~1)
    }

    @Test("holds messages from the threshold on back")
    func threshold() throws {
        let (machine, aia) = try machine(
            """
                li t0, 0x72
                csrw 0x150, t0
                csrwi 0x151, 8
                li t0, 0x82
                csrw 0x150, t0
                li t0, -1
                csrw 0x151, t0
                li t0, 0xc2
                csrw 0x150, t0
                csrw 0x151, t0
                csrr a0, 0x15c
                li t0, 0x72
                csrw 0x150, t0
                csrwi 0x151, 0
                csrr t0, 0x15c
                slli t0, t0, 32
                or a0, a0, t0
                \(TestMachine.finish("a0"))
            """)
        #expect(try machine.runUntilDone() == (65 << 16 | 65) << 32)
        #expect(!aia.supervisorFile.delivers && !machine.hart.isPending(.supervisorExternal))
    }

    /// SSI and STI pending and enabled, with the given priorities.
    private func top(
        _ priorities: UInt64, message: UInt64? = nil, delegated: Bool = false, csr: Int = 0xfb0
    ) throws -> UInt64 {
        let (machine, aia) = try machine(
            """
                li t0, 0x30
                csrw \(delegated ? 0x150 : 0x350), t0
                li t0, \(priorities)
                csrw \(delegated ? 0x151 : 0x351), t0
                li t0, 0x22
                csrs mip, t0
                li t0, 0xa22
                csrw mie, t0
                li t0, \(delegated ? 0x222 : 0)
                csrw mideleg, t0
                li t0, 0x70
                csrw \(delegated ? 0x150 : 0x350), t0
                csrwi \(delegated ? 0x151 : 0x351), 1
                li t0, 0xc0
                csrw \(delegated ? 0x150 : 0x350), t0
                li t0, -1
                csrw \(delegated ? 0x151 : 0x351), t0
                csrr a0, \(csr)
                addi a0, a0, 1
                \(TestMachine.finish("a0"))
            """)
        if let message {
            let file = delegated ? aia.supervisorFile : aia.machineFile
            file.restore(pending: [1 << message, 0, 0, 0], enabled: [0, 0, 0, 0], delivers: false, threshold: 0)
        }
        return try machine.runUntilDone() - 1
    }

    @Test("orders major interrupts by priority, and by default where there is none")
    func priorities() throws {
        #expect(try top(0) == 1 << 16 | 255, "SSI before STI")
        #expect(try top(10 << 40) == 5 << 16 | 10)
        #expect(try top(10 << 40 | 9 << 8) == 1 << 16 | 9)
        #expect(try top(10 << 40 | 10 << 8) == 1 << 16 | 10)
        #expect(try top(10 << 40, message: 9) == 11 << 16 | 9, "a message's number is its priority")
        #expect(try top(10 << 40, message: 11) == 5 << 16 | 10)
        #expect(try top(10 << 40, delegated: true) == 0, "none is for machine level")
        #expect(try top(10 << 40, delegated: true, csr: 0xdb0) == 5 << 16 | 10)
        #expect(try top(10 << 40, message: 3, delegated: true, csr: 0xdb0) == 9 << 16 | 3)
    }

    @Test("takes the interrupt that the priorities put first")
    func taken() throws {
        let (machine, _) = try machine(
            Self.trapped + """

                    li t0, 0x30
                    csrw 0x350, t0
                    li t0, 10 << 40
                    csrw 0x351, t0
                    li t0, 0x22
                    csrw mie, t0
                    csrs mip, t0
                    csrsi mstatus, 8
                1:  j 1b
                """)
        #expect(try machine.runUntilDone() == 1 << 63 | 5)
    }

    @Test("keeps its registers over a checkpoint, which another hart refuses")
    func checkpoint() throws {
        let (machine, _) = try machine(
            """
                li t0, 0x30
                csrw 0x350, t0
                csrw 0x150, t0
                li t0, 10 << 40
                csrw 0x351, t0
                csrw 0x151, t0
                li a0, 1
                \(TestMachine.finish("a0"))
            """)
        try machine.runUntilDone()
        func saved(_ hart: Hart) throws -> (StateReader, [UInt8]) {
            var writer = StateWriter()
            hart.save(to: &writer)
            return (try StateReader(section: "cpu0", version: 1, payload: writer.encoded()[...]), writer.encoded())
        }
        let (state, bytes) = try saved(machine.hart)
        let (next, _) = try self.machine("nop\n")
        try next.hart.load(from: state)
        #expect(try saved(next.hart).1 == bytes)
        let plain = try TestMachine()
        plain.reset()
        let error = #expect(throws: VMMError.self) { try plain.hart.load(from: state) }
        #expect(error?.message == "section 'cpu0' was saved with the AIA")
        #expect(throws: VMMError.self) { try next.hart.load(from: saved(plain.hart).0) }
    }
}
