import BatonRuntime
import RISCV
import Testing

/// The SBI's firmware features and supervisor software events.
@Suite("Built-in SBI, features and events")
struct SBIEventTests {
    private func call(_ extensionID: String, _ function: Int) -> String {
        "li a7, \(extensionID)\n li a6, \(function)\n ecall\n"
    }
    private func features(_ function: Int) -> String { call("0x46574654", function) }
    private func events(_ function: Int) -> String { call("0x535345", function) }

    @Test(
        "says which features there are",
        arguments: [
            ("0", 0), ("1", -2), ("2", -2), ("3", -2), ("4", -2), ("5", -2), ("6", -4), ("0x3fffffff", -4),
            ("0x40000000", -4), ("0x80000000", -4), ("0xffffffff", -4), ("1 << 32", 0),
        ] as [(String, Int64)])
    func feature(_ number: String, _ expected: Int64) throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: "li a0, \(number)\n\(features(1)) slli a0, a0, 8\n ori a0, a0, 1\n" + TestMachine.finish("a0"))
        #expect(try machine.runUntilDone() == UInt64(bitPattern: expected << 8 | 1))
    }

    @Test("sets and locks a feature")
    func lock() throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: """
                    li a0, 0
                    li a1, 1
                    li a2, 1
                    \(features(0))
                    bnez a0, 1f
                    li a1, 0
                    li a2, 0
                    \(features(0))
                    li t0, -14
                    bne a0, t0, 1f
                    li a0, 0
                    \(features(1))
                    bnez a0, 1f
                    \(TestMachine.finish("a1"))
                1:  li a1, 99
                    \(TestMachine.finish("a1"))
                """)
        #expect(try machine.runUntilDone() == 1)
    }

    /// Registers and enables an event with `handler`, whose argument is 0x1230.
    private func prepare(_ event: String, unmask: Bool = true) -> String {
        """
            li a0, \(event)
            la a1, handler
            li a2, 0x1230
            \(events(2))
            bnez a0, fail
            li a0, \(event)
            \(events(4))
            bnez a0, fail
            \(unmask ? events(8) + "bnez a0, fail\n" : "")
        """
    }

    private static let local = "0xffff0000"
    private static let global = "0xffff8000"
    /// Counts in s2, and completes; s3 is what a7 was.
    private var handler: String {
        """
            .balign 4
        handler:
            addi s2, s2, 1
            mv s3, a7
            mv s4, a6
            csrr s5, sstatus
            \(events(6))
        fail:
            li s0, 99
            \(TestMachine.finish("s0"))
        """
    }

    @Test(
        "delivers an injected event before the next instruction, and resumes what it interrupted",
        arguments: [local, global])
    func inject(_ event: String) throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: """
                    li s2, 0
                    csrci sstatus, 2
                    li t0, 0x100
                    csrc sstatus, t0
                    \(prepare(event))
                    li t0, 0x4440
                    csrw sepc, t0
                    li a0, \(event)
                    li a1, 0
                    \(events(7))
                    bnez a0, fail
                    li t0, 1
                    bne s2, t0, fail
                    li t0, 0x535345
                    bne a7, t0, fail
                    li t0, 7
                    bne a6, t0, fail
                    csrr t0, sepc
                    li t1, 0x4440
                    bne t0, t1, fail
                    bnez s4, fail
                    andi s5, s5, 0x100
                    beqz s5, fail
                    csrr t0, sstatus
                    andi t0, t0, 0x100
                    bnez t0, fail
                    \(TestMachine.finish("s3"))
                \(handler)
                """)
        #expect(try machine.runUntilDone() == 0x1230)
    }

    @Test("holds an event back while the hart is masked")
    func masked() throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: """
                    li s2, 0
                    \(prepare(Self.local, unmask: false))
                    li a0, \(Self.local)
                    li a1, 0
                    \(events(7))
                    bnez a0, fail
                    bnez s2, fail
                    \(events(8))
                    bnez a0, fail
                    li t0, 8
                    bne a6, t0, fail
                    \(TestMachine.finish("s2"))
                \(handler)
                """)
        #expect(try machine.runUntilDone() == 1)
    }

    @Test("reaches another hart, also over a checkpoint while it is pending", arguments: [false, true])
    func otherHart(_ moves: Bool) throws {
        let program = """
                li s1, 0x80200000
                li a0, 1
                la a1, second
                \(call("0x48534d", 0))
            1:  ld t0, (s1)
                beqz t0, 1b
                li a0, \(Self.local)
                li a1, 1
                \(events(7))
                bnez a0, fail
            3:  j 3b
            second:
                li s2, 0
                \(prepare(Self.local, unmask: false))
                li s1, 0x80200000
                li t0, 1
                sd t0, (s1)
            2:  ld t0, 8(s1)
                beqz t0, 2b
                \(events(8))
                bnez a0, fail
                bnez s2, 4f
                wfi
            4:  add s3, s3, s2
                \(TestMachine.finish("s3"))
            \(handler)
            """
        var machine = try TestMachine(harts: 2, sbi: true, assembly: program)
        try machine.run(until: "the second hart is ready") { machine[0x8020_0000] != 0 }
        for _ in 0..<20 { _ = machine.accelerator.runSlice() }
        if moves {
            let next = try TestMachine(harts: 2, sbi: true, assembly: program)
            next.ram.host.copyMemory(from: machine.ram.host, byteCount: 4 << 20)
            for (from, to) in zip(machine.accelerator.harts, next.accelerator.harts) {
                var writer = StateWriter()
                from.save(to: &writer)
                try to.load(from: StateReader(section: to.stateName, version: 1, payload: writer.encoded()[...]))
            }
            machine = next
        }
        machine[0x8020_0008] = 1
        #expect(try machine.runUntilDone() == 0x1231)
    }

    @Test(
        "refuses events that are not there, and calls out of order",
        arguments: [
            ("0", 4, -2), ("0x4000", 4, -2), ("2", 4, -3), ("0xffff0001", 4, -3), (local, 4, -10), (local, 5, -10),
            (local, 3, -10), (local, 7, -10), (global, 4, -10), (local, 10, -2), (local, 9, -8),
        ] as [(String, Int, Int)])
    func refuses(_ event: String, _ function: Int, _ failure: Int) throws {
        let machine = try TestMachine(
            sbi: true, assembly: "li a0, \(event)\n li a1, 0\n" + events(function) + TestMachine.finish("a0"))
        #expect(try machine.runUntilDone() == UInt64(bitPattern: Int64(failure)))
    }

    @Test("writes attributes into RAM and nowhere else, and changes none unless all may be")
    func attributes() throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: """
                    li s1, 0x80200000
                    li t0, 7
                    sd t0, (s1)
                    li t0, 2
                    sd t0, 8(s1)
                    li a0, \(Self.local)
                    li a1, 1
                    li a2, 2
                    mv a3, s1
                    li a4, 0
                    \(events(1))
                    li t0, -3
                    bne a0, t0, fail
                    li a0, \(Self.local)
                    li a3, 0x1000
                    \(events(0))
                    li t0, -5
                    bne a0, t0, fail
                    li a0, \(Self.local)
                    mv a3, s1
                    \(events(0))
                    bnez a0, fail
                    ld t0, 8(s1)
                    addi t0, t0, 1
                    \(TestMachine.finish("t0"))
                fail:
                    li s0, 99
                    \(TestMachine.finish("s0"))
                """)
        #expect(try machine.runUntilDone() == 1)
    }

    @Test("unregisters what a hart has when it is reset")
    func reset() throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: """
                    li s2, 0
                    \(prepare(Self.local))
                    li s0, 1
                    \(TestMachine.finish("s0"))
                \(handler)
                """)
        #expect(try machine.runUntilDone() == 1)
        machine[TestMachine.done] = 0
        machine.reset()
        #expect(try machine.runUntilDone() == 1)
    }
}
