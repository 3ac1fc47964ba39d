/// Encodings, as in the unprivileged specification's instruction set listings.
enum Instruction {
    static let ebreak: UInt32 = 0x0010_0073
    static let ecall: UInt32 = 0x0000_0073
    static let mret: UInt32 = 0x3020_0073
    static let sret: UInt32 = 0x1020_0073
    static let wfi: UInt32 = 0x1050_0073
    static let compressedBreak: UInt16 = 0x9002

    /// - Parameter immediate: its low twelve bits.
    static func i(_ opcode: UInt32, _ funct3: UInt32, _ rd: UInt32, _ rs1: UInt32, _ immediate: Int) -> UInt32 {
        (UInt32(truncatingIfNeeded: immediate) & 0xfff) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
    }
    static func r(
        _ opcode: UInt32, _ funct3: UInt32, _ funct7: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32
    ) -> UInt32 { funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode }
    static func s(_ opcode: UInt32, _ funct3: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ immediate: Int) -> UInt32 {
        let bits = UInt32(truncatingIfNeeded: immediate) & 0xfff
        return (bits >> 5) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (bits & 31) << 7 | opcode
    }
    static func branch(_ funct3: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ distance: Int) -> UInt32 {
        let bits = UInt32(truncatingIfNeeded: distance)
        return (bits >> 12 & 1) << 31 | (bits >> 5 & 0x3f) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12
            | (bits >> 1 & 0xf) << 8 | (bits >> 11 & 1) << 7 | 0x63
    }
    static func jal(_ rd: UInt32, _ distance: Int) -> UInt32 {
        let bits = UInt32(truncatingIfNeeded: distance)
        return (bits >> 20 & 1) << 31 | (bits >> 1 & 0x3ff) << 21 | (bits >> 11 & 1) << 20 | (bits >> 12 & 0xff) << 12
            | rd << 7 | 0x6f
    }

    /// funct3 1: csrrw, 2: csrrs, 3: csrrc; 5 to 7 with an immediate for rs1.
    static func csr(_ funct3: UInt32, _ rd: UInt32, _ number: Int, _ rs1: UInt32) -> UInt32 {
        UInt32(number) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | 0x73
    }
    static func csrrw(_ rd: UInt32, _ number: Int, _ rs1: UInt32) -> UInt32 { csr(1, rd, number, rs1) }
    static func csrrs(_ rd: UInt32, _ number: Int, _ rs1: UInt32) -> UInt32 { csr(2, rd, number, rs1) }
    static func csrrc(_ rd: UInt32, _ number: Int, _ rs1: UInt32) -> UInt32 { csr(3, rd, number, rs1) }

    static func ld(_ rd: UInt32, _ rs1: UInt32, _ offset: Int = 0) -> UInt32 { i(0x03, 3, rd, rs1, offset) }
    static func sd(_ rs2: UInt32, _ rs1: UInt32, _ offset: Int = 0) -> UInt32 { s(0x23, 3, rs1, rs2, offset) }
    static func jalr(_ rd: UInt32, _ rs1: UInt32, _ offset: Int = 0) -> UInt32 { i(0x67, 0, rd, rs1, offset) }
    static func addi(_ rd: UInt32, _ rs1: UInt32, _ immediate: Int) -> UInt32 { i(0x13, 0, rd, rs1, immediate) }
    static func amo(_ width: UInt32, _ funct5: UInt32, _ order: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32)
        -> UInt32
    { r(0x2f, width, funct5 << 2 | order, rd, rs1, rs2) }

    // MARK: Lists

    struct Operation {
        let name: String
        let opcode: UInt32
        let funct3: UInt32
        let funct7: UInt32
        init(_ name: String, _ opcode: UInt32, _ funct3: UInt32, _ funct7: UInt32) {
            (self.name, self.opcode, self.funct3, self.funct7) = (name, opcode, funct3, funct7)
        }
    }

