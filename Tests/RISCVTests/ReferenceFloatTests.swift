import Testing

/// F and D with operands of every class, in all rounding modes, against QEMU.
@Suite(
    "QEMU as reference: floating point",
    .enabled(if: ReferenceMachine.absence == nil, "\(ReferenceMachine.absence ?? "")"))
struct ReferenceFloatTests {
    private typealias Place = ReferenceProgram.Place

    /// One precision: its encoding, and operands as they are in a register.
    struct Format {
        let name: String
        let fmt: UInt32
        let operands: [UInt64]
        /// Fewer, for three at a time.
        let few: [UInt64]

        /// - Parameters: widths of fraction and exponent.
        init(_ name: String, fmt: UInt32, fraction: UInt64, exponent: UInt64, box: UInt64) {
            self.name = name
            self.fmt = fmt
            let sign: UInt64 = 1 << (fraction + exponent)
            let maxExponent: UInt64 = (1 << exponent) - 1
            let bias = maxExponent >> 1
            let one = bias << fraction
            let infinity = maxExponent << fraction
            let quiet: UInt64 = 1 << (fraction - 1)
            let ones: UInt64 = (1 << fraction) - 1
            let positive: [UInt64] = [
                0, 1, 2, ones, quiet,  // subnormal
                1 << fraction, 1 << fraction | 1, 1 << fraction | ones,  // the smallest that are normal
                one, one + 1, one - 1, one + 1 << fraction, one + quiet,  // 1 and its neighbours, 2, 1.5
                (bias + fraction) << fraction, (bias + fraction) << fraction | 1,
                (bias + fraction + 1) << fraction | ones,
                (bias - fraction) << fraction, (bias - fraction - 1) << fraction | 1,
                (bias + 31) << fraction, (bias + 30) << fraction | ones, (bias + 32) << fraction,
                (bias + 63) << fraction, (bias + 62) << fraction | ones, (bias + 64) << fraction,
                (bias - 1) << fraction, (bias - 2) << fraction | ones,
                (maxExponent - 1) << fraction | ones, (maxExponent - 1) << fraction, infinity,
                infinity | 1, infinity | quiet, infinity | ones, infinity | quiet >> 1,  // NaNs
            ]
            operands = positive.flatMap { [$0 | box, $0 | sign | box] }
            few = [
                0, sign, 1, sign | ones, 1 << fraction, one, sign | one, one + 1, sign | (one + quiet),
                (bias - fraction) << fraction, (maxExponent - 1) << fraction | ones, infinity, sign | infinity,
                infinity | 1, infinity | quiet,
            ].map { $0 | box }
        }
    }

    static let formats = [
        Format("s", fmt: 0, fraction: 23, exponent: 8, box: 0xffff_ffff_0000_0000),
        Format("d", fmt: 1, fraction: 52, exponent: 11, box: 0),
    ]

    /// Registers that do not hold a single-precision value.
    static let unboxed: [UInt64] = [
        0x0000_0000_3f80_0000, 0xffff_fffe_3f80_0000, 0x7fff_ffff_3f80_0000, 0x3ff0_0000_0000_0000,
        0xffff_fffe_7f80_0001,
    ]

    /// A number whose exponent is near 1 or anywhere, and whose fraction has long runs; single or double.
    static func sample(_ any: UInt64) -> UInt64 {
        var random = ReferenceRandom(state: any)
        func run(_ width: UInt64) -> UInt64 {
            let mask: UInt64 = (1 << width) - 1
            switch random.next() % 4 {
            case 0: return random.next() & mask
            case 1: return (mask << (random.next() % width)) & mask
            case 2: return mask >> (random.next() % width)
            default: return (1 << (random.next() % width)) ^ (random.next() & 1 == 0 ? 0 : mask)
            }
        }
        let sign = random.next() & 1
        let isNear = random.next() % 3 != 0
        if any & 1 == 0 {
            let exponent = isNear ? 1023 - 30 + random.next() % 60 : random.next() & 0x7ff
            return sign << 63 | exponent << 52 | run(52)
        }
        let exponent = isNear ? 127 - 14 + random.next() % 28 : random.next() & 0xff
        return 0xffff_ffff_0000_0000 | sign << 31 | exponent << 23 | run(23)
    }

