/// A small assembler for RV64: just what the harness' guest needs, so that the
/// harness runs where nothing but Baton is installed.
///
/// Encodings as in the RISC-V unprivileged specification, chapter 35 (RV32/64G
/// instruction set listings).
struct Assembler {
    /// Integer registers by their ABI names.
    enum Register: UInt32 {
        case zero, ra, sp, gp, tp, t0, t1, t2, s0, s1, a0, a1, a2, a3, a4, a5, a6, a7
        case s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, t3, t4, t5, t6
    }
    enum Load: UInt32 { case lb, lh, lw, ld, lbu, lhu, lwu }
    enum Store: UInt32 { case sb, sh, sw, sd }
    enum Branch: UInt32 {
        case beq = 0, bne = 1, blt = 4, bge = 5, bltu = 6, bgeu = 7
    }
    /// Operations on two registers: funct7 and funct3.
    enum Operation {
        case add, sub, xor, or, and, mul
        fileprivate var functions: (seven: UInt32, three: UInt32) {
            switch self {
            case .add: (0, 0)
            case .sub: (0x20, 0)
            case .xor: (0, 4)
            case .or: (0, 6)
            case .and: (0, 7)
            case .mul: (1, 0)
            }
        }
    }
    enum CSR: UInt32 {
        case mstatus = 0x300, mie = 0x304, mtvec = 0x305, mscratch = 0x340, mepc = 0x341, mip = 0x344, mhartid = 0xf14
        case pmpaddr7 = 0x3b7
    }
    struct Label: Hashable { fileprivate let number: Int }

    private var words: [UInt32] = []
    private var places: [Label: Int] = [:]
    private var fixups: [(at: Int, label: Label)] = []
    private var labels = 0

    mutating func label() -> Label {
        labels += 1
        return Label(number: labels)
    }

    /// Says that a label is here.
    mutating func place(_ label: Label) { places[label] = words.count * 4 }
    mutating func here() -> Label {
        let label = self.label()
        place(label)
        return label
    }

    // MARK: Instructions

    /// - Parameter immediate: -2048 to 2047.
    private mutating func iType(
        _ opcode: UInt32, _ funct3: UInt32, _ rd: Register, _ rs1: Register, _ immediate: Int
    ) {
        precondition((-2048...2047).contains(immediate))
        let bits = UInt32(truncatingIfNeeded: immediate) & 0xfff
        words.append(bits << 20 | rs1.rawValue << 15 | funct3 << 12 | rd.rawValue << 7 | opcode)
    }

    mutating func addi(_ rd: Register, _ rs1: Register, _ immediate: Int) { iType(0x13, 0, rd, rs1, immediate) }
    mutating func andi(_ rd: Register, _ rs1: Register, _ immediate: Int) { iType(0x13, 7, rd, rs1, immediate) }
    mutating func slli(_ rd: Register, _ rs1: Register, _ shift: Int) { iType(0x13, 1, rd, rs1, shift & 63) }
    mutating func srli(_ rd: Register, _ rs1: Register, _ shift: Int) { iType(0x13, 5, rd, rs1, shift & 63) }
    mutating func move(_ rd: Register, _ rs: Register) { addi(rd, rs, 0) }

    mutating func operate(_ operation: Operation, _ rd: Register, _ rs1: Register, _ rs2: Register) {
        let (seven, three) = operation.functions
        words.append(
            seven << 25 | rs2.rawValue << 20 | rs1.rawValue << 15 | three << 12 | rd.rawValue << 7 | 0x33)
    }

    mutating func load(_ kind: Load, _ rd: Register, _ offset: Int, _ base: Register) {
        iType(0x03, kind.rawValue, rd, base, offset)
    }

