import Testing

/// Integer instructions with corner operands, against QEMU.
@Suite(
    "QEMU as reference: integers", .enabled(if: ReferenceMachine.absence == nil, "\(ReferenceMachine.absence ?? "")"))
struct ReferenceIntegerTests {
    static let corners: [UInt64] = [
        0, 1, 2, 7, 31, 32, 63, 64, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff,
        0x7fff_fffe, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_fffe, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001,
        0x7fff_ffff_ffff_ffff, 0x8000_0000_0000_0000, 0x8000_0000_0000_0001, 0xffff_ffff_7fff_ffff,
        0xffff_ffff_8000_0000, 0xffff_ffff_8000_0001, 0xffff_ffff_ffff_fffe, 0xffff_ffff_ffff_ffff,
        0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa, 0x0123_4567_89ab_cdef, 0x00ff_0000_ff00_0001,
    ]

    /// rd, rs1 and rs2: apart, the same in each way, x0, and the ends of the file.
    private static let registers: [(rd: UInt32, rs1: UInt32, rs2: UInt32)] = [
        (10, 11, 12), (5, 5, 6), (6, 5, 6), (7, 8, 8), (9, 9, 9), (0, 11, 12), (31, 30, 29), (1, 2, 3), (2, 31, 1),
        (10, 0, 12), (10, 11, 0),
    ]

    /// Every pair of corners for the usual registers, a few for the others.
    private func addPairs(
        _ program: ReferenceProgram, _ name: String, _ word: (UInt32, UInt32, UInt32) -> UInt32
    ) {
        for (index, (rd, rs1, rs2)) in Self.registers.enumerated() {
            let places = Set([rs1, rs2]).subtracting([0]).sorted().map { ReferenceProgram.Place.x($0) }
            var operands: [UInt64] = []
            if index == 0 {
                for a in Self.corners { for b in Self.corners { operands += [a, b] } }
                for _ in 0..<40 { operands.append(program.nextRandom()) }
            } else {
                for round in 0..<12 * places.count {
                    let any = program.nextRandom()
                    operands.append(round % 4 == 0 ? any : Self.corners[Int(any % UInt64(Self.corners.count))])
                }
            }
            program.add(
                "\(name) x\(rd), x\(rs1), x\(rs2)", code: [word(rd, rs1, rs2)], result: Int(rd), places: places,
                operands: operands)
        }
    }

    private func addSingles(_ program: ReferenceProgram, _ name: String, _ word: (UInt32, UInt32) -> UInt32) {
        for (rd, rs1) in [(10, 11), (5, 5), (0, 7), (31, 1)] as [(UInt32, UInt32)] {
            program.add(
                "\(name) x\(rd), x\(rs1)", code: [word(rd, rs1)], result: Int(rd), places: [Int(rs1)],
                operands: Self.corners + (0..<8).map { _ in program.nextRandom() })
        }
    }

    @Test func arithmetic() throws {
        let program = ReferenceProgram("integer arithmetic")
        for operation in Instruction.registerOperations {
            addPairs(program, operation.name) {
                Instruction.r(operation.opcode, operation.funct3, operation.funct7, $0, $1, $2)
            }
        }
        for (name, opcode, funct3, immediate) in Instruction.unaryOperations {
            addSingles(program, name) { Instruction.i(opcode, funct3, $0, $1, immediate) }
        }
        for (name, opcode, funct3) in Instruction.immediateOperations {
            for immediate in [0, 1, -1, 2, 31, 0x555, 0x7ff, -0x800, -0x7ff, -0x556] {
                addSingles(program, "\(name) \(immediate)") { Instruction.i(opcode, funct3, $0, $1, immediate) }
            }
        }
        for (name, opcode, funct3, upper, amounts) in Instruction.shiftOperations {
            for amount in 0..<amounts {
                program.add(
                    "\(name) x10, x11, \(amount)", code: [Instruction.i(opcode, funct3, 10, 11, upper | amount)],
                    result: 10, places: [11], operands: Self.corners)
            }
            program.add("\(name) x0, x11, 1", code: [Instruction.i(opcode, funct3, 0, 11, upper | 1)])
        }
        for upper in [0, 1, 0x7ffff, 0x80000, 0xfffff, 0x12345] as [UInt32] {
            for rd in [0, 1, 10, 31] as [UInt32] {
                program.add("lui x\(rd), \(upper)", code: [upper << 12 | rd << 7 | 0x37], result: Int(rd))
                program.add("auipc x\(rd), \(upper)", code: [upper << 12 | rd << 7 | 0x17], result: Int(rd))
            }
        }
        try program.compare(exceptions: [
            ReferenceException(
                reason: "QEMU's ctzw counts bit 63 of a register whose other bits are 0 (Zbb: the low word counts)",
                versions: ReferenceException.beforeTen
            ) { $0.group.hasPrefix("ctzw") && $0.operands == [1 << 63] ? [.result, .x] : [] }
        ])
    }