    /// rd, rs1, rs2: RV64I, M, Zba, Zbb, Zbs.
    static let registerOperations: [Operation] = [
        Operation("add", 0x33, 0, 0), Operation("sub", 0x33, 0, 0x20), Operation("sll", 0x33, 1, 0),
        Operation("slt", 0x33, 2, 0), Operation("sltu", 0x33, 3, 0), Operation("xor", 0x33, 4, 0),
        Operation("srl", 0x33, 5, 0), Operation("sra", 0x33, 5, 0x20), Operation("or", 0x33, 6, 0),
        Operation("and", 0x33, 7, 0),
        Operation("addw", 0x3b, 0, 0), Operation("subw", 0x3b, 0, 0x20), Operation("sllw", 0x3b, 1, 0),
        Operation("srlw", 0x3b, 5, 0), Operation("sraw", 0x3b, 5, 0x20),
        Operation("mul", 0x33, 0, 1), Operation("mulh", 0x33, 1, 1), Operation("mulhsu", 0x33, 2, 1),
        Operation("mulhu", 0x33, 3, 1), Operation("div", 0x33, 4, 1), Operation("divu", 0x33, 5, 1),
        Operation("rem", 0x33, 6, 1), Operation("remu", 0x33, 7, 1),
        Operation("mulw", 0x3b, 0, 1), Operation("divw", 0x3b, 4, 1), Operation("divuw", 0x3b, 5, 1),
        Operation("remw", 0x3b, 6, 1), Operation("remuw", 0x3b, 7, 1),
        Operation("sh1add", 0x33, 2, 0x10), Operation("sh2add", 0x33, 4, 0x10), Operation("sh3add", 0x33, 6, 0x10),
        Operation("add.uw", 0x3b, 0, 4), Operation("sh1add.uw", 0x3b, 2, 0x10),
        Operation("sh2add.uw", 0x3b, 4, 0x10), Operation("sh3add.uw", 0x3b, 6, 0x10),
        Operation("andn", 0x33, 7, 0x20), Operation("orn", 0x33, 6, 0x20), Operation("xnor", 0x33, 4, 0x20),
        Operation("min", 0x33, 4, 5), Operation("minu", 0x33, 5, 5), Operation("max", 0x33, 6, 5),
        Operation("maxu", 0x33, 7, 5), Operation("rol", 0x33, 1, 0x30), Operation("ror", 0x33, 5, 0x30),
        Operation("rolw", 0x3b, 1, 0x30), Operation("rorw", 0x3b, 5, 0x30),
        Operation("bset", 0x33, 1, 0x14), Operation("bclr", 0x33, 1, 0x24), Operation("binv", 0x33, 1, 0x34),
        Operation("bext", 0x33, 5, 0x24),
    ]

    /// rd, rs1 and nothing else; the whole immediate is fixed.
    static let unaryOperations: [(name: String, opcode: UInt32, funct3: UInt32, immediate: Int)] = [
        ("clz", 0x13, 1, 0x600), ("ctz", 0x13, 1, 0x601), ("cpop", 0x13, 1, 0x602), ("sext.b", 0x13, 1, 0x604),
        ("sext.h", 0x13, 1, 0x605), ("orc.b", 0x13, 5, 0x287), ("rev8", 0x13, 5, 0x6b8),
        ("clzw", 0x1b, 1, 0x600), ("ctzw", 0x1b, 1, 0x601), ("cpopw", 0x1b, 1, 0x602), ("zext.h", 0x3b, 4, 0x080),
    ]

    static let immediateOperations: [(name: String, opcode: UInt32, funct3: UInt32)] = [
        ("addi", 0x13, 0), ("slti", 0x13, 2), ("sltiu", 0x13, 3), ("xori", 0x13, 4), ("ori", 0x13, 6),
        ("andi", 0x13, 7), ("addiw", 0x1b, 0),
    ]

    /// Shifts by an immediate: the bits above it, and how many amounts there are.
    static let shiftOperations: [(name: String, opcode: UInt32, funct3: UInt32, upper: Int, amounts: Int)] = [
        ("slli", 0x13, 1, 0, 64), ("srli", 0x13, 5, 0, 64), ("srai", 0x13, 5, 0x400, 64),
        ("slliw", 0x1b, 1, 0, 32), ("srliw", 0x1b, 5, 0, 32), ("sraiw", 0x1b, 5, 0x400, 32),
        ("slli.uw", 0x1b, 1, 0x080, 64), ("rori", 0x13, 5, 0x600, 64), ("roriw", 0x1b, 5, 0x600, 32),
        ("bseti", 0x13, 1, 0x280, 64), ("bclri", 0x13, 1, 0x480, 64), ("binvi", 0x13, 1, 0x680, 64),
        ("bexti", 0x13, 5, 0x480, 64),
    ]

    static let loads: [(name: String, funct3: UInt32, size: Int)] = [
        ("lb", 0, 1), ("lh", 1, 2), ("lw", 2, 4), ("ld", 3, 8), ("lbu", 4, 1), ("lhu", 5, 2), ("lwu", 6, 4),
    ]
    static let stores: [(name: String, funct3: UInt32, size: Int)] = [
        ("sb", 0, 1), ("sh", 1, 2), ("sw", 2, 4), ("sd", 3, 8),
    ]
    static let branches: [(name: String, funct3: UInt32)] = [
        ("beq", 0), ("bne", 1), ("blt", 4), ("bge", 5), ("bltu", 6), ("bgeu", 7),
    ]
    static let atomics: [(name: String, funct5: UInt32)] = [
        ("amoadd", 0), ("amoswap", 1), ("amoxor", 4), ("amoor", 8), ("amoand", 12), ("amomin", 16), ("amomax", 20),
        ("amominu", 24), ("amomaxu", 28),
    ]
}
