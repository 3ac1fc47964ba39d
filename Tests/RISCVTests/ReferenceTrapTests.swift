import Testing

/// Exceptions, interrupts and returns from them, in each mode, against QEMU.
@Suite("QEMU as reference: traps", .enabled(if: ReferenceMachine.absence == nil, "\(ReferenceMachine.absence ?? "")"))
struct ReferenceTrapTests {
    private typealias Place = ReferenceProgram.Place

    /// All but ecall from S, by which traps to S-mode come back to the engine.
    static let delegated: UInt64 = 0xb1ff

    private static let modes: [(name: String, mpp: UInt64)] = [
        ("M", MachineStatus.machine), ("S", MachineStatus.supervisor), ("U", MachineStatus.user),
    ]

    /// What the stack of interrupt enables and the protections may be.
    private static let statuses: [UInt64] = [
        0, MachineStatus.mpie, MachineStatus.sie, MachineStatus.spie, MachineStatus.spp,
        MachineStatus.sie | MachineStatus.spie, MachineStatus.mie, MachineStatus.mie | MachineStatus.mpie,
        MachineStatus.sum | MachineStatus.mxr, MachineStatus.tvm, MachineStatus.tw, MachineStatus.tsr,
        MachineStatus.tvm | MachineStatus.tw | MachineStatus.tsr,
        MachineStatus.mie | MachineStatus.mpie | MachineStatus.sie | MachineStatus.spie | MachineStatus.spp
            | MachineStatus.sum | MachineStatus.mxr,
    ]

    private static func state() throws -> ReferenceProgram.State {
        var state = ReferenceProgram.State()
        state[Place.stvec] = try ReferenceProgram.supervisorTrap()
        return state
    }

    @Test func exceptions() throws {
        let program = ReferenceProgram("exceptions")
        let data = ReferenceProgram.data
        let codes: [(String, [UInt32])] = [
            ("ebreak", []), ("ecall", [Instruction.ecall]), ("c.ebreak", [0x0001_9002]),
            ("no instruction", [0xffff_ffff]), ("zero", [0]), ("custom", [0x0000_000b]),
            ("c.unimp behind c.nop", [0x0000_0001]),
            ("load from nowhere", [Instruction.ld(10, 11)]), ("store to nowhere", [Instruction.sd(10, 11)]),
            ("float load from nowhere", [Instruction.i(0x07, 3, 10, 11, 0)]),
            ("float store to nowhere", [Instruction.s(0x27, 3, 11, 10, 0)]),
            ("jump to nowhere", [Instruction.jalr(1, 11)]), ("jump to an odd address", [Instruction.jalr(1, 12, 1)]),
            ("lr misaligned", [Instruction.amo(2, 2, 0, 10, 13, 0)]),
            ("lr from nowhere", [Instruction.amo(2, 2, 0, 10, 11, 0)]),
            ("mret", [Instruction.csrrw(0, 0x341, 14), Instruction.mret]),
            ("only mret", [Instruction.jalr(0, 15)]),
            ("sret", [Instruction.csrrw(0, 0x141, 14), Instruction.sret]),
            ("sfence.vma", [0x1200_0073]), ("sfence.vma x11, x12", [0x12c5_8073]),
            ("read satp", [Instruction.csrrs(10, 0x180, 0)]), ("write satp", [Instruction.csrrw(10, 0x180, 0)]),
            ("read mstatus", [Instruction.csrrs(10, 0x300, 0)]), ("read sstatus", [Instruction.csrrs(10, 0x100, 0)]),
            ("write a read-only CSR", [Instruction.csrrw(10, 0xf14, 0)]),
            ("set nothing in a read-only CSR", [Instruction.csrrs(10, 0xf14, 0)]),
            ("set by a zero register in a read-only CSR", [Instruction.csrrs(10, 0xf14, 16)]),
            ("no CSR", [Instruction.csrrs(10, 0x5ff, 0)]),
            ("wfi", [Instruction.wfi]), ("fence.i", [0x0000_100f]),
        ]
        for (name, code) in codes {
            for (mode, mpp) in Self.modes {
                for delegation in [0, Self.delegated] {
                    var state = try Self.state()
                    state[11] = 0x9000_0000
                    state[12] = ReferenceProgram.arena
                    state[13] = data + 2
                    state[14] = ReferenceProgram.arena + 0x10
                    state[15] = program.place(code: [Instruction.mret])
                    state[16] = 0
                    state[Place.medeleg] = delegation
                    // Something is pending, so that wfi ends; nothing of it is enabled where it would be taken.
                    if name == "wfi" {
                        state[Place.mie] = 2
                        state[Place.mip] = 2
                        state[Place.mideleg] = 2
                    }
                    let mayInterrupt = name == "wfi" && mpp != MachineStatus.machine
                    let statuses = Self.statuses.filter { !(mayInterrupt && $0 & MachineStatus.sie != 0) }
                    program.add(
                        "\(name) in \(mode), medeleg \(Hex64(delegation))", code: code, state: state, result: 10,
                        flags: .registers, places: [Place.mstatus],
                        operands: statuses.map { $0 | mpp | MachineStatus.floatDirty })
                }
            }
        }
        // Each exception delegated alone; of S-mode's ecall the handler is an ebreak.
        var state = try Self.state()
        for cause in 0..<16 as Range<UInt64> {
            for (name, code) in codes.prefix(12) {
                state[11] = 0x9000_0000
                state[Place.medeleg] = 1 << cause
                state[Place.stvec] = cause == 9 ? program.place(code: []) : try ReferenceProgram.supervisorTrap()
                for (mode, mpp) in Self.modes.dropFirst() {
                    state[Place.mstatus] = mpp | MachineStatus.floatDirty
                    program.add(
                        "\(name) in \(mode), medeleg \(Hex64(1 << cause))", code: code, state: state, flags: .registers)
                }
            }
        }
        try program.compare(exceptions: [
            ReferenceException(
                reason: "QEMU lets csrrs write nothing to a read-only CSR by a register that is 0 (Zicsr: only by x0)",
                versions: ReferenceException.beforeTen
            ) { $0.group.hasPrefix("set by a zero register") && $0.qemu.mcause == 3 ? .all : [] }
        ])
    }

