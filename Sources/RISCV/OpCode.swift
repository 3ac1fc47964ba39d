import InstructionSets

/// What a decoded op does. The raw value is the declaration order.
///
/// Operands are in the fields of `DecodedOp`: `rd`, `rs1` and an immediate;
/// register-register ops keep rs2 in the immediate, stores and branches keep it
/// in `rd`. Branches and jumps come in two kinds: near ones stay inside the
/// page and carry a distance in halfwords, far ones carry it in bytes.
enum OpCode: UInt8 {
    // Not instructions.
    case undecoded, pageEnd, crossing, refetch

    // RV64I
    case li, auipc, mv, nop
    case j, jal, jFar, jalFar, jr, jalr
    case beq, bne, blt, bge, bltu, bgeu
    case beqz, bnez
    case beqFar, bneFar, bltFar, bgeFar, bltuFar, bgeuFar
    case lb, lh, lw, ld, lbu, lhu, lwu
    case sb, sh, sw, sd
    case addi, slti, sltiu, xori, ori, andi, slli, srli, srai
    case addiw, slliw, srliw, sraiw
    case add, sub, sll, slt, sltu, xor, srl, sra, or, and
    case addw, subw, sllw, srlw, sraw
    case fence, fenceI

    // C: what differs from the ops above is only the length, and so that the
    // loop need not read it from the op: the address of the next op would
    // depend on a load.
    case cLi, cMv, cNop, cJr, cJalr, cBeqz, cBnez
    case cLw, cLd, cSw, cSd, cFld, cFsd
    case cAddi, cAddiw, cSlli, cSrli, cSrai, cAndi
    case cAdd, cSub, cXor, cOr, cAnd, cAddw, cSubw

    // M
    case mul, mulh, mulhsu, mulhu, div, divu, rem, remu
    case mulw, divw, divuw, remw, remuw

    // Zba, Zbb, Zbs
    case sh1add, sh2add, sh3add, addUW, sh1addUW, sh2addUW, sh3addUW, slliUW
    case andn, orn, xnor, clz, ctz, cpop, clzw, ctzw, cpopw
    case max, maxu, min, minu, sextB, sextH, zextH
    case rol, ror, rori, rolw, rorw, roriw, orcB, rev8
    case bclr, bext, binv, bset, bclri, bexti, binvi, bseti

    // Zbc, Zicond and Zcb, which programs have for a few places: see `OtherOpCode`.
    case other

    // F and D
    case flw, fld, fsw, fsd
    // Zfhmin's, not in the loop.
    case flh, fsh
    // Double precision where the host serves. Like all the rest of F and D
    // (`float`), they have the instruction word as the immediate.
    case faddD, fsubD, fmulD, fdivD, fmaD
    case fsgnjD, feqD, fltD, fleD, fmvXD, fmvDX
    case float

    // A: the instruction word is the immediate.
    case atomic

    // Zicsr and privileged
    case csr, ecall, ebreak, mret, sret, wfi
    // The instruction word is the immediate: Zawrs; sfence.vma and Svinval's parts of it; Zicbom and Zicboz.
    case waitOnReservation, sfenceVMA, sinvalVMA, invalidationFence, cacheBlock
    /// The instruction word is the immediate, 16 bits wide for a compressed one.
    case illegal

    static let count = illegal.rawValue + 1
}

extension OpCode {
    /// The op for the 16-bit form of an instruction; itself where the loop
    /// does not tell them apart.
    var compressed: OpCode {
        switch self {
        case .li: .cLi
        case .mv: .cMv
        case .nop: .cNop
        case .jr: .cJr
        case .jalr: .cJalr
        case .beqz: .cBeqz
        case .bnez: .cBnez
        case .lw: .cLw
        case .ld: .cLd
        case .sw: .cSw
        case .sd: .cSd
        case .fld: .cFld
        case .fsd: .cFsd
        case .addi: .cAddi
        case .addiw: .cAddiw
        case .slli: .cSlli
        case .srli: .cSrli
        case .srai: .cSrai
        case .andi: .cAndi
        case .add: .cAdd
        case .sub: .cSub
        case .xor: .cXor
        case .or: .cOr
        case .and: .cAnd
        case .addw: .cAddw
        case .subw: .cSubw
        default: self
        }
    }
}

extension OpCode {
    /// What the harts must have. Where the op is for instructions of several extensions, the decoder looks at the word.
    var needs: RISCVExtensions {
        switch self {
        case .mul, .mulh, .mulhsu, .mulhu, .div, .divu, .rem, .remu, .mulw, .divw, .divuw, .remw, .remuw: .m
        case .sh1add, .sh2add, .sh3add, .addUW, .sh1addUW, .sh2addUW, .sh3addUW, .slliUW: .zba
        case .andn, .orn, .xnor, .clz, .ctz, .cpop, .clzw, .ctzw, .cpopw, .max, .maxu, .min, .minu, .sextB, .sextH,
            .zextH, .rol, .ror, .rori, .rolw, .rorw, .roriw, .orcB, .rev8:
            .zbb
        case .bclr, .bext, .binv, .bset, .bclri, .bexti, .binvi, .bseti: .zbs
        case .flw, .fsw: .f
        case .fld, .fsd, .cFld, .cFsd: .d
        case .flh, .fsh: .zfhmin
        case .atomic: .a
        case .fenceI: .zifencei
        case .waitOnReservation: .zawrs
        case .sinvalVMA, .invalidationFence: .svinval
        default: []
        }
    }
}

/// An instruction in the form that the interpreter runs.
struct DecodedOp {
    var code: OpCode = .undecoded
    /// Slots (of one halfword each) to the next instruction.
    var length: UInt8 = 0
    var rd: UInt8 = 0
    var rs1: UInt8 = 0
    var imm: Int32 = 0
}

typealias OpPointer = UnsafeMutablePointer<DecodedOp>

extension DecodedOp {
    @inline(__always) var destination: Int { Int(rd) }
    @inline(__always) var source1: Int { Int(rs1) }
    /// rs2 of a register-register op.
    @inline(__always) var source2: Int { Int(imm) }
    /// rs2 of an op that has the instruction word as its immediate.
    @inline(__always) var wordSource2: Int { Int(truncatingIfNeeded: imm >> 20 & 31) }
    @inline(__always) var immediate: UInt64 { UInt64(bitPattern: Int64(imm)) }
    @inline(__always) var step: Int { Int(length) }
}