    @Test func jumpsAndBranches() throws {
        let program = ReferenceProgram("jumps and branches")
        for (name, funct3) in Instruction.branches {
            for (rs1, rs2) in [(11, 12), (5, 5), (0, 12), (11, 0), (31, 1)] as [(UInt32, UInt32)] {
                let places = Set([rs1, rs2]).subtracting([0]).sorted().map { ReferenceProgram.Place.x($0) }
                var operands: [UInt64] = []
                for a in Self.corners {
                    if places.count == 1 { operands.append(a) } else { for b in Self.corners { operands += [a, b] } }
                }
                program.add(
                    "\(name) x\(rs1), x\(rs2), 8", code: [Instruction.branch(funct3, rs1, rs2, 8)], places: places,
                    operands: operands)
            }
        }
        // From the middle of the arena to anywhere: where it arrives is where the next trap is.
        var state = ReferenceProgram.State()
        let middle = ReferenceProgram.arena + 0x800
        state[ReferenceProgram.Place.pc] = middle
        state[ReferenceProgram.Place.poke] = middle
        func poked(_ word: UInt32) -> UInt64 { UInt64(word) | 0x9002_9002 << 32 }
        for (name, funct3) in Instruction.branches {
            for distance in [2, 4, 6, 8, 0x7fe, 0xffe, -2, -4, -6, -0x800, -0xffe, -0x1000] {
                program.add(
                    "\(name) x11, x12, \(distance)", state: state, flags: .code,
                    places: [ReferenceProgram.Place.pokeValue, 11, 12],
                    operands: [
                        poked(Instruction.branch(funct3, 11, 12, distance)), 1, 1,
                        poked(Instruction.branch(funct3, 11, 12, distance)), 1, 2,
                        poked(Instruction.branch(funct3, 11, 12, distance)), 2, 1,
                    ])
            }
        }
        for distance in [2, 4, 8, 0x7fe, 0xffe, 0x1000, 0x80000, 0xffffe, -2, -4, -0x1000, -0x80000, -0x100000] {
            for rd in [0, 1, 5, 31] as [UInt32] {
                program.add(
                    "jal x\(rd), \(distance)", state: state, flags: .code, places: [ReferenceProgram.Place.pokeValue],
                    operands: [poked(Instruction.jal(rd, distance))])
            }
        }
        for (rd, rs1) in [(1, 11), (0, 11), (11, 11), (31, 5), (5, 31), (10, 0)] as [(UInt32, UInt32)] {
            for offset in [0, 1, 2, -1, -2, 0x7ff, -0x800] {
                let targets: [UInt64] = [
                    ReferenceProgram.arena + 0x1000, ReferenceProgram.arena + 0x801, ReferenceProgram.arena + 0xffe,
                    // Nothing is there.
                    0, 0x10, 0x9000_0000, 0x1_0000_0000, 0x7fff_ffff_ffff_fffc, 0x8000_0000_0000_0000, UInt64.max - 3,
                ]
                program.add(
                    "jalr x\(rd), \(offset)(x\(rs1))", code: [Instruction.jalr(rd, rs1, offset)],
                    places: rs1 == 0 ? [] : [Int(rs1)], operands: rs1 == 0 ? [] : targets)
            }
        }
        try program.compare()
    }

    @Test func loadsAndStores() throws {
        let program = ReferenceProgram("loads and stores")
        let data = ReferenceProgram.data + 0x1000
        let pattern: UInt64 = 0x8091_a2b3_c4d5_e6f7
        program.store(data - 64, words: (0..<16).map { pattern &* (2 * $0 + 1) })
        program.store(data + 0x1000 - 64, words: (0..<16).map { pattern &* (2 * $0 + 3) })
        // Every alignment, and across the end of a page.
        let addresses = (0..<9).map { data + $0 } + (0..<9).map { data + 0xff8 + $0 }
        // Nothing is there; the last is no physical address.
        let holes: [UInt64] = [0, 0x10, 0x9000_0000, 0x8800_0000, 1 << 55, 1 << 56, UInt64.max - 7, 1 << 63]
        for (name, funct3, size) in Instruction.loads {
            for (rd, rs1) in [(10, 11), (11, 11), (0, 11), (31, 1)] as [(UInt32, UInt32)] {
                for offset in [0, 1, -8, 0x7ff, -0x800] {
                    program.add(
                        "\(name) x\(rd), \(offset)(x\(rs1))", code: [Instruction.i(0x03, funct3, rd, rs1, offset)],
                        result: Int(rd), places: [Int(rs1)],
                        operands: addresses.map { $0 &- UInt64(bitPattern: Int64(offset)) }
                            + holes.filter { $0 & UInt64(size - 1) == 0 }.map {
                                $0 &- UInt64(bitPattern: Int64(offset))
                            })
                }
            }
        }
        for (name, funct3, size) in Instruction.stores {
            var state = ReferenceProgram.State()
            state[ReferenceProgram.Place.poke] = data + 8
            state[ReferenceProgram.Place.pokeValue] = pattern
            state[ReferenceProgram.Place.watch] = data + 8
            for (rs1, rs2) in [(11, 12), (11, 0), (11, 11), (1, 31)] as [(UInt32, UInt32)] {
                for offset in [0, 1, -8, 0x7ff, -0x800] {
                    program.add(
                        "\(name) x\(rs2), \(offset)(x\(rs1))", code: [Instruction.s(0x23, funct3, rs1, rs2, offset)],
                        state: state, places: [Int(rs1)],
                        operands: ((0..<16).map { data + $0 } + holes.filter { $0 & UInt64(size - 1) == 0 })
                            .map { $0 &- UInt64(bitPattern: Int64(offset)) })
                }
            }
            // Across the end of a page: either side of it.
            for side in [data + 0xff8, data + 0x1000] {
                state[ReferenceProgram.Place.watch] = side
                program.add(
                    "\(name) x12, (x11)", code: [Instruction.s(0x23, funct3, 11, 12, 0)], state: state, places: [11],
                    operands: (0..<16).map { data + 0xff8 + $0 })
            }
        }
        for words in [[0x0ff0_000f], [0x0330_000f], [0x8330_000f], [0x0100_000f], [0x0000_100f]] as [[UInt32]] {
            program.add("fence \(Hex64(UInt64(words[0])))", code: words)
        }
        try program.compare()
    }

