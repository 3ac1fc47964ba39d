import Testing

/// Zfa and Zfhmin against a QEMU that has them.
@Suite(
    "QEMU as reference: Zfa and Zfhmin",
    .enabled(if: ReferenceMachine.recentAbsence == nil, "\(ReferenceMachine.recentAbsence ?? "")"))
struct ReferenceFloatExtensionTests {
    private typealias Place = ReferenceProgram.Place
    private typealias Format = ReferenceFloatTests.Format

    private static let half = Format("h", fmt: 2, fraction: 10, exponent: 5, box: 0xffff_ffff_ffff_0000)
    private static let formats = ReferenceFloatTests.formats
    /// Registers that hold no value of a narrower format.
    private static let unboxed: [UInt64] =
        ReferenceFloatTests.unboxed + [0x0000_0000_0000_3c00, 0xffff_ffff_fffe_3c00, 0xffff_ffff_0000_3c00]

    private func state(_ fcsr: UInt64) -> ReferenceProgram.State {
        var state = ReferenceProgram.State()
        state[Place.fcsr] = fcsr
        return state
    }

    private func samples(_ format: Format, _ count: Int, _ program: ReferenceProgram) -> [UInt64] {
        (0..<count).map { _ in
            switch format.fmt {
            case 2: 0xffff_ffff_ffff_0000 | program.nextRandom() >> 48
            default: ReferenceFloatTests.sample(program.nextRandom() & ~1 | (format.fmt == 0 ? 1 : 0))
            }
        }
    }

    @Test("fli") func constants() throws {
        let program = ReferenceProgram("fli")
        for format in Self.formats {
            for index in 0..<32 as Range<UInt32> {
                for field in 0..<8 as Range<UInt32> {
                    program.add(
                        "fli.\(format.name) \(index), funct3 \(field)",
                        code: [Instruction.r(0x53, field, 30 << 2 | format.fmt, 10, index, 1)], result: 42)
                }
            }
        }
        try program.compare(on: ReferenceMachine.recent)
    }

    @Test("fminm, fmaxm, fleq, fltq") func pairs() throws {
        let program = ReferenceProgram("fminm, fmaxm, fleq, fltq")
        let operations: [(name: String, function: UInt32, field: UInt32, result: Int)] = [
            ("fminm", 5, 2, 42), ("fmaxm", 5, 3, 42), ("fleq", 20, 4, 10), ("fltq", 20, 5, 10),
        ]
        for format in Self.formats {
            let values = format.operands + (format.fmt == 0 ? Self.unboxed : [])
            for (name, function, field, result) in operations {
                for fcsr in [0, 1] as [UInt64] {
                    program.add(
                        "\(name).\(format.name) fcsr \(fcsr)",
                        code: [Instruction.r(0x53, field, function << 2 | format.fmt, 10, 11, 12)],
                        state: state(fcsr), result: result, places: [Place.f(11), Place.f(12)],
                        operands: values.flatMap { a in values.flatMap { [a, $0] } })
                }
            }
        }
        try program.compare(on: ReferenceMachine.recent)
    }

    @Test("fround, froundnx, fcvtmod.w.d") func roundings() throws {
        let program = ReferenceProgram("fround, froundnx, fcvtmod.w.d")
        // Halves, and their neighbours, around small and large whole numbers.
        let halves: [Double] = [
            0.25, 0.5, 0.75, 1, 1.5, 2.5, 3.5, 1023.5, 8388607.5, 0x1p31 - 0.5, 0x1p31 + 0.5, 0x1p52,
        ]
        let near = halves.flatMap { [$0.nextDown, $0, $0.nextUp, -$0.nextDown, -$0, -$0.nextUp] }
        for format in Self.formats {
            let values =
                format.operands + Self.unboxed + samples(format, 300, program)
                + near.map { format.fmt == 0 ? 0xffff_ffff_0000_0000 | UInt64(Float($0).bitPattern) : $0.bitPattern }
            for (field, fcsr, _) in ReferenceFloatTests.roundings {
                for (name, second) in [("fround", 4), ("froundnx", 5)] as [(String, UInt32)] {
                    program.add(
                        "\(name).\(format.name) rm \(field) fcsr \(Hex64(fcsr))",
                        code: [Instruction.r(0x53, field, 8 << 2 | format.fmt, 10, 11, second)], state: state(fcsr),
                        result: 42, places: [Place.f(11)], operands: values)
                }
            }
        }
        let powers = (0..<110).flatMap { power -> [UInt64] in
            let value = Double(sign: .plus, exponent: power, significand: 1.2345678912345)
            return [value, -value, value.nextUp, Double(sign: .plus, exponent: power, significand: 1)].map(\.bitPattern)
        }
        for field in 0..<8 as Range<UInt32> {
            for rd in [0, 10] as [UInt32] {
                program.add(
                    "fcvtmod.w.d x\(rd), rm \(field)", code: [Instruction.r(0x53, field, 24 << 2 | 1, rd, 11, 8)],
                    result: Int(rd), places: [Place.f(11)],
                    operands: Self.formats[1].operands + Self.unboxed + samples(Self.formats[1], 300, program)
                        + near.map(\.bitPattern) + powers)
            }
        }
        try program.compare(on: ReferenceMachine.recent)
    }