    /// mret and sret with each of what they read.
    @Test func returns() throws {
        let program = ReferenceProgram("returns from traps")
        let codes: [(String, [UInt32])] = [
            ("mret", [Instruction.csrrw(0, 0x341, 11), Instruction.csrrw(0, 0x300, 12), Instruction.mret]),
            ("sret", [Instruction.csrrw(0, 0x141, 11), Instruction.csrrw(0, 0x300, 12), Instruction.sret]),
            (
                "sret after sstatus",
                [Instruction.csrrw(0, 0x141, 11), Instruction.csrrw(0, 0x100, 12), Instruction.sret]
            ),
        ]
        let targets = [
            ReferenceProgram.arena, ReferenceProgram.arena + 2, ReferenceProgram.arena + 1, 0x9000_0000, 1 << 63,
        ]
        for (name, code) in codes {
            for (mode, mpp) in Self.modes {
                var state = try Self.state()
                state[Place.mstatus] = mpp | MachineStatus.floatDirty
                var operands: [UInt64] = []
                let bits = [
                    MachineStatus.mie, MachineStatus.mpie, MachineStatus.sie, MachineStatus.spie, MachineStatus.spp,
                    MachineStatus.mprv, MachineStatus.tsr,
                ]
                for modeBits in 0..<4 as Range<UInt64> {
                    for chosen in 0..<1 << bits.count {
                        var value = modeBits << 11 | MachineStatus.floatDirty
                        for (index, bit) in bits.enumerated() where chosen >> index & 1 != 0 { value |= bit }
                        // Where loads and stores of the engine would be someone else's.
                        if value & MachineStatus.mprv != 0 && name != "mret" && modeBits != 3 { continue }
                        operands += [targets[chosen % 2], value]
                    }
                }
                for target in targets { operands += [target, MachineStatus.floatDirty | MachineStatus.supervisor] }
                program.add("\(name) in \(mode)", code: code, state: state, places: [11, 12], operands: operands)
            }
        }
        try program.compare(
            exceptions: [
                ReferenceException(
                    reason: "QEMU keeps bit 0 of mepc and sepc (privileged 1.12, 3.1.14 and 4.1.7: it is always zero)"
                ) { $0.operands.first.map { $0 & 1 == 1 } == true ? .all : [] }
            ]
                + ["mret", "sret"].map { name in
                    // Each by itself: where Baton began to do as QEMU, the other would still differ.
                    ReferenceException(
                        reason:
                            "QEMU's \(name) leaves MPRV set (privileged 1.12, 3.1.6.3: cleared when leaving M-mode)",
                        versions: ReferenceException.beforeTen
                    ) {
                        let isKept = $0.qemu.mstatus == $0.baton.mstatus | MachineStatus.mprv
                        return $0.group.hasPrefix(name) && isKept ? .mstatus : []
                    }
                })
    }

