import Testing

/// The newer extensions of integers, memory and address translation, against a QEMU that has them. That their words are
/// no instructions without them is in the suite of encodings.
@Suite(
    "QEMU as reference: newer extensions",
    .enabled(if: ReferenceMachine.recentAbsence == nil, "\(ReferenceMachine.recentAbsence ?? "")"))
struct ReferenceExtensionTests {
    private typealias Place = ReferenceProgram.Place

    private static let page: UInt64 = 4096

    // MARK: Registers

    @Test("Zbc and Zicond") func registers() throws {
        let program = ReferenceProgram("Zbc and Zicond")
        let operations: [(name: String, funct3: UInt32, funct7: UInt32)] = [
            ("clmul", 1, 5), ("clmulr", 2, 5), ("clmulh", 3, 5), ("czero.eqz", 5, 7), ("czero.nez", 7, 7),
        ]
        for operation in operations {
            for (rd, rs1, rs2) in [(10, 11, 12), (5, 5, 6), (6, 5, 6), (9, 9, 9), (0, 11, 12), (31, 0, 1), (31, 1, 0)]
                as [(UInt32, UInt32, UInt32)]
            {
                let places = Set([rs1, rs2]).subtracting([0]).sorted().map { Place.x($0) }
                let corners = ReferenceIntegerTests.corners
                let operands =
                    places.count == 2
                    ? corners.flatMap { a in corners.flatMap { [a, $0] } } + (0..<200).map { _ in program.nextRandom() }
                    : corners
                program.add(
                    "\(operation.name) x\(rd), x\(rs1), x\(rs2)",
                    code: [Instruction.r(0x33, operation.funct3, operation.funct7, rd, rs1, rs2)], result: Int(rd),
                    places: places, operands: operands)
            }
        }
        try program.compare(on: ReferenceMachine.recent)
    }

    /// What needs a memory that is there or not, and aligned or not; the rest of Zcb is among the 16-bit instructions.
    @Test("Zcb") func compressed() throws {
        let program = ReferenceProgram("Zcb")
        let data = ReferenceProgram.data + 0x1000
        let pattern: UInt64 = 0x8091_a2b3_c4d5_e6f7
        program.store(data - 16, words: (0..<8).map { pattern &* (2 * $0 + 1) })
        program.store(data + 0xff0, words: (0..<8).map { pattern &* (2 * $0 + 3) })
        var state = ReferenceProgram.State()
        state[Place.poke] = data
        state[Place.pokeValue] = pattern
        state[Place.watch] = data
        state[9] = 0x1122_3344_5566_7788
        let addresses =
            (0..<8).map { data - 4 + $0 } + (0..<8).map { data + 0xffb + $0 } + [0, 0x9000_0000, 1 << 60, 1 << 63]
        // rs1 is x8; rd and rs2 are x9, and x8 itself.
        for register in [0, 1] as [UInt32] {
            let low = register << 2
            for (name, word) in [
                ("c.lbu", 0x8000), ("c.lhu", 0x8400), ("c.lh", 0x8440), ("c.sb", 0x8800), ("c.sh", 0x8c00),
            ] as [(String, UInt32)] {
                for offset in 0..<4 as Range<UInt32> {
                    let isByte = name == "c.lbu" || name == "c.sb"
                    if !isByte && offset & 1 != 0 { continue }
                    let bits = (offset & 1) << 6 | (offset >> 1) << 5
                    program.add(
                        "\(name) x\(8 + register), \(offset)(x8)",
                        code: [word | bits | low | UInt32(Instruction.compressedBreak) << 16], state: state, result: 9,
                        places: [8], operands: addresses)
                }
            }
        }
        for function in 0..<8 as Range<UInt32> {
            program.add(
                "Zcb unary \(function)", code: [0x9c61 | function << 2 | UInt32(Instruction.compressedBreak) << 16],
                result: 8, places: [8], operands: ReferenceIntegerTests.corners)
        }
        for register in [0, 1] as [UInt32] {
            program.add(
                "c.mul x8, x\(8 + register)",
                code: [0x9c41 | register << 2 | UInt32(Instruction.compressedBreak) << 16], result: 8,
                places: register == 0 ? [8] : [8, 9],
                operands: ReferenceIntegerTests.corners.flatMap { a in
                    register == 0 ? [a] : ReferenceIntegerTests.corners.flatMap { [a, $0] }
                })
        }
        try program.compare(on: ReferenceMachine.recent)
    }

