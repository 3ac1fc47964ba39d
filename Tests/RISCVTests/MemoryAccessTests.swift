import Testing

@Suite("Memory access")
struct MemoryAccessTests {
    @Test("reads and writes at any offset, within a page and across two", arguments: [0x1ff0, 0x1ff9, 0x1ffc, 0x1fff])
    func misaligned(_ offset: Int) throws {
        let machine = try TestMachine(
            assembly: """
                    li s0, 0x80200000 + \(offset)
                    li t0, 0x1122334455667788
                    sd t0, (s0)
                    ld t1, (s0)
                    bne t0, t1, 1f
                    lw t1, 3(s0)
                    li t2, 0x22334455
                    bne t1, t2, 1f
                    lhu t1, 1(s0)
                    li t2, 0x6677
                    bne t1, t2, 1f
                    li t0, -2
                    sw t0, 5(s0)
                    lw t1, 5(s0)
                    bne t0, t1, 1f
                    lbu t1, 4(s0)
                    li t2, 0x44
                    bne t1, t2, 1f
                    li a0, 1
                    j 2f
                1:  li a0, 2
                2:  \(TestMachine.finish("a0"))
                """)
        #expect(try machine.runUntilDone() == 1)
    }

    /// Enters S-mode at `body` under Sv39: a gigabyte page maps RAM at itself,
    /// and 4 KiB pages from 0x40000000 on are what the two entries say.
    private func paged(_ entries: [String], menvcfg: String? = nil, body: String, handler: String) -> String {
        """
            la t0, handler
            csrw mtvec, t0
            li t0, -1
            csrw pmpaddr0, t0
            li t0, 0x1f
            csrw pmpcfg0, t0
            \(menvcfg.map { "li t0, \($0)\n csrw 0x30a, t0" } ?? "")
            li s0, 0x80300000
            li t0, (0x80000000 >> 12) << 10 | 0xcf
            sd t0, 16(s0)
            li t0, (0x80301000 >> 12) << 10 | 1
            sd t0, 8(s0)
            li s1, 0x80301000
            li t0, (0x80302000 >> 12) << 10 | 1
            sd t0, (s1)
            li s2, 0x80302000
            \(entries.enumerated().map { "li t0, \($1)\n sd t0, \($0 * 8)(s2)" }.joined(separator: "\n"))
            li t0, 8 << 60 | 0x80300
            csrw satp, t0
            la t0, body
            csrw mepc, t0
            li t0, 3 << 11
            csrc mstatus, t0
            li t0, 1 << 11
            csrs mstatus, t0
            li s3, 0x40000000
            mret
        body:
            \(body)
            .balign 4
        handler:
            \(handler)
        """
    }

    private static let frame = "(0x80400000 >> 12) << 10"

    @Test("sets A for a load and A and D for a store")
    func accessedAndDirty() throws {
        let machine = try TestMachine(
            assembly: paged(
                ["\(Self.frame) | 7", "\(Self.frame) | 7"],
                body: "ld t0, (s3)\n li t1, 0x40001000\n sd t0, (t1)\n li a0, 1 \(TestMachine.finish("a0"))",
                handler: "li a0, 2 \(TestMachine.finish("a0"))"))
        #expect(try machine.runUntilDone() == 1)
        #expect(machine[0x8030_2000] & 0xff == 0x47)
        #expect(machine[0x8030_2008] & 0xff == 0xc7)
    }

    @Test("sets D when a page that was only read is written")
    func dirtyAfterAccessed() throws {
        let machine = try TestMachine(
            assembly: paged(
                ["\(Self.frame) | 7"], body: "ld t0, (s3)\n sd t0, (s3)\n li a0, 1 \(TestMachine.finish("a0"))",
                handler: "li a0, 2 \(TestMachine.finish("a0"))"))
        #expect(try machine.runUntilDone() == 1)
        #expect(machine[0x8030_2000] & 0xff == 0xc7)
    }

    @Test("faults instead while menvcfg.ADUE is clear")
    func withoutHardwareUpdate() throws {
        let machine = try TestMachine(
            assembly: paged(
                ["\(Self.frame) | 7"], menvcfg: "0", body: "ld t0, (s3)\n li a0, 1 \(TestMachine.finish("a0"))",
                handler: "csrr a0, mcause \(TestMachine.finish("a0"))"))
        #expect(try machine.runUntilDone() == 13)
        #expect(machine[0x8030_2000] & 0xff == 7)
    }

    @Test("gives the address of the page that faults, for an access across two")
    func crossingFault() throws {
        let machine = try TestMachine(
            assembly: paged(
                ["\(Self.frame) | 7", "0"], body: "li t0, 0x40000ffc\n ld t1, (t0)\n nop",
                handler: "csrr a0, mtval \(TestMachine.finish("a0"))"))
        #expect(try machine.runUntilDone() == 0x4000_1000)
    }