    private func samples(_ format: Format, _ count: Int, _ program: ReferenceProgram) -> [UInt64] {
        (0..<count).map { _ in Self.sample(program.nextRandom() & ~1 | (format.fmt == 0 ? 1 : 0)) }
    }

    /// Every way to name a rounding mode: in the instruction, by frm, reserved ones; with flags clear and, where
    /// instructions take another way then, with NX set before.
    static let roundings: [(field: UInt32, fcsr: UInt64, isFull: Bool)] =
        (0..<5).map { ($0, 0, true) } + [(0, 1, true), (7, 1, true), (7, 0x1f, false)]
        + (0..<8).map { (7, $0 << 5, false) } + (1..<5).map { (7, $0 << 5 | 1, false) }
        + [(5, 0, false), (6, 0, false), (1, 0xe0, false)]

    private func fill(_ program: ReferenceProgram, _ format: Format, _ isFull: Bool) -> [UInt64] {
        var result: [UInt64] = []
        let operands = format.operands + (format.fmt == 0 ? Self.unboxed : [])
        if isFull {
            for a in operands { for b in operands { result += [a, b] } }
            for _ in 0..<300 { result += samples(format, 2, program) }
        } else {
            for a in format.few { for b in format.few { result += [a, b] } }
            for _ in 0..<60 { result += samples(format, 2, program) }
        }
        return result
    }

    private func state(_ fcsr: UInt64) -> ReferenceProgram.State {
        var state = ReferenceProgram.State()
        state[Place.fcsr] = fcsr
        return state
    }

    private func addBinary(_ program: ReferenceProgram, _ format: Format) {
        for (name, function) in [("fadd", 0), ("fsub", 1), ("fmul", 2), ("fdiv", 3)] as [(String, UInt32)] {
            for (field, fcsr, isFull) in Self.roundings {
                program.add(
                    "\(name).\(format.name) rm \(field) fcsr \(Hex64(fcsr))",
                    code: [Instruction.r(0x53, field, function << 2 | format.fmt, 10, 11, 12)], state: state(fcsr),
                    result: 42, places: [Place.f(11), Place.f(12)], operands: fill(program, format, isFull))
            }
        }
        let exact: [(String, UInt32, UInt32, Bool)] = [
            ("fsgnj", 4, 0, false), ("fsgnjn", 4, 1, false), ("fsgnjx", 4, 2, false), ("fmin", 5, 0, false),
            ("fmax", 5, 1, false), ("fle", 20, 0, true), ("flt", 20, 1, true), ("feq", 20, 2, true),
        ]
        for (name, function, field, toInteger) in exact {
            for fcsr in [0, 1] as [UInt64] {
                program.add(
                    "\(name).\(format.name) fcsr \(fcsr)",
                    code: [Instruction.r(0x53, field, function << 2 | format.fmt, 10, 11, 12)], state: state(fcsr),
                    result: toInteger ? 10 : 42, places: [Place.f(11), Place.f(12)],
                    operands: fill(program, format, fcsr == 0))
            }
        }
    }

