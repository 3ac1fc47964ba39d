import Foundation
import TestSupport
import Testing

/// Decoded code follows what is in memory, whoever writes it.
@Suite("Decode cache")
struct DecodeCacheTests {
    /// addi a0, a0, 1 and addi a0, a0, 16 as words.
    private static let addOne = "0x00150513"
    private static let addSixteen = "0x01050513"

    private func program(fence: String) -> String {
        """
            li a0, 0
            li s0, 3
            la t0, target
            li t1, \(Self.addSixteen)
        1:  jal target
            sw t1, (t0)
            \(fence)
            addi s0, s0, -1
            bnez s0, 1b
            \(TestMachine.finish("a0"))
            .option norvc
        target:
            .word \(Self.addOne)
            ret
        """
    }

    @Test("sees code that was stored, with fence.i")
    func selfModifyingWithFence() throws {
        #expect(try TestMachine(assembly: program(fence: "fence.i")).runUntilDone() == 1 + 16 + 16)
    }

    @Test("sees code that was stored, without fence.i")
    func selfModifyingWithoutFence() throws {
        #expect(try TestMachine(assembly: program(fence: "nop")).runUntilDone() == 1 + 16 + 16)
    }

    @Test("sees a store to the very next instruction")
    func nextInstruction() throws {
        let machine = try TestMachine(
            assembly: """
                    .option norvc
                    li s0, 2
                    li a0, 0
                    la t0, 2f
                    li t1, \(Self.addSixteen)
                1:  beqz s0, 3f
                    addi s0, s0, -1
                    sw t1, (t0)
                2:  .word \(Self.addOne)
                    j 1b
                3:  \(TestMachine.finish("a0"))
                """)
        #expect(try machine.runUntilDone() == 32)
    }

    @Test("sees half of an instruction change")
    func halfAnInstruction() throws {
        // The immediate is in the upper half: a store of 2 bytes in the middle
        // of a decoded op.
        let machine = try TestMachine(
            assembly: """
                    .option norvc
                    li a0, 0
                    la t0, target
                    li t1, 0x0105
                    jal target
                    sh t1, 2(t0)
                    jal target
                    \(TestMachine.finish("a0"))
                target:
                    .word \(Self.addOne)
                    ret
                """)
        #expect(try machine.runUntilDone() == 17)
    }

    @Test("sees code that a device wrote")
    func deviceWrite() throws {
        let machine = try TestMachine(
            assembly: """
                    .option norvc
                    li s11, 0x80100000
                    la t0, target
                1:  li a0, 0
                    jal target
                    sd a0, (s11)
                    j 1b
                    .balign 64
                target:
                    .word \(Self.addOne)
                    ret
                """)
        #expect(try machine.runUntilDone() == 1)
        // Find the routine as a device would be told its address.
        let word = UInt32(0x0015_0513)
        let offset = try #require(
            stride(from: 0, to: 4096, by: 4).first {
                machine.ram.host.load(fromByteOffset: $0, as: UInt32.self) == word
            })
        withUnsafeBytes(of: UInt32(0x0105_0513)) { bytes in
            try? machine.vm.addressSpace.write(bytes, at: TestMachine.base + UInt64(offset), what: "DMA")
        }
        try machine.run(until: "the new code") { machine[TestMachine.done] == 16 }
    }

    @Test("sees a new page behind an instruction that crosses pages")
    func crossingInstruction() throws {
        // addi a0, a0, IMM at 0x80000ffe; its second half changes.
        let machine = try TestMachine(
            assembly: """
                    li a0, 0
                    la t0, 8f
                    addi t0, t0, 2
                    li t1, 0x0105
                    jal 8f
                    sh t1, (t0)
                    jal 8f
                    \(TestMachine.finish("a0"))
                    .org 0xffe
                    .option norvc
                8:  .word \(Self.addOne)
                    ret
                """)
        #expect(try machine.runUntilDone() == 17)
    }

    @Test("runs on when it is full")
    func overflow() throws {
        // A routine in each of more pages than there are tables for, twice.
        let pages = 4200
        let machine = try TestMachine(megabytes: 32)
        let path = try GuestBuilder.build(
            "riscv-unit",
            sources: [
                "start.S": """
                .section .text.start
                .globl _start
                _start:
                    li a0, 0
                    li s1, 2
                1:  li t0, 0x80200000
                    li s0, \(pages)
                    lui t2, 1
                2:  jalr t0
                    add t0, t0, t2
                    addi s0, s0, -1
                    bnez s0, 2b
                    addi s1, s1, -1
                    bnez s1, 1b
                    \(TestMachine.finish("a0"))
                """
            ], binary: true)
        try machine.load(Data(contentsOf: URL(fileURLWithPath: path)), at: TestMachine.base)
        // addi a0, a0, 1; ret
        for page in 0..<pages { machine[0x8020_0000 + UInt64(page) * 4096] = 0x0000_8067_0015_0513 }
        machine.reset()
        #expect(try machine.runUntilDone() == UInt64(2 * pages))
    }
}

/// Code that another process stores to RAM: nothing tells of it.
@Suite("Foreign writers")
struct ForeignWriterTests {
    private static let addSixteen: UInt32 = 0x0105_0513

    /// Calls `target`, waits for the mailbox at +0x1000 to be filled, and calls
    /// `target` (at +0x2000) again.
    private func run(harts: Int = 1, sbi: Bool = false, fence: String) throws -> UInt64 {
        let machine = try TestMachine(
            harts: harts, sbi: sbi,
            assembly: """
                    li a0, 0
                    li s0, 0x80001000
                    li s1, 0x80002000
                    jalr s1
                    li t0, 1
                    sd t0, (s0)
                1:  ld t1, 8(s0)
                    beqz t1, 1b
                    mv s2, a0
                    \(fence)
                    mv a0, s2
                    jalr s1
                    sd a0, 16(s0)
                    li t0, 2
                    sd t0, (s0)
                2:  j 2b
                    .org 0x2000
                    .option norvc
                    addi a0, a0, 1
                    ret
                """)
        machine.vm.addressSpace.expectForeignWriters()
        try machine.run(until: "the first call") { machine[0x8000_1000] == 1 }
        machine.ram.host.storeBytes(of: Self.addSixteen, toByteOffset: 0x2000, as: UInt32.self)
        machine[0x8000_1008] = 1
        try machine.run(until: "the second call") { machine[0x8000_1000] == 2 }
        return machine[0x8000_1010]
    }

    @Test("fence.i shows code that another process has stored")
    func fence() throws {
        #expect(try run(fence: "fence.i") == 17)
    }

    @Test("a remote fence.i shows code that another process has stored")
    func remoteFence() throws {
        let call = "li a7, 0x52464e43\nli a6, 0\nli a0, 1\nli a1, 0\necall"
        #expect(try run(sbi: true, fence: call) == 17)
    }
}
