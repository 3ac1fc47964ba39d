import BatonRuntime
import RISCV
import Testing

private final class Console: SBIConsole {
    var output: [UInt8] = []
    var input: [UInt8] = []
    func write(_ bytes: UnsafeRawBufferPointer) { output += bytes }
    func read(into buffer: UnsafeMutableRawBufferPointer) -> Int {
        let count = min(buffer.count, input.count)
        buffer.copyBytes(from: input.prefix(count))
        input.removeFirst(count)
        return count
    }
}

@Suite("Built-in SBI")
struct SBITests {
    private func call(_ extensionID: String, _ function: Int) -> String {
        "li a7, \(extensionID)\n li a6, \(function)\n ecall\n"
    }

    @Test("answers BASE")
    func base() throws {
        let machine = try TestMachine(
            sbi: true, assembly: call("0x10", 0) + "add s0, a1, a0\n" + TestMachine.finish("s0"))
        #expect(try machine.runUntilDone() == 3 << 24)
    }

    @Test(
        "has the extensions that it says it has",
        arguments: [
            "0x54494d45", "0x735049", "0x48534d", "0x4442434e", "0x53525354", "0x53555350", "0x46574654", "0x535345",
        ])
    func probe(_ id: String) throws {
        let machine = try TestMachine(
            sbi: true, assembly: "li a0, \(id)\n" + call("0x10", 3) + TestMachine.finish("a1"))
        #expect(try machine.runUntilDone() == 1)
    }

    @Test("refuses what it does not have")
    func unknown() throws {
        let machine = try TestMachine(sbi: true, assembly: call("0x12345678", 0) + TestMachine.finish("a0"))
        #expect(try machine.runUntilDone() == UInt64(bitPattern: -2))
    }

    @Test("writes and reads through DBCN")
    func debugConsole() throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: """
                    li a0, 5
                    la a1, 1f
                    li a2, 0
                    \(call("0x4442434e", 0))
                    li a0, 100
                    li a1, 0x80100008
                    li a2, 0
                    \(call("0x4442434e", 1))
                    addi a1, a1, 1
                    \(TestMachine.finish("a1"))
                1:  .ascii "hello"
                """)
        let console = Console()
        console.input = Array("abc".utf8)
        machine.accelerator.sbi?.console = console
        #expect(try machine.runUntilDone() == 4)
        #expect(String(decoding: console.output, as: UTF8.self) == "hello")
        #expect(machine[0x8010_0008] == 0x636261)
    }

    @Test("refuses DBCN outside RAM")
    func debugConsoleOutsideRAM() throws {
        let machine = try TestMachine(
            sbi: true, assembly: "li a0, 5\n li a1, 16\n li a2, 0\n" + call("0x4442434e", 0) + TestMachine.finish("a0"))
        #expect(try machine.runUntilDone() == UInt64(bitPattern: -3))
    }

    @Test("starts, interrupts and stops another hart")
    func harts() throws {
        let machine = try TestMachine(
            harts: 2, sbi: true,
            assembly: """
                    li a0, 1
                    la a1, second
                    li a2, 0x77
                    \(call("0x48534d", 0))
                    bnez a0, fail
                    li s1, 0x80200000
                1:  ld t0, (s1)
                    beqz t0, 1b
                    li a0, 2
                    li a1, 0
                    \(call("0x735049", 0))
                    bnez a0, fail
                2:  li a0, 1
                    \(call("0x48534d", 2))
                    li t0, 1
                    bne a1, t0, 2b
                    ld a0, 8(s1)
                    \(TestMachine.finish("a0"))
                fail:
                    li a0, 99
                    \(TestMachine.finish("a0"))
                second:
                    li s1, 0x80200000
                    li t0, 2
                    csrs sie, t0
                    sd a1, (s1)
                    wfi
                    csrr t0, sip
                    add t0, t0, a1
                    sd t0, 8(s1)
                    \(call("0x48534d", 1))
                    j fail
                """)
        #expect(try machine.runUntilDone() == 0x79)
    }

    @Test("delivers a timer interrupt that TIME set")
    func timer() throws {
        let machine = try TestMachine(
            sbi: true,
            assembly: """
                    la t0, 1f
                    csrw stvec, t0
                    rdtime a0
                    addi a0, a0, 1000
                    \(call("0x54494d45", 0))
                    li t0, 32
                    csrs sie, t0
                    csrsi sstatus, 2
                2:  wfi
                    j 2b
                    .balign 4
                1:  csrr a0, scause
                    \(TestMachine.finish("a0"))
                """)
        #expect(try machine.runUntilDone() == 1 << 63 | 5)
    }
}
