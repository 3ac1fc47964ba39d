import InstructionSets

/// Translates instruction words to ops. What an extension brings is an instruction only where the harts have it: ops
/// are not asked again when they run.
struct Decoder {
    /// What the harts have.
    let has: RISCVExtensions

    /// - Parameters:
    ///   - word: the instruction; only the low half counts for a compressed one.
    ///   - offset: of the instruction in its page, or nil if near branches are
    ///     not allowed because the op is in no page's table.
    func decode(_ word: UInt32, offset: Int?) -> DecodedOp {
        let op =
            word & 3 != 3
            ? CompressedDecoder.decode(word & 0xffff, offset: offset) : decode32(word, offset)
        if let op, has.isSuperset(of: op.needs) { return op }
        return Decoder.illegal(word & 3 != 3 ? word & 0xffff : word)
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

    private func decode32(_ word: UInt32, _ offset: Int?) -> DecodedOp? {
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
            return Decoder.make(codes[Int(function)], rd: rd, rs1: rs1, imm: immI)
        case 0x01:
            switch function {
            case 1: return Decoder.makePlain(.flh, rs2: rd, rs1: rs1, imm: immI)
            case 2: return Decoder.makePlain(.flw, rs2: rd, rs1: rs1, imm: immI)
            case 3: return Decoder.makePlain(.fld, rs2: rd, rs1: rs1, imm: immI)
            default: return nil
            }
        case 0x03:
            switch function {
            case 0: return Decoder.make(Decoder.needsHostFence(word) ? .fence : .nop)
            case 1: return Decoder.make(.fenceI)
            case 2: return cacheBlock(word, rd, rs1)
            default: return nil
            }
        case 0x04: return immediate(word, rd, rs1, function, immI)
        case 0x05: return Decoder.make(.auipc, rd: rd, imm: Int32(bitPattern: word & 0xffff_f000))
        case 0x06: return immediateWord(word, rd, rs1, function, immI)
        case 0x08:
            guard function < 4 else { return nil }
            let codes: [OpCode] = [.sb, .sh, .sw, .sd]
            return Decoder.makePlain(codes[Int(function)], rs2: rs2, rs1: rs1, imm: Decoder.immS(word))
        case 0x09:
            let imm = Decoder.immS(word)
            switch function {
            case 1: return Decoder.makePlain(.fsh, rs2: rs2, rs1: rs1, imm: imm)
            case 2: return Decoder.makePlain(.fsw, rs2: rs2, rs1: rs1, imm: imm)
            case 3: return Decoder.makePlain(.fsd, rs2: rs2, rs1: rs1, imm: imm)
            default: return nil
            }
        case 0x0b: return atomic(word, rd, rs2, function)
        case 0x0c: return registers(word, rd, rs1, rs2, function)
        case 0x0d: return Decoder.make(.li, rd: rd, imm: Int32(bitPattern: word & 0xffff_f000))
        case 0x0e: return registersWord(word, rd, rs1, rs2, function)
        case 0x10, 0x11, 0x12, 0x13:
            guard word >> 25 & 3 < 2, has.contains(word >> 25 & 1 == 0 ? .f : .d) else { return nil }
            return Decoder.makePlain(fusedMultiplyAdd(word, function), rs2: rd, rs1: rs1, imm: raw)
        case 0x14:
            guard hasFloat(word, rs2, function) else { return nil }
            let code = float(word, rs2, function)
            // To an x register.
            if code == .feqD || code == .fltD || code == .fleD || code == .fmvXD {
                return Decoder.make(code, rd: rd, rs1: rs1, imm: raw)
            }
            return Decoder.makePlain(code, rs2: rd, rs1: rs1, imm: raw)
        case 0x18: return Decoder.branch(function, rs1, rs2, Decoder.immB(word), length: 2, offset: offset)
        case 0x19:
            guard function == 0 else { return nil }
            return Decoder.make(rd == 0 ? .jr : .jalr, rd: rd, rs1: rs1, imm: immI)
        case 0x1b: return Decoder.jump(Decoder.immJ(word), link: rd, length: 2, offset: offset)
        case 0x1c: return system(word, rd, rs1, rs2, function)
        default: return nil
        }
    }

    /// Rounding to nearest, or as frm says: `floatFast` is about both.
    private static func isUsualRounding(_ function: UInt32) -> Bool { function == 0 || function == 7 }

    private func fusedMultiplyAdd(_ word: UInt32, _ function: UInt32) -> OpCode {
        word >> 25 & 3 == 1 && Decoder.isUsualRounding(function) ? .fmaD : .float
    }

    /// Whether OP-FP's operation is of an extension that is there; what it is no instruction for, it finds itself.
    private func hasFloat(_ word: UInt32, _ rs2: UInt32, _ function: UInt32) -> Bool {
        let operation = word >> 27
        switch word >> 25 & 3 {
        case 0: guard has.contains(.f) else { return false }
        case 1: guard has.contains(.d) else { return false }
        case 2: return has.contains(.zfhmin) && (operation != 8 || rs2 != 1 || has.contains(.d))
        default: return false
        }
        switch operation {
        case 5 where function == 2 || function == 3: return has.contains(.zfa)
        case 8:
            switch rs2 {
            case 0: return true
            case 1: return has.contains(.d)
            case 2: return has.contains(.zfhmin)
            default: return has.contains(.zfa)
            }
        case 20 where function == 4 || function == 5: return has.contains(.zfa)
        case 24 where rs2 == 8: return has.contains(.zfa)
        case 30 where rs2 == 1: return has.contains(.zfa)
        default: return true
        }
    }