    @Test("stores nothing of an access across two pages when the second faults")
    func crossingStoreFault() throws {
        let machine = try TestMachine(
            assembly: paged(
                ["\(Self.frame) | 7", "0"], body: "li t0, 0x40000ffc\n li t1, -1\n sd t1, (t0)\n nop",
                handler: "csrr a0, mcause \(TestMachine.finish("a0"))"))
        #expect(try machine.runUntilDone() == 15)
        #expect(machine[0x8040_0ff8] == 0)
    }

    @Test("faults on a superpage whose frame is not aligned")
    func misalignedSuperpage() throws {
        let machine = try TestMachine(
            assembly: paged(
                [],
                body: "li t0, \(Self.frame) | 1 << 10 | 0xc7\n sd t0, 8(s1)\n li t0, 0x40200000\n ld t0, (t0)\n nop",
                handler: "csrr a0, mcause \(TestMachine.finish("a0"))"))
        #expect(try machine.runUntilDone() == 13)
    }

    @Test("faults on an address that is not canonical")
    func canonical() throws {
        let machine = try TestMachine(
            assembly: paged(
                [], body: "li t0, 1 << 38\n ld t0, (t0)\n nop",
                handler: "csrr a0, mtval \(TestMachine.finish("a0"))"))
        #expect(try machine.runUntilDone() == 1 << 38)
    }

    @Test("forgets a translation at sfence.vma of its page")
    func fence() throws {
        let machine = try TestMachine(
            assembly: paged(
                ["\(Self.frame) | 0xc7"],
                body: """
                    li t0, 5
                    sd t0, (s3)
                    li t0, ((0x80401000 >> 12) << 10) | 0xc7
                    sd t0, (s2)
                    sfence.vma s3, x0
                    ld a0, (s3)
                    addi a0, a0, 1
                    \(TestMachine.finish("a0"))
                    """, handler: "li a0, 2 \(TestMachine.finish("a0"))"))
        #expect(try machine.runUntilDone() == 1)
    }

    @Test("leaves satp as it is when the mode is not supported")
    func unsupportedMode() throws {
        let machine = try TestMachine(
            assembly: """
                    li t0, 9 << 60 | 0x80300
                    csrw satp, t0
                    li t1, 11 << 60 | 0x12345
                    csrw satp, t1
                    csrr a0, satp
                    \(TestMachine.finish("a0"))
                """)
        #expect(try machine.runUntilDone() == 9 << 60 | 0x80300)
    }

    @Test("raises access faults where nothing is")
    func nothingThere() throws {
        let machine = try TestMachine(
            assembly: """
                    la t0, 1f
                    csrw mtvec, t0
                    li t0, 0x1234
                    sd t0, (t0)
                    nop
                    .balign 4
                1:  csrr a0, mcause
                    csrr a1, mtval
                    slli a1, a1, 8
                    or a0, a0, a1
                    \(TestMachine.finish("a0"))
                """)
        #expect(try machine.runUntilDone() == 0x1234_07)
    }

    @Test("protects a part of a page with PMP and lets the rest be")
    func partOfAPage() throws {
        let machine = try TestMachine(
            assembly: """
                    la t0, 1f
                    csrw mtvec, t0
                    li s0, 0x80200000
                    li t0, (0x80200800 >> 2) | 0x7f
                    csrw pmpaddr0, t0
                    li t0, 0x98
                    csrw pmpcfg0, t0
                    sd s0, 0x7f8(s0)
                    li t0, 0x80200c00
                    sd s0, (t0)
                    ld t1, 0x7f8(s0)
                    bne t1, s0, 2f
                    li t0, 0x80200800
                    ld t1, (t0)
                2:  li a0, 99
                    j 3f
                    .balign 4
                1:  csrr a0, mtval
                3:  \(TestMachine.finish("a0"))
                """)
        #expect(try machine.runUntilDone() == 0x8020_0800)
    }

    @Test("reaches a device's memory while it is mapped, and no longer")
    func deviceMemory() throws {
        // Loads and stores without end: what is stored is what was loaded, plus one.
        let machine = try TestMachine(
            assembly: """
                    la t0, 2f
                    csrw mtvec, t0
                    li s0, 0x40000000
                1:  ld t0, (s0)
                    addi t0, t0, 1
                    sd t0, 8(s0)
                    j 1b
                    .align 2
                2:  csrr a0, mcause
                    \(TestMachine.finish("a0"))
                """)
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { memory.deallocate() }
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
        memory.storeBytes(of: 41, as: UInt64.self)
        let space = machine.vm.addressSpace
        space.mapMemory(memory, at: 0x4000_0000, size: 4096, readOnly: false)
        try machine.run(until: "a store") { memory.load(fromByteOffset: 8, as: UInt64.self) == 42 }
        space.unmapMemory(at: 0x4000_0000)
        #expect(try machine.runUntilDone() == 5, "a load's access fault")
    }
}
