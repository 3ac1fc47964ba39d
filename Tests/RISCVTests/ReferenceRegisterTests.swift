import Testing

/// Control and status registers in each mode, against QEMU: which there are, who may use them, and what remains of a
/// value that is written.
@Suite("QEMU as reference: CSRs", .enabled(if: ReferenceMachine.absence == nil, "\(ReferenceMachine.absence ?? "")"))
struct ReferenceRegisterTests {
    private typealias Place = ReferenceProgram.Place

    /// Registers whose values may differ, one by one.
    private static let ownValues: [(numbers: ClosedRange<Int>, why: String)] = [
        (0xb00...0xb00, "mcycle counts what each takes for cycles"),
        (0xb02...0xb02, "minstret counts QEMU's ticks"),
        (0xc00...0xc02, "cycle, time and instret are of each machine's own clock"),
        (0xf11...0xf13, "mvendorid, marchid and mimpid name the implementation"),
    ]

    private static func state(_ mode: UInt64) throws -> ReferenceProgram.State {
        var state = ReferenceProgram.State()
        state[Place.stvec] = try ReferenceProgram.supervisorTrap()
        state[Place.mstatus] = mode | MachineStatus.floatDirty
        return state
    }

    private static let modes: [(name: String, mpp: UInt64)] = [
        ("M", MachineStatus.machine), ("S", MachineStatus.supervisor), ("U", MachineStatus.user),
    ]

    /// Every number, read in each mode, with counters open and closed.
    @Test(arguments: ReferenceMachine.all) func areThere(_ reference: ReferenceMachine) throws {
        try compareNumbers(on: reference, flags: [])
    }

    @Test(
        .enabled(if: ReferenceMachine.recentAbsence == nil, "\(ReferenceMachine.recentAbsence ?? "")"),
        arguments: [["sstc=off"], ["zicntr=off"], ["zihpm=off"]])
    func areThereWithout(_ flags: [String]) throws { try compareNumbers(on: ReferenceMachine.recent, flags: flags) }

    private func compareNumbers(on reference: ReferenceMachine?, flags: [String]) throws {
        let program = ReferenceProgram("which CSRs there are \(flags.joined(separator: ","))")
        program.flags = flags
        program.addTimersOff()
        for (mode, mpp) in Self.modes {
            for (open, environment) in [(0, 0), (0xffff_ffff, 0), (0xffff_ffff, 1 << 63)] as [(UInt64, UInt64)] {
                var state = try Self.state(mpp)
                state[Place.mcounteren] = open
                state[Place.scounteren] = open
                state[Place.menvcfg] = environment
                for number in 0..<4096 {
                    let isOwn = Self.ownValues.contains { $0.numbers.contains(number) }
                    program.add(
                        "read CSR \(Hex64(UInt64(number))) in \(mode), counters \(open == 0 ? "closed" : "open")"
                            + (environment == 0 ? "" : ", Sstc"),
                        code: [Instruction.csrrs(10, number, 0)], state: state, result: 10, flags: .registers,
                        compared: isOwn ? .all.subtracting([.result, .x]) : .all)
                }
            }
        }
        try program.compare(on: reference, exceptions: Self.exceptions(of: .presence))
    }

