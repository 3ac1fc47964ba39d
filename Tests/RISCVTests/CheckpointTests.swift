import BatonRuntime
import RISCV
import Testing

@Suite("Hart checkpoint")
struct CheckpointTests {
    /// A checksum over integer, floating-point and CSR state that depends on
    /// every step before.
    private static let program = """
            li t0, 0x6000
            csrs mstatus, t0
            li s0, 3000000
            li a0, 1
            li s2, 6364136223846793005
            fcvt.d.l fa0, a0
            fcvt.d.l fa1, s2
            fsqrt.d fa1, fa1
        1:  mul a0, a0, s2
            addi a0, a0, 11
            csrw mscratch, a0
            fadd.d fa0, fa0, fa1
            fmv.x.d t1, fa0
            xor a0, a0, t1
            csrr t1, mscratch
            add a0, a0, t1
            addi s0, s0, -1
            bnez s0, 1b
            csrr t0, fcsr
            add a0, a0, t0
            \(TestMachine.finish("a0"))
        """

    private func saved(_ hart: Hart) throws -> StateReader {
        var writer = StateWriter()
        hart.save(to: &writer)
        return try StateReader(section: "cpu0", version: 1, payload: writer.encoded()[...])
    }

    @Test("goes on in another hart where it was saved")
    func roundTrip() throws {
        let whole = try TestMachine(assembly: Self.program)
        let expected = try whole.runUntilDone()

        var machine = try TestMachine(assembly: Self.program)
        var moves = 0
        while machine[TestMachine.done] == 0 && moves < 100_000 {
            for _ in 0..<5 { _ = machine.accelerator.runSlice() }
            machine.hart.pause()
            let state = try saved(machine.hart)
            let next = try TestMachine(assembly: Self.program)
            next.ram.host.copyMemory(from: machine.ram.host, byteCount: 2 << 20)
            try next.hart.load(from: state)
            #expect(next.hart.retiredInstructions == machine.hart.retiredInstructions)
            machine = next
            moves += 1
        }
        #expect(moves > 2)
        #expect(machine[TestMachine.done] == expected)
    }

    @Test("saves what it loaded")
    func stable() throws {
        let machine = try TestMachine(assembly: Self.program)
        for _ in 0..<3 { _ = machine.accelerator.runSlice() }
        let first = try saved(machine.hart)
        let second = try TestMachine()
        second.reset()
        try second.hart.load(from: first)
        let again = try saved(second.hart)
        for (a, b) in zip(first.dump, again.dump) where a.name != "mip" {
            #expect(a.name == b.name && a.payload.elementsEqual(b.payload), "\(a.name)")
        }
    }

    @Test(
        "refuses impossible values and changes nothing",
        arguments: [
            ("mode", 2), ("pc", 1), ("satp", 5 << 60), ("mstatus", 1 << 60), ("mie", 1 << 40), ("frm", 9), ("hsm", 77),
            ("medeleg", 1 << 11), ("waiting", 2), ("builtin-sbi", 1),
        ] as [(String, UInt64)])
    func refuses(_ field: String, _ value: UInt64) throws {
        let machine = try TestMachine(assembly: Self.program)
        _ = machine.accelerator.runSlice()
        let good = try saved(machine.hart)
        var payload: [UInt8] = []
        for entry in good.dump {
            payload.append(UInt8(entry.name.utf8.count))
            payload += entry.name.utf8
            payload += [entry.type.rawValue, 0]
            payload += littleEndianBytes(UInt32(entry.payload.count))
            payload += entry.name == field ? littleEndianBytes(value) : Array(entry.payload)
        }
        let bad = try StateReader(section: "cpu0", version: 1, payload: payload[...])
        let pc = machine.hart.programCounter
        #expect(throws: VMMError.self) { try machine.hart.load(from: bad) }
        #expect(machine.hart.programCounter == pc)
    }

    @Test("keeps a hart waiting that waits for an interrupt")
    func waiting() throws {
        let machine = try TestMachine(
            assembly: """
                    li t0, 8
                    csrw mie, t0
                1:  wfi
                    csrr a0, mip
                    \(TestMachine.finish("a0"))
                """)
        try machine.run(until: "wfi") { machine.hart.isHalted }
        let state = try saved(machine.hart)
        let next = try TestMachine(assembly: "nop\n")
        next.ram.host.copyMemory(from: machine.ram.host, byteCount: 1 << 20)
        try next.hart.load(from: state)
        guard case .idle(nil) = next.accelerator.runSlice() else {
            Issue.record("the hart does not wait")
            return
        }
        next.hart.setInterrupt(.machineSoftware, true)
        #expect(try next.runUntilDone() == 8)
    }
}
