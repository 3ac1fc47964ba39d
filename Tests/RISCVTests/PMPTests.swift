import Testing

/// Physical memory protection where entries split pages and accesses. Each
/// program ends with what it found; a trap ends it with 100 plus the cause, or
/// goes to `s10` if that is set.
@Suite("PMP")
struct PMPTests {
    /// Enters `body` in U-mode with the PMP that `setup` makes; t-registers are free.
    private func program(_ setup: String, body: String) -> String {
        """
            la t0, handler
            csrw mtvec, t0
            li s10, 0
            \(setup)
            li t0, 3 << 11
            csrc mstatus, t0
            la t0, body
            csrw mepc, t0
            mret
            .balign 4
        handler:
            csrr a0, mcause
            csrr a1, mtval
            csrr a2, mepc
            beqz s10, 1f
            jr s10
        1:  addi a0, a0, 100
            \(TestMachine.finish("a0"))
            .balign 4096
        body:
            \(body)
            .balign 4096
        page:
            .zero 4096
        """
    }

    /// An entry's config byte at its place in pmpcfg0.
    private func config(_ bytes: [Int]) -> String {
        let value = bytes.enumerated().reduce(0) { $0 | $1.element << ($1.offset * 8) }
        return "li t0, \(value)\n csrw pmpcfg0, t0\n"
    }

    private static let napot = 0x18
    private static let na4 = 0x10
    private static let tor = 0x08
    /// Entry `index` is the last that matters: all the rest of memory, RWX.
    private func everything(_ index: Int) -> String { "li t0, -1\n csrw pmpaddr\(index), t0\n" }

    @Test("is looked at for each instruction of a page that entries split")
    func splitPage() throws {
        // The middle of `page` may not be executed: code runs into it.
        let machine = try TestMachine(
            assembly: program(
                """
                la t0, page
                li t1, 0x13
                li t2, 64
                1: sw t1, (t0)
                addi t0, t0, 4
                addi t2, t2, -1
                bnez t2, 1b
                la t0, page + 64
                srli t0, t0, 2
                csrw pmpaddr0, t0
                la t0, page + 96
                srli t0, t0, 2
                csrw pmpaddr1, t0
                \(everything(2))
                \(config([0, Self.tor | 3, Self.napot | 7]))
                la s10, stopped
                """,
                body: """
                    la t0, page
                    jr t0
                    stopped:
                    la t0, page
                    sub a2, a2, t0
                    sub a1, a1, t0
                    slli a1, a1, 16
                    slli a0, a0, 32
                    or a0, a0, a1
                    or a0, a0, a2
                    \(TestMachine.finish("a0"))
                    """))
        // An instruction access fault, at byte 64 of the page.
        #expect(try machine.runUntilDone() == 1 << 32 | 64 << 16 | 64)
    }

    @Test("lets code run in the parts of a split page that it allows, loops and calls included")
    func splitPageRuns() throws {
        let machine = try TestMachine(
            assembly: program(
                """
                la t0, hole
                srli t0, t0, 2
                csrw pmpaddr0, t0
                \(everything(1))
                \(config([Self.na4, Self.napot | 7]))
                """,
                body: """
                    li a0, 0
                    li t1, 1000
                    1: addi a0, a0, 3
                    c.addi a0, 1
                    call plus
                    addi t1, t1, -1
                    bnez t1, 1b
                    \(TestMachine.finish("a0"))
                    plus: addi a0, a0, 7
                    c.jr ra
                    .balign 4
                    hole: .word 0x13
                    """))
        #expect(try machine.runUntilDone() == 11_000)
    }

    @Test("refuses the second half of an instruction")
    func halfInstruction() throws {
        let machine = try TestMachine(
            assembly: program(
                """
                la t0, hole
                srli t0, t0, 2
                csrw pmpaddr0, t0
                \(everything(1))
                \(config([Self.na4, Self.napot | 7]))
                la s10, stopped
                """,
                body: """
                    .balign 4
                    c.nop
                    split: .half 0x0513
                    hole: .half 0x0015
                    c.nop
                    stopped:
                    la t0, split
                    sub a2, a2, t0
                    sub a1, a1, t0
                    slli a1, a1, 8
                    or a2, a2, a1
                    slli a0, a0, 16
                    or a0, a0, a2
                    \(TestMachine.finish("a0"))
                    """))
        #expect(try machine.runUntilDone() == 1 << 16 | 2 << 8)
    }

    /// What an access in U-mode ends with: 1, or 100 plus the cause.
    private func outcome(_ setup: String, _ access: String) throws -> UInt64 {
        let machine = try TestMachine(
            assembly: program(
                setup + "\n la s0, page\n", body: access + "\n li a0, 1\n \(TestMachine.finish("a0"))"))
        return try machine.runUntilDone()
    }

    /// 4 bytes at `page + 8` are an entry of their own with all rights, and so
    /// is all the rest.
    private var island: String {
        """
        la t0, page + 8
        srli t0, t0, 2
        csrw pmpaddr0, t0
        \(everything(1))
        \(config([Self.na4 | 7, Self.napot | 7]))
        """
    }