    // MARK: Atomics

    @Test("Zacas") func compareAndSwap() throws {
        let program = ReferenceProgram("Zacas")
        let address = ReferenceProgram.data + 0x100
        var state = ReferenceProgram.State()
        state[11] = address
        state[Place.poke] = address
        state[Place.secondPoke] = address + 8
        let (value, second) = (Place.pokeValue, Place.secondPokeValue)
        let corners: [UInt64] = [
            0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_ffff_8000_0000, .max, 1 << 63, 0x0123_4567_89ab_cdef,
        ]
        for (width, letter) in [(2, "w"), (3, "d"), (4, "q")] as [(UInt32, String)] {
            func word(_ order: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32) -> UInt32 {
                Instruction.amo(width, 5, order, rd, rs1, rs2)
            }
            for watched in width == 4 ? [address, address + 8] : [address] {
                state[Place.watch] = watched
                for order in 0..<4 as Range<UInt32> {
                    for (rd, rs2) in [(12, 14), (12, 12), (0, 14), (12, 0), (0, 0), (30, 2)] as [(UInt32, UInt32)] {
                        var places = [value]
                        if rd != 0 { places.append(Place.x(rd)) }
                        var operands: [UInt64] = []
                        for a in corners {
                            for b in rd == 0 ? [0] : corners { operands += rd == 0 ? [a] : [a, b] }
                        }
                        state[Int(rd) + 1] = 0x55
                        state[Place.secondPokeValue] = rd == 0 ? 0 : 0x55
                        program.add(
                            "amocas.\(letter) x\(rd), x\(rs2) order \(order)", code: [word(order, rd, 11, rs2)],
                            state: state, result: Int(rd), places: places, operands: operands)
                    }
                }
                // The second half decides.
                state[Place.pokeValue] = 7
                state[12] = 7
                program.add(
                    "amocas.\(letter), second half", code: [word(0, 12, 11, 14)], state: state, result: 13,
                    places: [13, second], operands: corners.flatMap { [$0, $0, $0, ~$0] })
                program.add(
                    "amocas.\(letter), from memory's address", code: [word(0, 10, 10, 14)], state: state, result: 10,
                    places: [10], operands: [address])
            }
            for (rd, rs2) in [(13, 14), (12, 15), (13, 15), (1, 2), (31, 30), (30, 31)] as [(UInt32, UInt32)] {
                program.add(
                    "amocas.\(letter) x\(rd), x\(rs2)", code: [word(0, rd, 11, rs2)], state: state, result: Int(rd),
                    places: [value], operands: corners)
            }
            program.add(
                "amocas.\(letter) misaligned", code: [word(0, 12, 11, 14)], state: state, result: 12, places: [11],
                operands: (1..<16).map { address + $0 })
            program.add(
                "amocas.\(letter), nothing there", code: [word(0, 12, 11, 14)], state: state, result: 12, places: [11],
                operands: [0, 0x9000_0000, 1 << 60])
        }
        try program.compare(on: ReferenceMachine.recent)
    }

    // MARK: Cache blocks

    private static let blocks: [(name: String, function: UInt32)] = [
        ("cbo.inval", 0), ("cbo.clean", 1), ("cbo.flush", 2), ("cbo.zero", 4),
    ]
    private static func block(_ function: UInt32, _ rs1: UInt32) -> UInt32 {
        Instruction.i(0x0f, 2, 0, rs1, Int(function))
    }

