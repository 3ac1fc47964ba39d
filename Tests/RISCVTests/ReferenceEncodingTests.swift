import Testing

/// Every 16-bit instruction, and 32-bit words in each corner of the encoding, against QEMU: what is an instruction and
/// what is not, what it does, and what mtval says of one that is illegal.
@Suite(
    "QEMU as reference: encodings", .enabled(if: ReferenceMachine.absence == nil, "\(ReferenceMachine.absence ?? "")"))
struct ReferenceEncodingTests {
    private typealias Place = ReferenceProgram.Place

    private static let middle = ReferenceProgram.arena + 0x800
    /// Registers of the first state point here.
    private static let data = ReferenceProgram.data + 0x1000

    /// Code comes from the operands; each register points to a doubleword of its own.
    private static func pointers(_ program: ReferenceProgram) -> ReferenceProgram.State {
        var state = ReferenceProgram.State()
        state[Place.pc] = middle
        state[Place.poke] = middle
        for register in 1..<32 { state[register] = data + UInt64(register) * 8 }
        for register in 0..<32 { state[32 + register] = ReferenceFloatTests.sample(program.nextRandom()) }
        return state
    }

    private static func fillData(_ program: ReferenceProgram) {
        program.store(ReferenceProgram.data, words: (0..<1024).map { _ in program.nextRandom() })
    }

    /// All of the data, so that stores to wrong places are found.
    private static func addData(_ program: ReferenceProgram) {
        var state = ReferenceProgram.State()
        state[11] = ReferenceProgram.data
        program.add(
            "the data afterwards", code: [Instruction.ld(10, 11)], state: state, result: 10, places: [11],
            operands: (0..<1024).map { ReferenceProgram.data + UInt64($0) * 8 })
    }

    @Test(arguments: ReferenceMachine.all) func compressed(_ reference: ReferenceMachine) throws {
        try compareCompressed(on: reference, flags: [])
    }

    private func compareCompressed(on reference: ReferenceMachine?, flags: [String]) throws {
        let program = ReferenceProgram("16-bit instructions \(flags.joined(separator: ","))")
        program.flags = flags
        Self.fillData(program)
        let state = Self.pointers(program)
        var others = state
        func code(_ half: UInt16) -> UInt64 { UInt64(half) | 0x9002_9002_9002 << 16 }
        var plain: [UInt64] = []
        var jumps: [UInt64] = []
        var arithmetic: [UInt64] = []
        for half in UInt16.min...UInt16.max where half & 3 != 3 {
            let function = half >> 13
            switch half & 3 {
            case 1 where function == 5 || function >= 6:
                // c.j, c.beqz, c.bnez; one to itself does not end.
                let distance = function == 5 ? half & 0x1ffc : half & 0x1c7c
                if distance != 0 { jumps.append(code(half)) }
            case 2 where function == 4 && half >> 2 & 31 == 0 && half >> 7 & 31 != 0:
                // c.jr and c.jalr, to the data, which is illegal or something that comes back: not here.
                break
            default:
                plain.append(code(half))
                let isLoadOrStore = half & 3 != 1 && function != 0 && !(half & 3 == 2 && function == 4)
                if !isLoadOrStore { arithmetic.append(code(half)) }
            }
        }
        program.add("16 bits", state: state, flags: .code, places: [Place.pokeValue], operands: plain)
        program.add("16-bit jumps, not zero", state: state, flags: .code, places: [Place.pokeValue], operands: jumps)
        for register in 1..<32 { others[register] = 0 }
        program.add("16-bit jumps, zero", state: others, flags: .code, places: [Place.pokeValue], operands: jumps)
        for _ in 0..<2 {
            for register in 1..<32 {
                let corners = ReferenceIntegerTests.corners
                others[register] = corners[Int(program.nextRandom() % UInt64(corners.count))]
            }
            program.add(
                "16-bit arithmetic", state: others, flags: .code, places: [Place.pokeValue], operands: arithmetic)
        }
        for register in 1..<32 as Range<UInt16> {
            for link in [0, 1] as [UInt16] {
                program.add(
                    link == 0 ? "c.jr x\(register)" : "c.jalr x\(register)", state: state, result: 1, flags: .code,
                    places: [Int(register), Place.pokeValue],
                    operands: [ReferenceProgram.arena, ReferenceProgram.arena + 0x101, 0x10, 0x9000_0000, 1 << 63]
                        .flatMap { [$0, code(0x8002 | link << 12 | register << 7)] })
            }
        }
        Self.addData(program)
        try program.compare(on: reference)
    }

    @Test(arguments: ReferenceMachine.all) func words(_ reference: ReferenceMachine) throws {
        try compareWords(on: reference, flags: [])
    }

    /// Each extension away, and all of its instructions with it; but for those that the engine is made of (M, F,
    /// D, Zifencei).
    @Test(
        .enabled(if: ReferenceMachine.recentAbsence == nil, "\(ReferenceMachine.recentAbsence ?? "")"),
        arguments: [
            ["zacas=off", "zawrs=off", "a=off"], ["zfa=off", "zfhmin=off"],
            [
                "b=off", "zba=off", "zbb=off", "zbs=off", "zbc=off", "zicond=off", "zicbom=off", "zicboz=off",
                "svinval=off", "zawrs=off", "zacas=off", "zcb=off",
            ],
        ])
    func without(_ flags: [String]) throws {
        try compareWords(on: ReferenceMachine.recent, flags: flags)
        try compareCompressed(on: ReferenceMachine.recent, flags: flags)
    }

