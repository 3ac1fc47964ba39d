import BatonRuntime
import RISCV
import Testing

/// The SBI's calls that stop, suspend and end: HSM, SUSP and SRST.
@Suite("Built-in SBI, suspend and reset")
struct SBISuspendTests {
    private static let hsm = "0x48534d"
    private static let susp = "0x53555350"

    private func call(_ extensionID: String, _ function: Int) -> String {
        "li a7, \(extensionID)\n li a6, \(function)\n ecall\n"
    }

    /// A suspend of a type, from which a software interrupt that is already
    /// pending wakes the hart, or a timer interrupt if `later`.
    private func suspend(_ what: String, type: String, address: String = "resumed", later: Bool = false) -> String {
        """
            csrw satp, x0
            li s0, 0x5a5a
            \(later
                ? "rdtime a0\n addi a0, a0, 2000\n \(call("0x54494d45", 0)) li t0, 32\n csrw sie, t0\n"
                : "li t0, 2\n csrw sie, t0\n csrw sip, t0\n")
            li a0, \(type)
            la a1, \(address)
            li a2, 0x77
            \(what)
            slli a0, a0, 8
            ori a0, a0, 1
            \(TestMachine.finish("a0"))
            .balign 4
        resumed:
            csrr t0, satp
            bnez t0, 1f
            csrr t0, sstatus
            andi t0, t0, 2
            bnez t0, 1f
            addi a1, a1, 2
            slli a0, a0, 12
            add a0, a0, a1
        1:  \(TestMachine.finish("a0"))
        """
    }

    @Test("takes 32 bits of the type, and returns from a retentive suspend", arguments: ["0", "1 << 63", "1 << 32"])
    func retentive(_ type: String) throws {
        let machine = try TestMachine(sbi: true, assembly: suspend(call(Self.hsm, 3), type: type))
        #expect(try machine.runUntilDone() == 1)
    }

    @Test(
        "goes on elsewhere after a non-retentive suspend",
        arguments: ["0x80000000", "0x80000000 | 1 << 63"], [false, true])
    func nonRetentive(_ type: String, _ later: Bool) throws {
        let machine = try TestMachine(sbi: true, assembly: suspend(call(Self.hsm, 3), type: type, later: later))
        #expect(try machine.runUntilDone() == 0x79)
    }

    @Test("goes on elsewhere after a system suspend", arguments: ["0", "1 << 32"], [false, true])
    func system(_ type: String, _ later: Bool) throws {
        let machine = try TestMachine(sbi: true, assembly: suspend(call(Self.susp, 0), type: type, later: later))
        #expect(try machine.runUntilDone() == 0x79)
    }

    @Test(
        "refuses other types and addresses",
        arguments: [
            (hsm, 3, "1", "resumed", -3), (hsm, 3, "0x80000001", "resumed", -3), (hsm, 3, "0x90000000", "resumed", -2),
            (hsm, 3, "0x80000000", "resumed + 1", -5), (susp, 0, "1", "resumed", -3), (susp, 1, "0", "resumed", -2),
            (susp, 0, "0x80000000", "resumed", -2), (susp, 0, "0", "resumed + 1", -5),
        ] as [(String, Int, String, String, Int)])
    func refuses(_ id: String, _ function: Int, _ type: String, _ address: String, _ failure: Int) throws {
        let machine = try TestMachine(
            sbi: true, assembly: suspend(call(id, function), type: type, address: address))
        #expect(try machine.runUntilDone() == UInt64(bitPattern: Int64(failure << 8 | 1)))
    }

    @Test("suspends no system whose other harts are not stopped")
    func othersRun() throws {
        let machine = try TestMachine(
            harts: 2, sbi: true,
            assembly: """
                    li a0, 1
                    la a1, second
                    \(call(Self.hsm, 0))
                    \(suspend(call(Self.susp, 0), type: "0"))
                second:
                    j second
                """)
        #expect(try machine.runUntilDone() == UInt64(bitPattern: Int64(-4 << 8 | 1)))
    }

    @Test("keeps a suspended hart in a checkpoint, with where it goes on")
    func checkpoint() throws {
        let program = suspend(call(Self.hsm, 3), type: "0x80000000").replacing("csrw sip, t0", with: "nop")
        let machine = try TestMachine(sbi: true, assembly: program)
        try machine.run(until: "the suspend") { machine.hart.isHalted }
        var writer = StateWriter()
        machine.hart.save(to: &writer)
        let next = try TestMachine(sbi: true, assembly: program)
        try next.hart.load(from: StateReader(section: "cpu0", version: 1, payload: writer.encoded()[...]))
        next.hart.setInterrupt(.supervisorSoftware, true)
        #expect(try next.runUntilDone() == 0x79)
    }

    @Test("ends with status 0, whatever the reason", arguments: [0, 1, 0xe000_0001])
    func exitStatus(_ reason: UInt64) throws {
        let machine = try TestMachine(
            sbi: true, assembly: "li a0, 1 << 32\n li a1, \(reason)\n" + call("0x53525354", 0) + "1: j 1b\n")
        try machine.vm.start()
        #expect(machine.vm.run() == 0)
        #expect(machine.vm.exitStatus == 0)
    }

    @Test("refuses a reset for a reserved reason or of a reserved type", arguments: [(0, 2), (3, 0)] as [(Int, Int)])
    func refusesReset(_ type: Int, _ reason: Int) throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: "li a0, \(type)\n li a1, \(reason)\n" + call("0x53525354", 0) + TestMachine.finish("a0"))
        #expect(try machine.runUntilDone() == UInt64(bitPattern: -3))
    }
}
