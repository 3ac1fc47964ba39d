/// Translates 16-bit instructions (RV64C with D, and Zcb) to ops.
enum CompressedDecoder {
    /// - Parameter word: the instruction, in the low half.
    /// - Returns: nil for what no extension has.
    static func decode(_ word: UInt32, offset: Int?) -> DecodedOp? {
        switch word & 3 {
        case 0: quadrant0(word)
        case 1: quadrant1(word, offset)
        default: quadrant2(word)
        }
    }

    private static func make(_ code: OpCode, rd: UInt32 = 0, rs1: UInt32 = 0, imm: Int32 = 0) -> DecodedOp {
        Decoder.make(code.compressed, length: 1, rd: rd, rs1: rs1, imm: imm)
    }

    private static func plain(_ code: OpCode, rs2: UInt32, rs1: UInt32, imm: Int32) -> DecodedOp {
        Decoder.makePlain(code.compressed, length: 1, rs2: rs2, rs1: rs1, imm: imm)
    }

    /// Bits `low...high` of the instruction, at `position`.
    private static func bits(_ word: UInt32, _ high: UInt32, _ low: UInt32, at position: UInt32) -> Int32 {
        Int32(bitPattern: (word >> low & ((1 << (high - low + 1)) - 1)) << position)
    }

    /// The six-bit immediate of CI, sign-extended.
    private static func imm6(_ word: UInt32) -> Int32 {
        (word >> 12 & 1 != 0 ? -32 : 0) | bits(word, 6, 2, at: 0)
    }

    private static func quadrant0(_ word: UInt32) -> DecodedOp? {
        let rd = (word >> 2 & 7) + 8
        let rs1 = (word >> 7 & 7) + 8
        let immW = bits(word, 12, 10, at: 3) | bits(word, 6, 6, at: 2) | bits(word, 5, 5, at: 6)
        let immD = bits(word, 12, 10, at: 3) | bits(word, 6, 5, at: 6)
        switch word >> 13 {
        case 0:
            let imm =
                bits(word, 12, 11, at: 4) | bits(word, 10, 7, at: 6) | bits(word, 6, 6, at: 2)
                | bits(word, 5, 5, at: 3)
            return imm == 0 ? nil : make(.addi, rd: rd, rs1: 2, imm: imm)
        case 1: return plain(.fld, rs2: rd, rs1: rs1, imm: immD)
        case 2: return make(.lw, rd: rd, rs1: rs1, imm: immW)
        case 3: return make(.ld, rd: rd, rs1: rs1, imm: immD)
        case 4: return shortAccess(word, rd, rs1)
        case 5: return plain(.fsd, rs2: rd, rs1: rs1, imm: immD)
        case 6: return plain(.sw, rs2: rd, rs1: rs1, imm: immW)
        case 7: return plain(.sd, rs2: rd, rs1: rs1, imm: immD)
        default: return nil
        }
    }

    /// - Parameter rd: never x0.
    private static func other(_ code: OtherOpCode, _ rd: UInt32, _ rs1: UInt32, _ operand: Int32) -> DecodedOp {
        make(.other, rd: rd, rs1: rs1, imm: code.immediate(operand))
    }

    /// Loads and stores of bytes and halfwords (Zcb).
    private static func shortAccess(_ word: UInt32, _ register: UInt32, _ rs1: UInt32) -> DecodedOp? {
        let immB = bits(word, 6, 6, at: 0) | bits(word, 5, 5, at: 1)
        let immH = bits(word, 5, 5, at: 1)
        switch word >> 10 & 7 {
        case 0: return other(.lbu, register, rs1, immB)
        case 1: return other(word >> 6 & 1 == 0 ? .lhu : .lh, register, rs1, immH)
        case 2: return other(.sb, register, rs1, immB)
        case 3 where word >> 6 & 1 == 0: return other(.sh, register, rs1, immH)
        default: return nil
        }
    }

