import InstructionSets

/// Instructions of extensions that few programs use: the loop has one op for all of them, `other`, and leaves it to
/// carry them out. LLVM repeats the dispatch behind each op of the loop only as long as there are not too many.
///
/// The op's immediate is one of these in the low byte, and rs2 or an offset above it.
enum OtherOpCode: UInt8 {
    // Zbc
    case clmul, clmulh, clmulr
    // Zicond
    case czeroEqz, czeroNez
    // Zcb: rd is the source of a store.
    case lbu, lhu, lh, sb, sh
    case zextB, sextB, zextH, sextH, zextW, not, mul

    /// What the harts must have.
    var needs: RISCVExtensions {
        switch self {
        case .clmul, .clmulh, .clmulr: .zbc
        case .czeroEqz, .czeroNez: .zicond
        case .lbu, .lhu, .lh, .sb, .sh, .zextB, .not: .zcb
        case .sextB, .zextH, .sextH: [.zcb, .zbb]
        case .zextW: [.zcb, .zba]
        case .mul: [.zcb, .m]
        }
    }

    /// The immediate of an op.
    /// - Parameter operand: rs2 or an offset.
    func immediate(_ operand: Int32) -> Int32 { operand << 8 | Int32(rawValue) }

    init(_ op: DecodedOp) {
        self = OtherOpCode(rawValue: UInt8(truncatingIfNeeded: op.imm)).unsafelyUnwrapped
    }
}

extension DecodedOp {
    /// What the harts must have.
    var needs: RISCVExtensions { code == .other ? OtherOpCode(self).needs : code.needs }
}

extension UnsafeMutablePointer where Pointee == HartState {
    @inline(never)
    func executeOther(_ op: OpPointer, _ d: DecodedOp) -> OpPointer {
        let operand = Int(d.imm >> 8)
        let a = x[d.source1]
        let value: UInt64
        switch OtherOpCode(d) {
        case .clmul: value = UInt64(truncatingIfNeeded: carrylessProduct(a, x[operand]))
        case .clmulh: value = UInt64(truncatingIfNeeded: carrylessProduct(a, x[operand]) >> 64)
        case .clmulr: value = UInt64(truncatingIfNeeded: carrylessProduct(a, x[operand]) >> 63)
        case .czeroEqz: value = x[operand] == 0 ? 0 : a
        case .czeroNez: value = x[operand] != 0 ? 0 : a
        case .lbu: return slowLoad(op, d, a &+ UInt64(operand), 1) { $0 }
        case .lhu: return slowLoad(op, d, a &+ UInt64(operand), 2) { $0 }
        case .lh:
            return slowLoad(op, d, a &+ UInt64(operand), 2) {
                UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: $0)))
            }
        case .sb: return slowStore(op, d, a &+ UInt64(operand), 1, x[d.destination])
        case .sh: return slowStore(op, d, a &+ UInt64(operand), 2, x[d.destination])
        case .zextB: value = a & 0xff
        case .sextB: value = UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: a)))
        case .zextH: value = a & 0xffff
        case .sextH: value = UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: a)))
        case .zextW: value = UInt64(low(a))
        case .not: value = ~a
        case .mul: value = a &* x[operand]
        }
        x[d.destination] = value
        return op + d.step
    }
}