    private func addUnary(_ program: ReferenceProgram, _ format: Format) {
        let operands = format.operands + Self.unboxed + samples(format, 200, program)
        let integers =
            ReferenceIntegerTests.corners + (0..<60).map { _ in program.nextRandom() >> (program.nextRandom() & 63) }
        for (field, fcsr, _) in Self.roundings {
            let suffix = ".\(format.name) rm \(field) fcsr \(Hex64(fcsr))"
            func word(_ function: UInt32, _ second: UInt32) -> [UInt32] {
                [Instruction.r(0x53, field, function << 2 | format.fmt, 10, 11, second)]
            }
            program.add(
                "fsqrt" + suffix, code: word(11, 0), state: state(fcsr), result: 42, places: [Place.f(11)],
                operands: operands)
            for (second, name) in ["w", "wu", "l", "lu"].enumerated() {
                program.add(
                    "fcvt.\(name)" + suffix, code: word(24, UInt32(second)), state: state(fcsr), result: 10,
                    places: [Place.f(11)], operands: operands)
                program.add(
                    "fcvt\(suffix) from \(name)", code: word(26, UInt32(second)), state: state(fcsr), result: 42,
                    places: [11], operands: integers)
            }
            let other = Self.formats[Int(1 - format.fmt)]
            program.add(
                "fcvt\(suffix) from \(other.name)", code: word(8, other.fmt), state: state(fcsr), result: 42,
                places: [Place.f(11)], operands: other.operands + Self.unboxed + samples(other, 200, program))
        }
        func plain(
            _ name: String, _ function: UInt32, _ field: UInt32, result: Int, places: [Int], _ operands: [UInt64]
        ) {
            program.add(
                "\(name).\(format.name)", code: [Instruction.r(0x53, field, function << 2 | format.fmt, 10, 11, 0)],
                result: result, places: places, operands: operands)
        }
        plain("fclass", 28, 1, result: 10, places: [Place.f(11)], operands)
        plain("fmv.x", 28, 0, result: 10, places: [Place.f(11)], operands)
        plain("fmv to f", 30, 0, result: 42, places: [11], integers)
    }

    private func addFused(_ program: ReferenceProgram, _ format: Format) {
        let names = ["fmadd", "fmsub", "fnmsub", "fnmadd"]
        for (index, name) in names.enumerated() {
            for (field, fcsr, isFull) in Self.roundings {
                var operands: [UInt64] = []
                if isFull && index == 0 || field == 0 && fcsr == 1 {
                    for a in format.few { for b in format.few { for c in format.few { operands += [a, b, c] } } }
                }
                for _ in 0..<(isFull ? 400 : 60) { operands += samples(format, 3, program) }
                // Products that nearly cancel the addend.
                for _ in 0..<(isFull ? 200 : 20) {
                    let a = samples(format, 1, program)[0]
                    operands += [
                        a, format.few[5], a ^ (format.fmt == 0 ? 1 << 31 : 1 << 63) ^ (program.nextRandom() & 1),
                    ]
                }
                for value in format.few { operands += [value, format.few[5], format.few[1]] }
                program.add(
                    "\(name).\(format.name) rm \(field) fcsr \(Hex64(fcsr))",
                    code: [
                        Instruction.r(0x43 | UInt32(index) << 2, field, 13 << 2 | format.fmt, 10, 11, 12)
                    ], state: state(fcsr), result: 42, places: [Place.f(11), Place.f(12), Place.f(13)],
                    operands: operands)
            }
        }
    }

    @Test(arguments: [0, 1]) func arithmetic(_ format: Int) throws {
        let program = ReferenceProgram("floating-point arithmetic, \(["single", "double"][format])")
        addBinary(program, Self.formats[format])
        try program.compare()
    }

    @Test func conversionsAndRoots() throws {
        let program = ReferenceProgram("floating-point conversions and roots")
        for format in Self.formats { addUnary(program, format) }
        try program.compare()
    }

    @Test func fusedMultiplyAdd() throws {
        let program = ReferenceProgram("fused multiply-add")
        for format in Self.formats { addFused(program, format) }
        try program.compare()
    }