    /// Numbers of the CSRs that are written, and what the test must not write to them.
    private static let machineRegisters: [(name: String, number: Int, mask: UInt64)] = [
        ("sstatus", 0x100, .max), ("sie", 0x104, .max), ("stvec", 0x105, .max), ("scounteren", 0x106, .max),
        ("senvcfg", 0x10a, .max), ("sscratch", 0x140, .max), ("sepc", 0x141, .max), ("scause", 0x142, .max),
        ("stval", 0x143, .max), ("sip", 0x144, .max), ("stimecmp", 0x14d, .max), ("satp", 0x180, .max),
        ("mstatus", 0x300, .max), ("misa", 0x301, .max), ("medeleg", 0x302, .max), ("mideleg", 0x303, .max),
        ("mie", 0x304, .max), ("mtvec", 0x305, .max), ("mcounteren", 0x306, .max), ("menvcfg", 0x30a, .max),
        ("mcountinhibit", 0x320, .max), ("mscratch", 0x340, .max), ("mepc", 0x341, .max), ("mcause", 0x342, .max),
        ("mtval", 0x343, .max), ("mip", 0x344, .max),
        // Locked entries would stay.
        ("pmpcfg0", 0x3a0, 0x7f7f_7f7f_7f7f_7f7f), ("pmpcfg2", 0x3a2, 0x007f_7f7f_7f7f_7f7f),
        ("pmpaddr0", 0x3b0, .max), ("pmpaddr7", 0x3b7, .max), ("pmpaddr14", 0x3be, .max),
        ("mhpmcounter3", 0xb03, .max), ("mhpmevent3", 0x323, .max), ("mhpmcounter31", 0xb1f, .max),
        ("mhpmevent31", 0x33f, .max), ("cycle", 0xc00, .max), ("mvendorid", 0xf11, .max), ("mhartid", 0xf14, .max),
        ("mconfigptr", 0xf15, .max),
    ]

    private static let values: [UInt64] =
        (0..<64).map { 1 << $0 } + (0..<64).map { ~(1 << $0) }
        + [0, .max, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa, 0x8000_0000_0000_0001, 0x8000_0000_0000_000b]
        // satp: each mode, with all of the ASID and a page number.
        + (0..<16).map { $0 << 60 | 0xffff_0000_0008_0000 & (1 << 60 - 1) }
        + (0..<4).map { 0x8000_1000 | $0 } + (0..<4).map { $0 << 11 } + (0..<4).map { $0 << 11 | 1 << 17 }

    @Test(arguments: ReferenceMachine.all) func keepWhatIsWritten(_ reference: ReferenceMachine) throws {
        try compareValues(on: reference, flags: [])
    }

    @Test(
        .enabled(if: ReferenceMachine.recentAbsence == nil, "\(ReferenceMachine.recentAbsence ?? "")"),
        arguments: [
            ["sstc=off", "svpbmt=off"], ["svadu=off"], ["svade=on"], ["svade=on", "svadu=off"], ["sv57=off"],
            ["sv48=off"], ["sv39=off"], ["b=off"],
            ["zacas=off", "zawrs=off", "a=off"],
        ])
    func keepWhatIsWrittenWithout(_ flags: [String]) throws {
        try compareValues(on: ReferenceMachine.recent, flags: flags)
    }

    private func compareValues(on reference: ReferenceMachine?, flags: [String]) throws {
        let program = ReferenceProgram("values of CSRs \(flags.joined(separator: ","))")
        program.flags = flags
        program.addTimersOff()
        for (mode, mpp) in Self.modes {
            for (name, number, mask) in Self.machineRegisters {
                // Translation must not begin under the test.
                let isOpen = number != 0x180 || mpp == MachineStatus.machine
                for (function, verb) in [(1, "csrrw"), (2, "csrrs"), (3, "csrrc")] as [(UInt32, String)] {
                    var state = try Self.state(mpp)
                    state[Place.mcounteren] = 0xffff_ffff
                    state[Place.menvcfg] = 1 << 63
                    state[Place.mideleg] = 0x222
                    let isShort = function != 1 || mpp == MachineStatus.user
                    let values = isShort ? Array(Self.values.suffix(40)) : Self.values
                    program.add(
                        "\(verb) \(name) in \(mode)",
                        code: [Instruction.csr(function, 10, number, 11), Instruction.csrrw(12, number, 10)],
                        state: state,
                        result: 12, flags: .registers, places: [11],
                        operands: isOpen ? values.map { $0 & mask } : [0])
                }
            }
        }
        try program.compare(on: reference, exceptions: Self.exceptions(of: .values))
    }