    mutating func store(_ kind: Store, _ source: Register, _ offset: Int, _ base: Register) {
        precondition((-2048...2047).contains(offset))
        let bits = UInt32(truncatingIfNeeded: offset) & 0xfff
        words.append(
            (bits >> 5) << 25 | source.rawValue << 20 | base.rawValue << 15 | kind.rawValue << 12 | (bits & 31) << 7
                | 0x23)
    }

    mutating func branch(_ kind: Branch, _ rs1: Register, _ rs2: Register, to label: Label) {
        fixups.append((words.count, label))
        words.append(rs2.rawValue << 20 | rs1.rawValue << 15 | kind.rawValue << 12 | 0x63)
    }

    /// Jumps, or calls with `link`.
    mutating func jump(to label: Label, link: Register = .zero) {
        fixups.append((words.count, label))
        words.append(link.rawValue << 7 | 0x6f)
    }
    mutating func ret() { iType(0x67, 0, .zero, .ra, 0) }

    mutating func csrWrite(_ csr: CSR, _ rs: Register) { csrInstruction(1, csr, .zero, rs) }
    mutating func csrSet(_ csr: CSR, _ rs: Register) { csrInstruction(2, csr, .zero, rs) }
    mutating func csrRead(_ rd: Register, _ csr: CSR) { csrInstruction(2, csr, rd, .zero) }
    private mutating func csrInstruction(_ funct3: UInt32, _ csr: CSR, _ rd: Register, _ rs: Register) {
        words.append(csr.rawValue << 20 | rs.rawValue << 15 | funct3 << 12 | rd.rawValue << 7 | 0x73)
    }

    mutating func wfi() { words.append(0x1050_0073) }

    /// fmv.d.x: the bits of an integer register to f0...f31.
    mutating func moveToFloat(_ float: UInt32, _ rs: Register) {
        words.append(0x79 << 25 | rs.rawValue << 15 | float << 7 | 0x53)
    }
    /// fmv.x.d.
    mutating func moveFromFloat(_ rd: Register, _ float: UInt32) {
        words.append(0x71 << 25 | float << 15 | rd.rawValue << 7 | 0x53)
    }

    /// Loads any constant, in up to eight instructions.
    mutating func constant(_ rd: Register, _ value: UInt64) {
        let signed = Int64(bitPattern: value)
        if (-2048...2047).contains(signed) { return addi(rd, .zero, Int(signed)) }
        let low = (signed << 52) >> 52
        let high = signed &- low
        if high == Int64(Int32(truncatingIfNeeded: high)) {
            words.append(UInt32(truncatingIfNeeded: high) & 0xffff_f000 | rd.rawValue << 7 | 0x37)  // lui
            if low != 0 { addi32(rd, rd, Int(low)) }
            return
        }
        constant(rd, UInt64(bitPattern: high >> 12))
        slli(rd, rd, 12)
        if low != 0 { addi(rd, rd, Int(low)) }
    }
    private mutating func addi32(_ rd: Register, _ rs1: Register, _ immediate: Int) {
        iType(0x1b, 0, rd, rs1, immediate)
    }

    // MARK: The end

    /// The program, position independent, with every label in its place.
    func assembled() -> [UInt8] {
        var result = words
        for (at, label) in fixups {
            guard let target = places[label] else { preconditionFailure("a label has no place") }
            let offset = target - at * 4
            let bits = UInt32(truncatingIfNeeded: offset)
            if words[at] & 0x7f == 0x63 {
                precondition((-4096...4094).contains(offset))
                result[at] |=
                    (bits >> 12 & 1) << 31 | (bits >> 5 & 0x3f) << 25 | (bits >> 1 & 0xf) << 8 | (bits >> 11 & 1) << 7
            } else {
                precondition((-1_048_576...1_048_574).contains(offset))
                result[at] |=
                    (bits >> 20 & 1) << 31 | (bits >> 1 & 0x3ff) << 21 | (bits >> 11 & 1) << 20
                    | (bits >> 12 & 0xff) << 12
            }
        }
        return result.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
    }
}