    /// Who may, by menvcfg and senvcfg; which bytes; and where there is no memory, or another kind.
    @Test("Zicbom, Zicboz and Zicbop") func cacheBlocks() throws {
        let program = ReferenceProgram("cache blocks")
        let data = ReferenceProgram.data + 0x1000
        for (name, function) in Self.blocks {
            let code = [Self.block(function, 11)]
            for (mode, mpp) in [
                ("M", MachineStatus.machine), ("S", MachineStatus.supervisor), ("U", MachineStatus.user),
            ] {
                var state = ReferenceProgram.State()
                state[Place.mstatus] = mpp | MachineStatus.floatDirty
                state[Place.poke] = data + 0x40
                state[Place.pokeValue] = .max
                state[Place.watch] = data + 0x40
                state[11] = data + 0x47
                let settings: [UInt64] = [0, 1, 0x10, 0x20, 0x30, 0x40, 0x80, 0xc0, 0xf1]
                program.add(
                    "\(name) in \(mode)", code: code, state: state, flags: .registers,
                    places: [Place.menvcfg, Place.senvcfg],
                    operands: settings.flatMap { a in settings.flatMap { [a, $0] } })
            }
            for watched in [0x38, 0x40, 0x48, 0x70, 0x78, 0x80] as [UInt64] {
                var state = ReferenceProgram.State()
                state[Place.poke] = data + watched
                state[Place.pokeValue] = 0x1122_3344_5566_7788
                state[Place.watch] = data + watched
                program.add(
                    "\(name) of +0x40, bytes at \(Hex64(watched))", code: code, state: state, places: [11],
                    operands: [0x3f, 0x40, 0x41, 0x47, 0x5c, 0x7f, 0x80].map { data + $0 })
            }
            program.add(
                "\(name) at the end of a page", code: code, places: [11],
                operands: [data + 0xfc0, data + 0xfff, data + 0x1000])
        }
        // Code that is zeroed is not run any more.
        var state = ReferenceProgram.State()
        let middle = ReferenceProgram.arena + 0x800
        state[Place.pc] = middle
        state[Place.poke] = middle
        state[Place.secondPoke] = middle + 0x40
        state[Place.secondPokeValue] = 0x9002_9002_9002_9002
        state[11] = middle + 0x40
        state[12] = middle + 0x40
        program.add(
            "cbo.zero of code", state: state, flags: .code, places: [Place.pokeValue],
            operands: [UInt64(Self.block(4, 11)) | UInt64(Instruction.jalr(1, 12)) << 32])
        program.fill(middle + 0x48, count: 0x38, with: Instruction.compressedBreak)
        // Prefetches, and what looks like them.
        for immediate in 0..<32 {
            for base in [data, 0, 0x9000_0000, 1 << 62] as [UInt64] {
                program.add(
                    "prefetch \(immediate)", code: [Instruction.i(0x13, 6, 0, 11, immediate)], places: [11],
                    operands: [base])
            }
        }
        try program.compare(on: ReferenceMachine.recent)
    }

    /// Under page tables: each combination of permissions, in S- and U-mode.
    @Test("Zicbom and Zicboz under page tables") func translatedBlocks() throws {
        let program = ReferenceProgram("cache blocks under page tables")
        ReferencePagingTests.addTables(program)
        let satp = ReferencePagingTests.schemes[0].satp
        for (name, function) in Self.blocks {
            for mpp in [MachineStatus.supervisor, MachineStatus.user] {
                var state = try ReferencePagingTests.state(program, [Self.block(function, 11)], mode: mpp, satp: satp)
                state[Place.menvcfg] |= 0xf0
                state[Place.senvcfg] = 0xf0
                state[Place.poke] = ReferencePagingTests.last
                state[Place.watch] = ReferencePagingTests.last
                state[11] = ReferencePagingTests.region + 0x47
                program.add(
                    "\(name), MPP \(mpp >> 11)", state: state, flags: [.translation, .registers],
                    places: [Place.pokeValue, Place.menvcfg],
                    operands: (0..<256).flatMap { flags -> [UInt64] in
                        [1 << 61 | 0xf0, 0xf0].flatMap {
                            [ReferencePagingTests.leaf(ReferencePagingTests.page, flags), $0]
                        }
                    })
            }
        }
        try program.compare(on: ReferenceMachine.recent, exceptions: [Self.blockAddress])
    }