    @Test(
        "fails an access that an entry matches in part",
        arguments: [
            ("ld t0, 8(s0)", 105), ("ld t0, 4(s0)", 105), ("ld t0, 6(s0)", 105), ("lw t0, 7(s0)", 105),
            ("lh t0, 11(s0)", 105), ("sd t0, 8(s0)", 107), ("sw t0, 9(s0)", 107), ("sd t0, 6(s0)", 107),
            ("lw t0, 8(s0)", 1), ("lh t0, 10(s0)", 1), ("lb t0, 11(s0)", 1), ("sw t0, 8(s0)", 1), ("ld t0, 16(s0)", 1),
            ("lw t0, 4(s0)", 1), ("lw t0, 12(s0)", 1), ("addi s0, s0, 8\n amoadd.w t0, t0, (s0)", 1),
            ("addi s0, s0, 8\n amoadd.d t0, t0, (s0)", 107), ("addi s0, s0, 8\n lr.d t0, (s0)", 105),
        ] as [(String, UInt64)])
    func partial(_ access: String, _ expected: UInt64) throws {
        #expect(try outcome(island, access) == expected)
    }

    @Test("fails such an access in M-mode too, though the entry is not locked")
    func partialInMachineMode() throws {
        let machine = try TestMachine(
            assembly: program(
                island + "\n la t0, page\n ld t1, 8(t0)\n li a0, 1\n" + TestMachine.finish("a0"), body: ""))
        #expect(try machine.runUntilDone() == 105)
    }

    @Test("checks all eight bytes of a page table's entry")
    func pageTableEntry() throws {
        // The entry for the gigabyte of RAM is half in an entry of the PMP.
        let machine = try TestMachine(
            assembly: program(
                """
                li s0, 0x80300000
                li t0, (0x80000000 >> 12) << 10 | 0xdf
                sd t0, 16(s0)
                li t0, (0x80300010 >> 2)
                csrw pmpaddr0, t0
                \(everything(1))
                \(config([Self.na4 | 7, Self.napot | 7]))
                li t0, 8 << 60 | 0x80300
                csrw satp, t0
                """, body: "li a0, 1\n" + TestMachine.finish("a0")))
        // U-mode's first fetch walks through it.
        #expect(try machine.runUntilDone() == 101)
    }

    @Test("grants M-mode with MPRV what the other mode has, and locked entries bind M-mode")
    func privileges() throws {
        let deny = """
            la t0, page
            srli t0, t0, 2
            ori t0, t0, 0x1ff
            csrw pmpaddr0, t0
            \(everything(1))

            """
        func machineMode(_ first: Int, _ access: String) throws -> UInt64 {
            let machine = try TestMachine(
                assembly: program(
                    deny + config([first, Self.napot | 7])
                        + "la s0, page\n \(access)\n li a0, 1\n \(TestMachine.finish("a0"))", body: ""))
            return try machine.runUntilDone()
        }
        let modified = "li t1, 3 << 11\n csrc mstatus, t1\n li t1, 1 << 17\n csrs mstatus, t1\n"
        #expect(try machineMode(Self.napot, "ld t0, (s0)") == 1)
        #expect(try machineMode(Self.napot | 0x80, "ld t0, (s0)") == 105)
        #expect(try machineMode(Self.napot | 0x81, "ld t0, (s0)") == 1)
        #expect(try machineMode(Self.napot | 0x81, "sd t0, (s0)") == 107)
        #expect(try machineMode(Self.napot, modified + "ld t0, (s0)") == 105)
        #expect(try machineMode(Self.napot | 1, modified + "ld t0, (s0)") == 1)
    }

    @Test("has 64 entries to read, of which 16 are there")
    func registers() throws {
        let machine = try TestMachine(
            assembly: """
                    la t0, 1f
                    csrw mtvec, t0
                    li t0, -1
                    csrw pmpaddr15, t0
                    csrr s0, pmpaddr15
                    csrw 0x3c0, t0
                    csrw 0x3ef, t0
                    csrw 0x3a4, t0
                    csrr t1, 0x3c0
                    add s0, s0, t1
                    csrr t1, 0x3ef
                    add s0, s0, t1
                    csrr t1, 0x3a4
                    add s0, s0, t1
                    csrr t1, 0x3ae
                    add s0, s0, t1
                    li s1, 1
                    csrr t1, 0x3a1
                    j 2f
                    .balign 4
                1:  csrr t0, mcause
                    add s0, s0, t0
                    slli s1, s1, 56
                    or s0, s0, s1
                2:  \(TestMachine.finish("s0"))
                """)
        // The last read is RV32's register: an illegal instruction.
        #expect(try machine.runUntilDone() == ((1 << 54) - 1 + 2) | 1 << 56)
    }

    @Test("keeps locked entries, and the address below a locked top of range")
    func locks() throws {
        let machine = try TestMachine(
            assembly: """
                    li t0, 0x30000000
                    csrw pmpaddr0, t0
                    li t0, 0x30000001
                    csrw pmpaddr1, t0
                    li t0, 0x8800
                    csrw pmpcfg0, t0
                    li t0, 5
                    csrw pmpaddr0, t0
                    csrw pmpaddr1, t0
                    csrw pmpcfg0, x0
                    csrr a0, pmpaddr0
                    csrr a1, pmpaddr1
                    csrr a2, pmpcfg0
                    add a0, a0, a1
                    slli a2, a2, 32
                    add a0, a0, a2
                    \(TestMachine.finish("a0"))
                """)
        #expect(try machine.runUntilDone() == 0x6000_0001 + (0x8800 << 32))
    }
}