    /// With immediates, x0, and rd and rs1 the same.
    @Test func forms() throws {
        let program = ReferenceProgram("forms of CSR instructions")
        for function in [1, 2, 3, 5, 6, 7] as [UInt32] {
            for (rd, field) in [(10, 11), (10, 0), (0, 11), (11, 11), (0, 0), (31, 31)] as [(UInt32, UInt32)] {
                var state = try Self.state(MachineStatus.machine)
                state[10] = 0x1234
                program.add(
                    "CSR function \(function) x\(rd), mscratch, \(field)",
                    code: [
                        Instruction.csrrw(20, 0x340, 21), Instruction.csr(function, rd, 0x340, field),
                        Instruction.csrrw(22, 0x340, 20),
                    ], state: state, result: 22, places: [21], operands: ReferenceIntegerTests.corners)
                for number in [0xc01, 0xf14, 0xf11, 0x5c0, 0x343] {
                    program.add(
                        "CSR function \(function) x\(rd), \(Hex64(UInt64(number))), \(field)",
                        code: [Instruction.csr(function, rd, number, field)], state: state,
                        compared: number == 0x343 || number == 0xf14 ? .all : .all.subtracting([.x, .result]))
                }
            }
        }
        try program.compare()
    }

    // MARK: Exceptions

    private enum Subject { case presence, values }

    /// Bits of a CSR in which QEMU may differ, and why.
    private struct Freedom {
        let registers: [String]
        let bits: @Sendable (ReferenceDifference) -> UInt64
        let reason: String
        var versions: ClosedRange<Double>?
        var isRequired = true

        init(
            registers: [String], bits: UInt64, reason: String, versions: ClosedRange<Double>? = nil
        ) {
            (self.registers, self.reason, self.versions) = (registers, reason, versions)
            self.bits = { _ in bits }
        }
        init(
            registers: [String], reason: String, versions: ClosedRange<Double>? = nil, isRequired: Bool = true,
            bits: @escaping @Sendable (ReferenceDifference) -> UInt64
        ) {
            (self.registers, self.reason, self.versions, self.isRequired) = (registers, reason, versions, isRequired)
            self.bits = bits
        }
    }

    private static let freedoms = [
        Freedom(
            registers: ["mstatus", "sstatus"], bits: 0xf << 32,
            reason: "UXL and SXL may be fixed (privileged 1.12, 3.1.6.2)"),
        Freedom(
            registers: ["mstatus", "sstatus"], bits: 1 << 63 | 3 << 9,
            reason: "QEMU has VS without V, and SD by it (3.1.6.6: read-only zero)",
            versions: ReferenceException.beforeTen),
        Freedom(
            registers: ["mstatus"], bits: 3 << 11, reason: "QEMU's MPP can be 2, which is no mode (3.1.6.1: WARL)",
            versions: ReferenceException.beforeTen),
        Freedom(
            registers: ["mcountinhibit"], bits: 2, reason: "QEMU keeps bit 1 (3.1.12: read-only zero)",
            versions: ReferenceException.beforeTen),
        Freedom(registers: ["satp"], reason: "QEMU 7.2 always has Sv57", versions: ReferenceException.beforeTen) {
            $0.qemu.result >> 60 == 10 && $0.baton.result == 0 ? .max : 0
        },
        Freedom(
            registers: ["pmpcfg0", "pmpcfg2"], reason: "W without R may be kept (3.7.1: WARL, and reserved)",
            isRequired: false
        ) {
            var bits: UInt64 = 0
            for byte in 0..<8 as Range<UInt64> where $0.qemu.result >> (8 * byte) & 3 == 2 { bits |= 7 << (8 * byte) }
            return bits
        },
        Freedom(
            registers: ["mstatus"], bits: 3 << 38, reason: "QEMU has MPV and GVA without H (RV64: WPRI)",
            versions: ReferenceException.beforeTen),
        Freedom(
            registers: ["mcounteren", "scounteren", "mcountinhibit"], bits: ~7,
            reason: "Which bits of absent events' counters can be set is free (3.1.11, 3.1.12: WARL)",
            versions: ReferenceException.beforeTen),
        Freedom(
            registers: ["menvcfg", "senvcfg"], bits: 0x7fff_ffff_ffff_fffe,
            reason: "QEMU keeps bits of extensions that the hart does not have (3.1.18: WPRI or zero)"),
        Freedom(
            registers: ["mepc", "sepc"], bits: 1, reason: "QEMU keeps bit 0 (3.1.14 and 4.1.7: it is always zero)"),
        Freedom(
            registers: ["medeleg"], bits: ~0xb3ff, reason: "QEMU delegates exceptions that are the hypervisor's (3.1.8)"
        ),
        Freedom(
            registers: ["mideleg", "mie", "mip", "sie", "sip"], bits: ~0xaaa,
            reason: "QEMU has interrupts of extensions that the hart does not have (3.1.9)"),
        Freedom(
            registers: ["pmpcfg0", "pmpcfg2"], bits: 0x6060_6060_6060_6060,
            reason: "QEMU keeps the reserved bits of PMP entries (3.7.1: WARL, zero)"),
        Freedom(
            registers: ["pmpaddr0", "pmpaddr7", "pmpaddr14"], bits: 0x3ff << 54,
            reason: "QEMU keeps more than the 54 bits of PMP addresses (3.7.1: WARL, zero)"),
        Freedom(
            registers: ["mhpmcounter3", "mhpmcounter31", "mhpmevent3", "mhpmevent31"], bits: .max,
            reason: "Counters of events may be zero (3.1.10)"),
    ]

