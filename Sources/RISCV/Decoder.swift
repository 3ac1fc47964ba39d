/// Translates instruction words to ops.
enum Decoder {
    /// - Parameters:
    ///   - word: the instruction; only the low half counts for a compressed one.
    ///   - offset: of the instruction in its page, or nil if near branches are
    ///     not allowed because the op is in no page's table.
    static func decode(_ word: UInt32, offset: Int?) -> DecodedOp {
        if word & 3 != 3 { return CompressedDecoder.decode(UInt16(truncatingIfNeeded: word), offset: offset) }
        return decode32(word, offset) ?? illegal(word)
    }

    static func illegal(_ word: UInt32) -> DecodedOp {
        make(.illegal, length: word & 3 == 3 ? 2 : 1, imm: Int32(bitPattern: word))
    }

    /// An op whose register fields are as given; `rd` is a destination.
    static func make(_ code: OpCode, length: Int = 2, rd: UInt32 = 0, rs1: UInt32 = 0, imm: Int32 = 0) -> DecodedOp {
        DecodedOp(
            code: code, length: UInt8(length), rd: rd == 0 ? 32 : UInt8(truncatingIfNeeded: rd),
            rs1: UInt8(truncatingIfNeeded: rs1), imm: imm)
    }

    /// A store or branch: rs2 is where others have rd. Also for ops on f
    /// registers, none of which is special.
    static func makePlain(_ code: OpCode, length: Int = 2, rs2: UInt32, rs1: UInt32, imm: Int32) -> DecodedOp {
        DecodedOp(
            code: code, length: UInt8(length), rd: UInt8(truncatingIfNeeded: rs2),
            rs1: UInt8(truncatingIfNeeded: rs1), imm: imm)
    }

    static func jump(_ distance: Int32, link: UInt32, length: Int, offset: Int?) -> DecodedOp {
        if let near = nearDistance(distance, offset) {
            return make(link == 0 ? .j : .jal, length: length, rd: link, imm: near)
        }
        return make(link == 0 ? .jFar : .jalFar, length: length, rd: link, imm: distance)
    }

    /// - Parameter function: funct3 of BRANCH.
    static func branch(_ function: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ distance: Int32, length: Int, offset: Int?)
        -> DecodedOp?
    {
        let near: OpCode
        let far: OpCode
        switch function {
        case 0: (near, far) = (rs2 == 0 ? .beqz : .beq, .beqFar)
        case 1: (near, far) = (rs2 == 0 ? .bnez : .bne, .bneFar)
        case 4: (near, far) = (.blt, .bltFar)
        case 5: (near, far) = (.bge, .bgeFar)
        case 6: (near, far) = (.bltu, .bltuFar)
        case 7: (near, far) = (.bgeu, .bgeuFar)
        default: return nil
        }
        if let distance = nearDistance(distance, offset) {
            return makePlain(
                length == 1 ? near.compressed : near, length: length, rs2: rs2, rs1: rs1, imm: distance)
        }
        return makePlain(far, length: length, rs2: rs2, rs1: rs1, imm: distance)
    }

    private static func nearDistance(_ distance: Int32, _ offset: Int?) -> Int32? {
        guard let offset, 0..<4096 ~= offset + Int(distance) else { return nil }
        return distance / 2
    }

    // MARK: 32-bit instructions

    /// Whether a `fence` (or `fence.tso`, `pause`) orders what the host does
    /// not order by itself. It counts between this process and others that use
    /// the same RAM; the harts are one thread.
    private static func needsHostFence(_ word: UInt32) -> Bool {
        #if arch(x86_64)
        // Total store order: only loads pass earlier stores.
        let isTSO = word >> 28 == 8
        return word >> 24 & 1 != 0 && word >> 21 & 1 != 0 && !isTSO
        #else
        return true
        #endif
    }