    private func compareWords(on reference: ReferenceMachine?, flags: [String]) throws {
        let program = ReferenceProgram("32-bit words \(flags.joined(separator: ","))")
        program.flags = flags
        Self.fillData(program)
        var groups: [(name: String, words: [UInt32])] = []
        func any(_ limit: UInt32) -> UInt32 { UInt32(truncatingIfNeeded: program.nextRandom() >> 20) % limit }
        func register() -> UInt32 { any(32) }
        /// A base register: not x0.
        func base() -> UInt32 { any(31) + 1 }
        func add(_ name: String, _ words: [UInt32]) { groups.append((name, words)) }

        for (name, opcode) in [("LOAD", 0x03), ("LOAD-FP", 0x07)] as [(String, UInt32)] {
            add(
                name,
                (0..<8).flatMap { function in
                    (0..<40).map { _ in Instruction.i(opcode, function, register(), base(), Int(any(4096))) }
                })
        }
        for (name, opcode) in [("STORE", 0x23), ("STORE-FP", 0x27)] as [(String, UInt32)] {
            add(
                name,
                (0..<8).flatMap { function in
                    (0..<40).map { _ in Instruction.s(opcode, function, base(), register(), Int(any(4096))) }
                })
        }
        for opcode in [0x0b, 0x2b, 0x5b, 0x7b, 0x57, 0x77, 0x6b, 0x1f, 0x3f, 0x5f, 0x7f] as [UInt32] {
            add("opcode \(Hex64(UInt64(opcode)))", (0..<400).map { _ in any(1 << 25) << 7 | opcode })
        }
        add(
            "MISC-MEM",
            (0..<8).flatMap { function in
                (0..<200).map { _ in Instruction.i(0x0f, function, register(), base(), Int(any(4096))) }
            } + (0..<4096).map { Instruction.i(0x0f, 0, 0, 0, $0) })
        for (name, opcode) in [("OP-IMM", 0x13), ("OP-IMM-32", 0x1b)] as [(String, UInt32)] {
            for function in 0..<8 as Range<UInt32> {
                let isShift = function & 3 == 1
                add(
                    "\(name) \(function)",
                    (0..<(isShift ? 4096 : 256)).map {
                        Instruction.i(opcode, function, register(), register(), isShift ? $0 : Int(any(4096)))
                    })
            }
        }
        for (name, opcode) in [("OP", 0x33), ("OP-32", 0x3b)] as [(String, UInt32)] {
            add(
                name,
                (0..<1024 * 4).map {
                    Instruction.r(
                        opcode, UInt32($0) & 7, UInt32($0) >> 3 & 127, register(), register(),
                        $0 >> 10 == 0 ? 0 : register())
                })
        }
        add(
            "AMO",
            (0..<1024 * 3).map {
                Instruction.r(
                    0x2f, UInt32($0) & 7, UInt32($0) >> 3 & 127, register(), base(), $0 >> 10 == 0 ? 0 : register())
            })
        for function in 0..<128 as Range<UInt32> {
            add(
                "OP-FP \(function)",
                (0..<256).map {
                    Instruction.r(0x53, UInt32($0) & 7, function, register(), register(), UInt32($0) >> 3)
                })
        }
        for (name, opcode) in [("MADD", 0x43), ("MSUB", 0x47), ("NMSUB", 0x4b), ("NMADD", 0x4f)] as [(String, UInt32)] {
            add(
                name,
                (0..<32 * 16).map {
                    Instruction.r(
                        opcode, UInt32($0) & 7, UInt32($0) >> 3 & 3 | register() << 2, register(), register(),
                        register())
                })
        }
        add(
            "BRANCH",
            (0..<64).map { Instruction.branch(2 + UInt32($0) & 1, register(), register(), Int(any(2048)) * 2) })
        add(
            "JALR",
            (1..<8).flatMap { function in
                (0..<16).map { _ in Instruction.i(0x67, function, register(), register(), Int(any(4096))) }
            })
        // mret, sret and wfi are no matter of one word.
        let controlled = [0x102, 0x302, 0x105]
        add("SYSTEM", (0..<4096).filter { !controlled.contains($0) }.map { Instruction.i(0x73, 0, 0, 0, $0) })
        add("SYSTEM with registers", (0..<4096).map { Instruction.i(0x73, 0, any(2) * register(), base(), $0) })
        add("SYSTEM 4", (0..<4096).map { Instruction.i(0x73, 4, register(), base(), $0) })
        add(
            "any",
            (0..<40_000).compactMap { _ in
                let word = any(1 << 30) << 2 | 3
                // What jumps, waits or depends on CSRs has its own tests; what addresses by x0 reaches no data.
                switch word & 0x7f {
                case 0x63, 0x67, 0x6f, 0x73: return nil
                case 0x03, 0x07, 0x23, 0x27, 0x2f, 0x0f: return word >> 15 & 31 == 0 ? nil : word
                default: return word
                }
            })

        let ebreak = UInt64(Instruction.ebreak) << 32
        for (name, words) in groups {
            var state = Self.pointers(program)
            if ["OP", "OP-32", "any"].contains(name) || name.hasPrefix("OP-IMM") {
                if name != "any" { for register in 1..<32 { state[register] = program.nextRandom() } }
            }
            program.add(
                name, state: state, flags: .code, places: [Place.pokeValue], operands: words.map { UInt64($0) | ebreak }
            )
        }
        Self.addData(program)
        try program.compare(on: reference)
    }
}