    @Test("Zfhmin") func half() throws {
        let program = ReferenceProgram("Zfhmin")
        let every = (0..<0x1_0000).map { 0xffff_ffff_ffff_0000 | UInt64($0) }
        for format in Self.formats {
            for (field, fcsr, isFull) in ReferenceFloatTests.roundings {
                program.add(
                    "fcvt.\(format.name).h rm \(field) fcsr \(Hex64(fcsr))",
                    code: [Instruction.r(0x53, field, 8 << 2 | format.fmt, 10, 11, 2)], state: state(fcsr), result: 42,
                    places: [Place.f(11)],
                    operands: (isFull && field == 0 ? every : Self.half.operands) + Self.unboxed)
                // Around each half of a unit, where the numbers become subnormal, and where they end.
                let ties: [UInt64] = (0..<400).flatMap { index -> [UInt64] in
                    let value = Double(sign: .plus, exponent: -26 + index % 43, significand: 1 + Double(index) / 512)
                    let bits = format.fmt == 0 ? UInt64(Float(value).bitPattern) : value.bitPattern
                    let box: UInt64 = format.fmt == 0 ? 0xffff_ffff_0000_0000 : 0
                    let sign: UInt64 = format.fmt == 0 ? 1 << 31 : 1 << 63
                    return [bits - 1, bits, bits + 1, bits | sign].map { $0 | box }
                }
                program.add(
                    "fcvt.h.\(format.name) rm \(field) fcsr \(Hex64(fcsr))",
                    code: [Instruction.r(0x53, field, 8 << 2 | 2, 10, 11, format.fmt)], state: state(fcsr), result: 42,
                    places: [Place.f(11)],
                    operands: format.operands + Self.unboxed + samples(format, 300, program) + ties)
            }
        }
        for field in 0..<8 as Range<UInt32> {
            program.add(
                "fmv.x.h, funct3 \(field)", code: [Instruction.r(0x53, field, 28 << 2 | 2, 10, 11, 0)], result: 10,
                places: [Place.f(11)], operands: Self.half.operands + Self.unboxed)
            program.add(
                "fmv.h.x, funct3 \(field)", code: [Instruction.r(0x53, field, 30 << 2 | 2, 10, 11, 0)], result: 42,
                places: [11], operands: ReferenceIntegerTests.corners)
        }
        let data = ReferenceProgram.data + 0x1000
        program.store(data, words: (0..<16).map { _ in program.nextRandom() })
        for status in 0..<4 as Range<UInt64> {
            var state = ReferenceProgram.State()
            state[Place.mstatus] = MachineStatus.machine | status << 13
            state[Place.poke] = data + 8
            state[Place.pokeValue] = 0x1122_3344_5566_7788
            state[Place.watch] = data + 8
            let addresses = (0..<9).map { data + $0 } + [data + 0xfff, 0, 0x9000_0000]
            program.add(
                "flh, FS \(status)", code: [Instruction.i(0x07, 1, 10, 11, 0)], state: state, result: 42,
                compared: status == 0 || status == 3 ? .all : .all.subtracting(.mstatus), places: [11],
                operands: addresses)
            program.add(
                "fsh, FS \(status)", code: [Instruction.s(0x27, 1, 11, 10, 8)], state: state,
                compared: status == 0 || status == 3 ? .all : .all.subtracting(.mstatus), places: [11],
                operands: addresses)
        }
        try program.compare(on: ReferenceMachine.recent)
    }
}