    /// With PMP entries around and in the block.
    @Test("Zicbom and Zicboz with PMP") func protectedBlocks() throws {
        let program = ReferenceProgram("cache blocks with PMP")
        let data = ReferenceProgram.data + 0x2000
        for (name, function) in Self.blocks {
            for mpp in [MachineStatus.machine, MachineStatus.supervisor] {
                var state = ReferenceProgram.State()
                state[Place.mstatus] = mpp | MachineStatus.floatDirty
                state[Place.menvcfg] = 0xf0
                state[11] = data + 0x47
                // NAPOT of 64 bytes and of the page, NA4.
                state[Place.pmpAddress(0)] = (data + 0x40) >> 2 | 7
                state[Place.pmpAddress(1)] = data >> 2 | 0x1ff
                for (shape, address) in [
                    ("block", (data + 0x40) >> 2 | 7), ("page", data >> 2 | 0x1ff), ("half", (data + 0x40) >> 2 | 3),
                ] as [(String, UInt64)] {
                    state[Place.pmpAddress(0)] = address
                    program.add(
                        "\(name), PMP of the \(shape), MPP \(mpp >> 11)", code: [Self.block(function, 11)],
                        state: state, flags: [.registers, .protection], places: [Place.pmpConfiguration],
                        operands: (0..<8).map { 0x18 | $0 })
                }
            }
        }
        try program.compare(on: ReferenceMachine.recent, exceptions: [Self.blockAddress])
    }

    private static let blockAddress = ReferenceException(
        reason: "mtval of a cache-block instruction is rs1's value (CMO 1.0, 2.5.3)", isRequired: false
    ) {
        var fields: ReferenceRecord.Fields = []
        guard $0.group.hasPrefix("cbo") else { return fields }
        if $0.qemu.mtval == $0.baton.mtval & ~63 { fields.insert(.mtval) }
        if $0.qemu.stval == $0.baton.stval & ~63 { fields.insert(.stval) }
        return fields
    }

    // MARK: Waiting and invalidation

    @Test("Zawrs and Svinval") func waitingAndInvalidation() throws {
        let program = ReferenceProgram("Zawrs and Svinval")
        let words: [(String, UInt32)] = [
            ("wrs.nto", 0x00d0_0073), ("wrs.sto", 0x01d0_0073), ("sfence.w.inval", 0x1800_0073),
            ("sfence.inval.ir", 0x1810_0073), ("sinval.vma", 0x1605_8073), ("sinval.vma x11, x12", 0x16c5_8073),
            ("sinval.vma x0, x0", 0x1600_0073),
        ]
        for (name, word) in words {
            for mpp in [MachineStatus.machine, MachineStatus.supervisor, MachineStatus.user] {
                for bits in [0, MachineStatus.tw, MachineStatus.tvm] {
                    var state = ReferenceProgram.State()
                    state[Place.mstatus] = mpp | bits | MachineStatus.floatDirty
                    program.add("\(name), MPP \(mpp >> 11), \(Hex64(bits))", code: [word], state: state)
                }
            }
        }
        try program.compare(
            on: ReferenceMachine.recent,
            exceptions: [
                ReferenceException(
                    reason: "QEMU's mtval of a wrs.nto that may not wait is 0 (privileged 1.12, 3.1.16: it may be)",
                    isRequired: false
                ) { $0.group.hasPrefix("wrs.nto") && $0.qemu.mtval == 0 ? .mtval : [] }
            ])
    }
}