    private static func decode32(_ word: UInt32, _ offset: Int?) -> DecodedOp? {
        let rd = word >> 7 & 31
        let rs1 = word >> 15 & 31
        let rs2 = word >> 20 & 31
        let function = word >> 12 & 7
        let immI = Int32(bitPattern: word) >> 20
        let raw = Int32(bitPattern: word)
        switch word >> 2 & 31 {
        case 0x00:
            guard function < 7 else { return nil }
            let codes: [OpCode] = [.lb, .lh, .lw, .ld, .lbu, .lhu, .lwu]
            return make(codes[Int(function)], rd: rd, rs1: rs1, imm: immI)
        case 0x01:
            guard function == 2 || function == 3 else { return nil }
            return makePlain(function == 2 ? .flw : .fld, rs2: rd, rs1: rs1, imm: immI)
        case 0x03:
            switch function {
            case 0: return make(needsHostFence(word) ? .fence : .nop)
            case 1: return make(.fenceI)
            default: return nil
            }
        case 0x04: return immediate(word, rd, rs1, function, immI)
        case 0x05: return make(.auipc, rd: rd, imm: Int32(bitPattern: word & 0xffff_f000))
        case 0x06: return immediateWord(word, rd, rs1, function, immI)
        case 0x08:
            guard function < 4 else { return nil }
            let codes: [OpCode] = [.sb, .sh, .sw, .sd]
            return makePlain(codes[Int(function)], rs2: rs2, rs1: rs1, imm: immS(word))
        case 0x09:
            guard function == 2 || function == 3 else { return nil }
            return makePlain(function == 2 ? .fsw : .fsd, rs2: rs2, rs1: rs1, imm: immS(word))
        case 0x0b: return atomic(word, rd, rs2, function)
        case 0x0c: return registers(word, rd, rs1, rs2, function)
        case 0x0d: return make(.li, rd: rd, imm: Int32(bitPattern: word & 0xffff_f000))
        case 0x0e: return registersWord(word, rd, rs1, rs2, function)
        case 0x10, 0x11, 0x12, 0x13:
            guard word >> 25 & 3 < 2 else { return nil }
            return makePlain(fusedMultiplyAdd(word, function), rs2: rd, rs1: rs1, imm: raw)
        case 0x14:
            let code = float(word, rs2, function)
            // To an x register.
            if code == .feqD || code == .fltD || code == .fleD || code == .fmvXD {
                return make(code, rd: rd, rs1: rs1, imm: raw)
            }
            return makePlain(code, rs2: rd, rs1: rs1, imm: raw)
        case 0x18: return branch(function, rs1, rs2, immB(word), length: 2, offset: offset)
        case 0x19:
            guard function == 0 else { return nil }
            return make(rd == 0 ? .jr : .jalr, rd: rd, rs1: rs1, imm: immI)
        case 0x1b: return jump(immJ(word), link: rd, length: 2, offset: offset)
        case 0x1c: return system(word, rd, rs1, rs2, function)
        default: return nil
        }
    }

    /// Rounding to nearest, or as frm says: `floatFast` is about both.
    private static func isUsualRounding(_ function: UInt32) -> Bool { function == 0 || function == 7 }

    private static func fusedMultiplyAdd(_ word: UInt32, _ function: UInt32) -> OpCode {
        word >> 25 & 3 == 1 && isUsualRounding(function) ? .fmaD : .float
    }

    private static func float(_ word: UInt32, _ rs2: UInt32, _ function: UInt32) -> OpCode {
        switch word >> 25 {
        case 0x01: return isUsualRounding(function) ? .faddD : .float
        case 0x05: return isUsualRounding(function) ? .fsubD : .float
        case 0x09: return isUsualRounding(function) ? .fmulD : .float
        case 0x0d: return isUsualRounding(function) ? .fdivD : .float
        case 0x11: return function == 0 ? .fsgnjD : .float
        case 0x51: return function == 0 ? .fleD : function == 1 ? .fltD : function == 2 ? .feqD : .float
        case 0x71: return rs2 == 0 && function == 0 ? .fmvXD : .float
        case 0x79: return rs2 == 0 && function == 0 ? .fmvDX : .float
        default: return .float
        }
    }

    private static func immS(_ word: UInt32) -> Int32 {
        (Int32(bitPattern: word) >> 25) << 5 | Int32(bitPattern: word >> 7 & 31)
    }

    private static func immB(_ word: UInt32) -> Int32 {
        let low = (word >> 8 & 15) << 1 | (word >> 25 & 63) << 5 | (word >> 7 & 1) << 11
        return (Int32(bitPattern: word) >> 31) << 12 | Int32(bitPattern: low)
    }

    private static func immJ(_ word: UInt32) -> Int32 {
        let low = (word >> 21 & 0x3ff) << 1 | (word >> 20 & 1) << 11 | (word >> 12 & 0xff) << 12
        return (Int32(bitPattern: word) >> 31) << 20 | Int32(bitPattern: low)
    }

    private static func immediate(_ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ function: UInt32, _ imm: Int32)
        -> DecodedOp?
    {
        let shift = imm & 63
        let upper = word >> 26
        func op(_ code: OpCode, _ imm: Int32) -> DecodedOp { make(code, rd: rd, rs1: rs1, imm: imm) }
        switch function {
        case 0:
            if rd == 0 { return make(.nop) }
            if rs1 == 0 { return op(.li, imm) }
            return op(imm == 0 ? .mv : .addi, imm)
        case 1:
            switch upper {
            case 0: return op(.slli, shift)
            case 0x0a: return op(.bseti, shift)
            case 0x12: return op(.bclri, shift)
            case 0x1a: return op(.binvi, shift)
            case 0x18:
                switch word >> 20 & 63 {
                case 0: return op(.clz, 0)
                case 1: return op(.ctz, 0)
                case 2: return op(.cpop, 0)
                case 4: return op(.sextB, 0)
                case 5: return op(.sextH, 0)
                default: return nil
                }
            default: return nil
            }
        case 2: return op(.slti, imm)
        case 3: return op(.sltiu, imm)
        case 4: return op(.xori, imm)
        case 5:
            switch upper {
            case 0: return op(.srli, shift)
            case 0x10: return op(.srai, shift)
            case 0x12: return op(.bexti, shift)
            case 0x18: return op(.rori, shift)
            case 0x0a: return shift == 7 ? op(.orcB, 0) : nil
            case 0x1a: return shift == 0x38 ? op(.rev8, 0) : nil
            default: return nil
            }
        case 6: return op(.ori, imm)
        default: return op(.andi, imm)
        }
    }