    @Test func interrupts() throws {
        let program = ReferenceProgram("interrupts")
        program.addTimersOff()
        let nops = [UInt32](repeating: 0x13, count: 2)
        let sets: [UInt64] = [0, 2, 0x20, 0x200, 0x22, 0x202, 0x220, 0x222]
        for (mode, mpp) in Self.modes {
            for vectored in [0, 1] as [UInt64] {
                var state = try Self.state()
                state[Place.stvec] |= vectored
                var operands: [UInt64] = []
                for enables in [
                    0, MachineStatus.mpie, MachineStatus.sie, MachineStatus.sie | MachineStatus.mpie,
                ] {
                    for delegation in [0, 2, 0x220, 0x222] as [UInt64] {
                        for pending in sets {
                            for enabled in [0x222, 0x20, 0x202] as [UInt64] {
                                operands += [
                                    mpp | MachineStatus.floatDirty | enables, delegation, pending, enabled,
                                ]
                            }
                        }
                    }
                }
                program.add(
                    "interrupts in \(mode), stvec mode \(vectored)", code: nops, state: state, flags: .registers,
                    places: [Place.mstatus, Place.mideleg, Place.mip, Place.mie], operands: operands)
            }
        }
        // What enables an interrupt: it is taken before the next instruction.
        let enablers: [(String, UInt32, (inout ReferenceProgram.State) -> Void)] = [
            (
                "csrs sstatus", Instruction.csr(6, 10, 0x100, 2),
                {
                    $0[Place.mie] = 2; $0[Place.mip] = 2
                }
            ),
            (
                "csrs sie", Instruction.csr(6, 10, 0x104, 2),
                {
                    $0[Place.mip] = 2; $0[Place.mstatus] |= MachineStatus.sie
                }
            ),
            (
                "csrs sip", Instruction.csr(6, 10, 0x144, 2),
                {
                    $0[Place.mie] = 2; $0[Place.mstatus] |= MachineStatus.sie
                }
            ),
            (
                "csrs mstatus", Instruction.csr(6, 10, 0x300, 8),
                {
                    $0[Place.mie] = 2; $0[Place.mip] = 2; $0[Place.mideleg] = 0
                }
            ),
            (
                "csrs mie", Instruction.csr(6, 10, 0x304, 2),
                {
                    $0[Place.mip] = 2; $0[Place.mideleg] = 0; $0[Place.mstatus] |= MachineStatus.mpie
                }
            ),
            (
                "csrs mip", Instruction.csr(6, 10, 0x344, 2),
                {
                    $0[Place.mie] = 2; $0[Place.mideleg] = 0; $0[Place.mstatus] |= MachineStatus.mpie
                }
            ),
            (
                "csrw mideleg", Instruction.csrrw(10, 0x303, 0),
                {
                    $0[Place.mie] = 2; $0[Place.mip] = 2; $0[Place.mstatus] |= MachineStatus.mpie
                }
            ),
        ]
        for (name, word, prepare) in enablers {
            for (mode, mpp) in Self.modes.prefix(2) {
                var state = try Self.state()
                state[Place.mstatus] = mpp | MachineStatus.floatDirty
                state[Place.mideleg] = 2
                prepare(&state)
                program.add("\(name) in \(mode)", code: [word] + nops, state: state, result: 10, flags: .registers)
            }
        }
        // The CLINT's software interrupt, and a timer that is due, as machine interrupts.
        func store(_ value: UInt64, width: UInt32) -> [UInt32] {
            [Instruction.addi(12, 0, Int(Int64(bitPattern: value))), Instruction.s(0x23, width, 11, 12, 0)]
        }
        for (name, address, width, on, off, bit) in [
            ("software", 0x200_0000, 2, 1, 0, 8), ("timer", 0x200_4000, 3, 0, UInt64.max, 0x80),
        ] as [(String, UInt64, UInt32, UInt64, UInt64, UInt64)] {
            var state = try Self.state()
            state[11] = address
            program.add("\(name) off", code: store(off, width: width), state: state, flags: .registers)
            for (mode, mpp) in Self.modes {
                for enabled in [0, bit, bit | 0x222, 0xaaa] {
                    for enables in [0, MachineStatus.mpie, MachineStatus.mpie | MachineStatus.sie] {
                        var taking = state
                        taking[Place.mstatus] = mpp | MachineStatus.floatDirty | enables
                        taking[Place.mie] = enabled
                        taking[Place.mideleg] = 0x222
                        taking[Place.mip] = enabled & 0x222
                        program.add("\(name) on", code: store(on, width: width), state: state, flags: .registers)
                        program.add(
                            "\(name) interrupt in \(mode), mie \(Hex64(enabled)), mstatus \(Hex64(enables))",
                            code: nops,
                            state: taking, flags: .registers)
                        program.add("\(name) off", code: store(off, width: width), state: state, flags: .registers)
                    }
                }
            }
        }
        try program.compare(exceptions: [
            ReferenceException(
                reason:
                    "QEMU without AIA takes the lowest number (privileged 1.12, 3.1.9: MEI, MSI, MTI, SEI, SSI, STI)"
            ) {
                guard $0.group.hasPrefix("interrupts"), $0.operands.count == 4 else { return [] }
                // Operands: mstatus, mideleg, mip, mie.
                let pending = $0.operands[2] & $0.operands[3]
                func isLowest(_ qemu: UInt64, _ baton: UInt64) -> Bool {
                    let numbers = (qemu & 63, baton & 63)
                    return qemu >> 63 == 1 && baton == 1 << 63 | 9 && numbers.0 < numbers.1
                        && pending >> numbers.0 & 1 == 1 && pending >> numbers.1 & 1 == 1
                }
                var fields: ReferenceRecord.Fields = []
                if isLowest($0.qemu.mcause, $0.baton.mcause) { fields.insert(.mcause) }
                // In vectored mode the ecall that comes next is another one too.
                if isLowest($0.qemu.scause, $0.baton.scause) { fields.insert([.scause, .mepc]) }
                return fields
            }
        ])
    }
}