    private static func quadrant1(_ word: UInt32, _ offset: Int?) -> DecodedOp? {
        let rd = word >> 7 & 31
        switch word >> 13 {
        case 0:
            let imm = imm6(word)
            // c.nop and hints.
            return rd == 0 ? make(.nop) : make(imm == 0 ? .mv : .addi, rd: rd, rs1: rd, imm: imm)
        case 1: return rd == 0 ? nil : make(.addiw, rd: rd, rs1: rd, imm: imm6(word))
        case 2: return make(.li, rd: rd, imm: imm6(word))
        case 3:
            if rd == 2 {
                let low =
                    bits(word, 6, 6, at: 4) | bits(word, 5, 5, at: 6) | bits(word, 4, 3, at: 7)
                    | bits(word, 2, 2, at: 5)
                let imm = (word >> 12 & 1 != 0 ? -512 : 0) | low
                return imm == 0 ? nil : make(.addi, rd: 2, rs1: 2, imm: imm)
            }
            let imm = imm6(word) << 12
            return imm == 0 ? nil : make(.li, rd: rd, imm: imm)
        case 4: return arithmetic(word)
        case 5: return Decoder.jump(jumpDistance(word), link: 0, length: 1, offset: offset)
        default:
            let low =
                bits(word, 11, 10, at: 3) | bits(word, 6, 5, at: 6) | bits(word, 4, 3, at: 1) | bits(word, 2, 2, at: 5)
            let distance = (word >> 12 & 1 != 0 ? -256 : 0) | low
            return Decoder.branch(word >> 13 & 1, (word >> 7 & 7) + 8, 0, distance, length: 1, offset: offset)
        }
    }

    private static func jumpDistance(_ word: UInt32) -> Int32 {
        let low =
            bits(word, 11, 11, at: 4) | bits(word, 10, 9, at: 8) | bits(word, 8, 8, at: 10) | bits(word, 7, 7, at: 6)
            | bits(word, 6, 6, at: 7) | bits(word, 5, 3, at: 1) | bits(word, 2, 2, at: 5)
        return (word >> 12 & 1 != 0 ? -2048 : 0) | low
    }

    private static func arithmetic(_ word: UInt32) -> DecodedOp? {
        let rd = (word >> 7 & 7) + 8
        let rs2 = Int32(bitPattern: (word >> 2 & 7) + 8)
        let imm = imm6(word)
        switch word >> 10 & 3 {
        case 0: return make(.srli, rd: rd, rs1: rd, imm: imm & 63)
        case 1: return make(.srai, rd: rd, rs1: rd, imm: imm & 63)
        case 2: return make(.andi, rd: rd, rs1: rd, imm: imm)
        default:
            let code: OpCode
            switch (word >> 12 & 1, word >> 5 & 3) {
            case (0, 0): code = .sub
            case (0, 1): code = .xor
            case (0, 2): code = .or
            case (0, 3): code = .and
            case (1, 0): code = .subw
            case (1, 1): code = .addw
            case (1, 2): return other(.mul, rd, rd, rs2)
            default: return unary(word, rd)
            }
            return make(code, rd: rd, rs1: rd, imm: rs2)
        }
    }

    /// What changes one register (Zcb).
    private static func unary(_ word: UInt32, _ rd: UInt32) -> DecodedOp? {
        guard word >> 12 & 1 == 1 else { return nil }
        let codes: [OtherOpCode] = [.zextB, .sextB, .zextH, .sextH, .zextW, .not]
        let function = Int(word >> 2 & 7)
        guard function < codes.count else { return nil }
        return other(codes[function], rd, rd, 0)
    }

    private static func quadrant2(_ word: UInt32) -> DecodedOp? {
        let rd = word >> 7 & 31
        let rs2 = word >> 2 & 31
        let loadD = bits(word, 12, 12, at: 5) | bits(word, 6, 5, at: 3) | bits(word, 4, 2, at: 6)
        let loadW = bits(word, 12, 12, at: 5) | bits(word, 6, 4, at: 2) | bits(word, 3, 2, at: 6)
        let storeD = bits(word, 12, 10, at: 3) | bits(word, 9, 7, at: 6)
        let storeW = bits(word, 12, 9, at: 2) | bits(word, 8, 7, at: 6)
        switch word >> 13 {
        case 0: return make(.slli, rd: rd, rs1: rd, imm: imm6(word) & 63)
        case 1: return plain(.fld, rs2: rd, rs1: 2, imm: loadD)
        case 2: return rd == 0 ? nil : make(.lw, rd: rd, rs1: 2, imm: loadW)
        case 3: return rd == 0 ? nil : make(.ld, rd: rd, rs1: 2, imm: loadD)
        case 4:
            switch (word >> 12 & 1, rs2) {
            case (0, 0): return rd == 0 ? nil : make(.jr, rs1: rd)
            case (0, _): return make(.mv, rd: rd, rs1: rs2)
            case (_, 0): return rd == 0 ? make(.ebreak) : make(.jalr, rd: 1, rs1: rd)
            default: return make(.add, rd: rd, rs1: rd, imm: Int32(bitPattern: rs2))
            }
        case 5: return plain(.fsd, rs2: rs2, rs1: 2, imm: storeD)
        case 6: return plain(.sw, rs2: rs2, rs1: 2, imm: storeW)
        default: return plain(.sd, rs2: rs2, rs1: 2, imm: storeD)
        }
    }
}