    private static func exceptions(of subject: Subject) -> [ReferenceException] {
        switch subject {
        case .presence:
            return [
                ReferenceException(
                    reason: "Trigger registers may be there without triggers (debug 1.0, 5.7: tdata1 is 0)"
                ) { $0.isRead(of: 0x7a0...0x7a8) ? .all : [] },
                ReferenceException(
                    reason: "There may be 16 PMP entries, or 64 of which most are zero (privileged 1.12, 3.7)",
                    isRequired: false
                ) { $0.isRead(of: 0x3a4...0x3af) || $0.isRead(of: 0x3c0...0x3ef) ? .all : [] },
                ReferenceException(
                    reason: "QEMU has vstimecmp without H (Sstc: it is the hypervisor's)",
                    versions: ReferenceException.beforeTen
                ) { $0.isRead(of: 0x24d...0x24d) ? .all : [] },
                ReferenceException(
                    reason: "QEMU keeps more than the 54 bits of PMP addresses (3.7.1: WARL, zero)"
                ) { $0.isRead(of: 0x3bf...0x3bf) ? [.result, .x] : [] },
            ]
        case .values:
            return freedoms.map { freedom in
                ReferenceException(
                    reason: "\(freedom.registers[0]): \(freedom.reason)", versions: freedom.versions,
                    isRequired: freedom.isRequired
                ) { difference in
                    let words = difference.group.split(separator: " ")
                    guard words.count > 1, freedom.registers.contains(String(words[1])) else { return [] }
                    let all = freedoms.filter { $0.registers.contains(String(words[1])) }
                        .reduce(UInt64(0)) { $0 | $1.bits(difference) }
                    let differing = difference.qemu.result ^ difference.baton.result
                    return differing & ~all == 0 && differing & freedom.bits(difference) != 0 ? [.result, .x] : []
                }
            } + [
                ReferenceException(
                    reason: "QEMU lets csrrs write nothing to a read-only CSR by a register that is 0 (only by x0)",
                    versions: ReferenceException.beforeTen
                ) { $0.operands == [0] && $0.qemu.mepc == $0.baton.mepc + 4 ? [.mepc, .mtval, .result, .x] : [] }
            ]
        }
    }
}

extension ReferenceDifference {
    fileprivate func isRead(of numbers: ClosedRange<Int>) -> Bool {
        numbers.contains { group.hasPrefix("read CSR \(Hex64(UInt64($0))) ") }
    }
}