    /// cbo.inval, cbo.clean, cbo.flush and cbo.zero.
    private func cacheBlock(_ word: UInt32, _ rd: UInt32, _ rs1: UInt32) -> DecodedOp? {
        guard rd == 0 else { return nil }
        switch word >> 20 {
        case 0, 1, 2: guard has.contains(.zicbom) else { return nil }
        case 4: guard has.contains(.zicboz) else { return nil }
        default: return nil
        }
        return Decoder.make(.cacheBlock, rs1: rs1, imm: Int32(bitPattern: word))
    }

    private func float(_ word: UInt32, _ rs2: UInt32, _ function: UInt32) -> OpCode {
        switch word >> 25 {
        case 0x01: return Decoder.isUsualRounding(function) ? .faddD : .float
        case 0x05: return Decoder.isUsualRounding(function) ? .fsubD : .float
        case 0x09: return Decoder.isUsualRounding(function) ? .fmulD : .float
        case 0x0d: return Decoder.isUsualRounding(function) ? .fdivD : .float
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

    private func immediate(_ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ function: UInt32, _ imm: Int32)
        -> DecodedOp?
    {
        let shift = imm & 63
        let upper = word >> 26
        func op(_ code: OpCode, _ imm: Int32) -> DecodedOp { Decoder.make(code, rd: rd, rs1: rs1, imm: imm) }
        switch function {
        case 0:
            if rd == 0 { return Decoder.make(.nop) }
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

    private func immediateWord(_ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ function: UInt32, _ imm: Int32)
        -> DecodedOp?
    {
        let shift = imm & 31
        func op(_ code: OpCode, _ imm: Int32) -> DecodedOp { Decoder.make(code, rd: rd, rs1: rs1, imm: imm) }
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

    private func registers(
        _ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ function: UInt32
    ) -> DecodedOp? {
        func other(_ code: OtherOpCode) -> DecodedOp {
            Decoder.make(.other, rd: rd, rs1: rs1, imm: code.immediate(Int32(bitPattern: rs2)))
        }
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
        case (0x05, 1): return other(.clmul)
        case (0x05, 2): return other(.clmulr)
        case (0x05, 3): return other(.clmulh)
        case (0x05, 4): code = .min
        case (0x05, 5): code = .minu
        case (0x05, 6): code = .max
        case (0x05, 7): code = .maxu
        case (0x07, 5): return other(.czeroEqz)
        case (0x07, 7): return other(.czeroNez)
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
        return Decoder.make(code, rd: rd, rs1: rs1, imm: Int32(bitPattern: rs2))
    }

    private func registersWord(
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
        return Decoder.make(code, rd: rd, rs1: rs1, imm: Int32(bitPattern: rs2))
    }

    private func atomic(_ word: UInt32, _ rd: UInt32, _ rs2: UInt32, _ function: UInt32) -> DecodedOp? {
        switch word >> 27 {
        case 5:
            // amocas.q is about pairs of registers, which begin with an even one.
            guard has.contains(.zacas), 2...4 ~= function, function < 4 || (rd | rs2) & 1 == 0 else { return nil }
            return Decoder.make(.atomic, rd: rd, imm: Int32(bitPattern: word))
        default: guard function == 2 || function == 3 else { return nil }
        }
        switch word >> 27 {
        case 2: guard rs2 == 0 else { return nil }
        case 0, 1, 3, 4, 8, 12, 16, 20, 24, 28: break
        default: return nil
        }
        return Decoder.make(.atomic, rd: rd, imm: Int32(bitPattern: word))
    }

    private func system(
        _ word: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ function: UInt32
    ) -> DecodedOp? {
        if function != 0 {
            return function == 4 ? nil : Decoder.make(.csr, rd: rd, rs1: rs1, imm: Int32(bitPattern: word))
        }
        switch word {
        case 0x0000_0073: return Decoder.make(.ecall)
        case 0x0010_0073: return Decoder.make(.ebreak)
        case 0x3020_0073: return Decoder.make(.mret)
        case 0x1020_0073: return Decoder.make(.sret)
        case 0x1050_0073: return Decoder.make(.wfi)
        case 0x00d0_0073, 0x01d0_0073: return Decoder.make(.waitOnReservation, imm: Int32(bitPattern: word))
        case 0x1800_0073, 0x1810_0073: return Decoder.make(.invalidationFence, imm: Int32(bitPattern: word))
        default:
            guard rd == 0 else { return nil }
            switch word >> 25 {
            case 9: return Decoder.make(.sfenceVMA, rs1: rs1, imm: Int32(bitPattern: word))
            case 11: return Decoder.make(.sinvalVMA, rs1: rs1, imm: Int32(bitPattern: word))
            default: return nil
            }
        }
    }
}