    private static func immediateWord(_ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ function: UInt32, _ imm: Int32)
        -> DecodedOp?
    {
        let shift = imm & 31
        func op(_ code: OpCode, _ imm: Int32) -> DecodedOp { make(code, rd: rd, rs1: rs1, imm: imm) }
        switch function {
        case 0: return op(.addiw, imm)
        case 1:
            if word >> 26 == 2 { return op(.slliUW, imm & 63) }
            switch word >> 25 {
            case 0: return op(.slliw, shift)
            case 0x30:
                switch shift {
                case 0: return op(.clzw, 0)
                case 1: return op(.ctzw, 0)
                case 2: return op(.cpopw, 0)
                default: return nil
                }
            default: return nil
            }
        case 5:
            switch word >> 25 {
            case 0: return op(.srliw, shift)
            case 0x20: return op(.sraiw, shift)
            case 0x30: return op(.roriw, shift)
            default: return nil
            }
        default: return nil
        }
    }

    private static func registers(
        _ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ function: UInt32
    ) -> DecodedOp? {
        let code: OpCode
        switch (word >> 25, function) {
        case (0x00, 0): code = .add
        case (0x00, 1): code = .sll
        case (0x00, 2): code = .slt
        case (0x00, 3): code = .sltu
        case (0x00, 4): code = .xor
        case (0x00, 5): code = .srl
        case (0x00, 6): code = .or
        case (0x00, 7): code = .and
        case (0x20, 0): code = .sub
        case (0x20, 4): code = .xnor
        case (0x20, 5): code = .sra
        case (0x20, 6): code = .orn
        case (0x20, 7): code = .andn
        case (0x01, 0): code = .mul
        case (0x01, 1): code = .mulh
        case (0x01, 2): code = .mulhsu
        case (0x01, 3): code = .mulhu
        case (0x01, 4): code = .div
        case (0x01, 5): code = .divu
        case (0x01, 6): code = .rem
        case (0x01, 7): code = .remu
        case (0x05, 4): code = .min
        case (0x05, 5): code = .minu
        case (0x05, 6): code = .max
        case (0x05, 7): code = .maxu
        case (0x10, 2): code = .sh1add
        case (0x10, 4): code = .sh2add
        case (0x10, 6): code = .sh3add
        case (0x14, 1): code = .bset
        case (0x24, 1): code = .bclr
        case (0x24, 5): code = .bext
        case (0x30, 1): code = .rol
        case (0x30, 5): code = .ror
        case (0x34, 1): code = .binv
        default: return nil
        }
        return make(code, rd: rd, rs1: rs1, imm: Int32(bitPattern: rs2))
    }

    private static func registersWord(
        _ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ function: UInt32
    ) -> DecodedOp? {
        let code: OpCode
        switch (word >> 25, function) {
        case (0x00, 0): code = .addw
        case (0x00, 1): code = .sllw
        case (0x00, 5): code = .srlw
        case (0x20, 0): code = .subw
        case (0x20, 5): code = .sraw
        case (0x01, 0): code = .mulw
        case (0x01, 4): code = .divw
        case (0x01, 5): code = .divuw
        case (0x01, 6): code = .remw
        case (0x01, 7): code = .remuw
        case (0x04, 0): code = .addUW
        case (0x04, 4):
            guard rs2 == 0 else { return nil }
            code = .zextH
        case (0x10, 2): code = .sh1addUW
        case (0x10, 4): code = .sh2addUW
        case (0x10, 6): code = .sh3addUW
        case (0x30, 1): code = .rolw
        case (0x30, 5): code = .rorw
        default: return nil
        }
        return make(code, rd: rd, rs1: rs1, imm: Int32(bitPattern: rs2))
    }

    private static func atomic(_ word: UInt32, _ rd: UInt32, _ rs2: UInt32, _ function: UInt32) -> DecodedOp? {
        guard function == 2 || function == 3 else { return nil }
        switch word >> 27 {
        case 2: guard rs2 == 0 else { return nil }
        case 0, 1, 3, 4, 8, 12, 16, 20, 24, 28: break
        default: return nil
        }
        return make(.atomic, rd: rd, imm: Int32(bitPattern: word))
    }

    private static func system(
        _ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ function: UInt32
    ) -> DecodedOp? {
        if function != 0 {
            return function == 4 ? nil : make(.csr, rd: rd, rs1: rs1, imm: Int32(bitPattern: word))
        }
        switch word {
        case 0x0000_0073: return make(.ecall)
        case 0x0010_0073: return make(.ebreak)
        case 0x3020_0073: return make(.mret)
        case 0x1020_0073: return make(.sret)
        case 0x1050_0073: return make(.wfi)
        default:
            guard word >> 25 == 9, rd == 0 else { return nil }
            return make(.sfenceVMA, rs1: rs1, imm: Int32(bitPattern: rs2))
        }
    }
}