    @Test func atomics() throws {
        let program = ReferenceProgram("atomics")
        let address = ReferenceProgram.data + 0x100
        var state = ReferenceProgram.State()
        state[ReferenceProgram.Place.poke] = address
        state[ReferenceProgram.Place.watch] = address
        state[11] = address
        let pokeValue = ReferenceProgram.Place.pokeValue
        for (name, funct5) in Instruction.atomics {
            for width in [2, 3] as [UInt32] {
                for order in 0..<4 as Range<UInt32> {
                    var operands: [UInt64] = []
                    let corners = order == 0 ? Self.corners : Array(Self.corners.shuffled(program: program).prefix(6))
                    for a in corners { for b in corners { operands += [a, b] } }
                    program.add(
                        "\(name).\(width == 2 ? "w" : "d") order \(order)",
                        code: [Instruction.amo(width, funct5, order, 10, 11, 12)], state: state, result: 10,
                        places: [pokeValue, 12], operands: operands)
                }
                for (rd, rs1, rs2) in [(0, 11, 12), (11, 11, 12), (12, 11, 12), (11, 11, 11), (10, 11, 0)]
                    as [(UInt32, UInt32, UInt32)]
                {
                    program.add(
                        "\(name) x\(rd), x\(rs2), (x\(rs1))", code: [Instruction.amo(width, funct5, 3, rd, rs1, rs2)],
                        state: state, result: Int(rd), places: [pokeValue], operands: Self.corners)
                }
                program.add(
                    "\(name) misaligned", code: [Instruction.amo(width, funct5, 0, 10, 11, 12)], state: state,
                    result: 10,
                    places: [11], operands: (1..<8).map { address + $0 })
            }
        }
        for width in [2, 3] as [UInt32] {
            let letter = width == 2 ? "w" : "d"
            let drop = Instruction.amo(3, 3, 0, 0, 13, 0)
            state[13] = address + 64
            for order in 0..<4 as Range<UInt32> {
                let reserve = Instruction.amo(width, 2, order, 10, 11, 0)
                let conditional = Instruction.amo(width, 3, order, 14, 11, 12)
                program.add(
                    "lr.\(letter)", code: [reserve], state: state, result: 10, places: [pokeValue],
                    operands: Self.corners)
                program.add(
                    "lr.\(letter), sc.\(letter)", code: [reserve, conditional], state: state, result: 14,
                    places: [pokeValue, 12], operands: Self.corners.flatMap { [$0, ~$0] })
                program.add("sc.\(letter) alone", code: [drop, conditional], state: state, result: 14)
                program.add(
                    "sc.\(letter) again", code: [reserve, conditional, conditional], state: state, result: 14,
                    places: [12], operands: Self.corners)
                program.add(
                    "sc.\(letter) elsewhere", code: [reserve, Instruction.amo(width, 3, order, 14, 13, 12)],
                    state: state,
                    result: 14)
            }
            program.add(
                "lr.\(letter) misaligned", code: [Instruction.amo(width, 2, 0, 10, 11, 0)], state: state, result: 10,
                places: [11], operands: (1..<8).map { address + $0 })
            program.add(
                "sc.\(letter) misaligned", code: [drop, Instruction.amo(width, 3, 0, 10, 11, 12)], state: state,
                result: 10,
                places: [11], operands: (1..<8).map { address + $0 })
        }
        try program.compare(exceptions: [
            ReferenceException(
                reason: "QEMU's SC looks at the reservation before it looks at the alignment (A: it must trap)",
                versions: ReferenceException.beforeTen
            ) { $0.group.hasPrefix("sc") && $0.qemu.mcause == 3 && $0.baton.mcause == 6 ? .all : [] }
        ])
    }
}

extension Array {
    /// In an order that the program's seed decides.
    func shuffled(program: ReferenceProgram) -> Self {
        var random = ReferenceRandom(state: program.nextRandom())
        return shuffled(using: &random)
    }
}