    @Test func registersAndMemory() throws {
        let program = ReferenceProgram("floating-point registers and memory")
        let data = ReferenceProgram.data + 0x1000
        program.store(data, words: (0..<16).map { _ in program.nextRandom() })
        var storing = ReferenceProgram.State()
        storing[Place.poke] = data + 8
        storing[Place.pokeValue] = 0x1122_3344_5566_7788
        storing[Place.watch] = data + 8
        for (function, size) in [(2, 4), (3, 8)] as [(UInt32, Int)] {
            for register in 0..<32 as Range<UInt32> {
                program.add(
                    "load of \(size) bytes to f\(register)", code: [Instruction.i(0x07, function, register, 11, 16)],
                    result: 32 + Int(register), places: [11], operands: (0..<9).map { data + $0 } + [0, 0x9000_0000])
                program.add(
                    "store of \(size) bytes from f\(register)",
                    code: [Instruction.s(0x27, function, 11, register, -16)],
                    state: storing, places: [11], operands: (0..<9).map { data + 16 + $0 } + [0x10, 0x9000_0010])
            }
        }
        // Off, Initial, Clean, Dirty: whether it traps. Dirty is where it may be only kept.
        for mode in [MachineStatus.machine, MachineStatus.supervisor, MachineStatus.user] {
            for status in 0..<4 as Range<UInt64> {
                var state = ReferenceProgram.State()
                state[Place.mstatus] = mode | status << 13
                state[11] = data
                let words: [(String, UInt32)] = [
                    ("fadd.d", Instruction.r(0x53, 0, 1, 10, 11, 12)),
                    ("fadd.s", Instruction.r(0x53, 0, 0, 10, 11, 12)),
                    ("fmadd.d", Instruction.r(0x43, 0, 13 << 2 | 1, 10, 11, 12)),
                    ("fsgnj.d", Instruction.r(0x53, 0, 0x11, 10, 11, 12)),
                    ("feq.d", Instruction.r(0x53, 2, 0x51, 10, 11, 12)),
                    ("fmv.x.d", Instruction.r(0x53, 0, 0x71, 10, 11, 0)),
                    ("fmv.d.x", Instruction.r(0x53, 0, 0x79, 10, 11, 0)),
                    ("flw", Instruction.i(0x07, 2, 10, 11, 0)), ("fld", Instruction.i(0x07, 3, 10, 11, 0)),
                    ("fsw", Instruction.s(0x27, 2, 11, 10, 0)), ("fsd", Instruction.s(0x27, 3, 11, 10, 0)),
                    ("fadd.d rm 5", Instruction.r(0x53, 5, 1, 10, 11, 12)),
                    ("read fflags", Instruction.csrrs(10, 1, 0)), ("read frm", Instruction.csrrs(10, 2, 0)),
                    ("read fcsr", Instruction.csrrs(10, 3, 0)), ("write fflags", Instruction.csrrw(10, 1, 12)),
                    ("write frm", Instruction.csrrw(10, 2, 12)), ("write fcsr", Instruction.csrrw(10, 3, 12)),
                    ("c.fld", 0x0001_2188), ("c.fsd", 0x0001_a188), ("c.fldsp", 0x0001_2502), ("c.fsdsp", 0x0001_a02a),
                ]
                for (name, word) in words {
                    state[2] = data
                    program.add(
                        "\(name), mode \(mode >> 11), FS \(status)", code: [word], state: state, result: 10,
                        compared: status == 0 || status == 3 ? .all : .all.subtracting(.mstatus))
                }
            }
        }
        // frm and fflags through each of their CSRs.
        for number in 1...3 {
            for function in [1, 2, 3, 5, 6, 7] as [UInt32] {
                var state = ReferenceProgram.State()
                state[Place.fcsr] = 0xaa
                program.add(
                    "CSR \(number), function \(function)",
                    code: [Instruction.csr(function, 10, number, 12), Instruction.csrrs(13, 3, 0)], state: state,
                    result: 13,
                    places: [12, Place.fcsr], operands: ReferenceIntegerTests.corners.flatMap { [$0, $0 >> 3 & 0xff] })
            }
        }
        try program.compare()
    }
}
