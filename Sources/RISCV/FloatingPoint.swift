import SoftFloat

/// A single-precision value in a 64-bit register: all other bits are 1.
@inline(__always)
func nanBoxed(_ value: UInt32) -> UInt64 { UInt64(value) | 0xffff_ffff_0000_0000 }

/// The single-precision value of a register; one that is not boxed is the
/// canonical NaN.
@inline(__always)
func unboxed(_ value: UInt64) -> UInt32 {
    value >> 32 == 0xffff_ffff ? UInt32(truncatingIfNeeded: value) : 0x7fc0_0000
}

/// A half-precision value in a register.
@inline(__always)
func nanBoxed(_ value: UInt16) -> UInt64 { UInt64(value) | 0xffff_ffff_ffff_0000 }

/// The half-precision value of a register; one that is not boxed is the canonical NaN.
@inline(__always)
private func unboxedHalf(_ value: UInt64) -> UInt16 {
    value >> 16 == 0xffff_ffff_ffff ? UInt16(truncatingIfNeeded: value) : 0x7e00
}

private let signS: UInt32 = 1 << 31
private let signD: UInt64 = 1 << 63

extension UnsafeMutablePointer where Pointee == HartState {
    /// Whether F and D instructions are on; makes mstatus.FS Dirty, which is
    /// allowed where only flags or memory would change.
    @inline(__always)
    func enableFloat() -> Bool {
        if pointee.floatReady { return true }
        guard pointee.mstatus & MStatus.fs != 0 else { return false }
        dirtyFloat()
        return true
    }

    /// Says whether the loop may use the host's arithmetic: see `HostFloat`.
    @inline(__always)
    func updateFloatFast() {
        pointee.floatFast = pointee.floatReady && pointee.frm == 0 && pointee.fflags & 1 != 0
    }

    /// The rounding mode of an instruction; nil for a reserved one.
    private func rounding(_ field: UInt32) -> UInt8? {
        let mode = field == 7 ? pointee.frm : UInt8(truncatingIfNeeded: field)
        return mode <= 4 ? mode : nil
    }

    /// OP-FP and the fused multiply-adds; the instruction word is the op's
    /// immediate.
    @inline(never)
    func executeFloat(_ op: OpPointer, _ d: DecodedOp) -> OpPointer {
        let word = UInt32(bitPattern: d.imm)
        guard enableFloat() else { return illegal(op, word) }
        var flags: UInt8 = 0
        let done =
            word & 0x7f == 0x53
            ? operate(word, &flags)
            : fusedMultiplyAdd(word, &flags)
        guard done else { return illegal(op, word) }
        pointee.fflags |= flags
        updateFloatFast()
        return op + d.step
    }

    private func operate(_ word: UInt32, _ flags: inout UInt8) -> Bool {
        switch word >> 25 & 3 {
        case 0: operateS(word, &flags)
        case 1: operateD(word, &flags)
        case 2: operateH(word, &flags)
        default: false
        }
    }

    private func fusedMultiplyAdd(_ word: UInt32, _ flags: inout UInt8) -> Bool {
        guard let rm = rounding(word >> 12 & 7) else { return false }
        let rd = Int(word >> 7 & 31)
        let rs1 = f[Int(word >> 15 & 31)]
        let rs2 = f[Int(word >> 20 & 31)]
        let rs3 = f[Int(word >> 27)]
        // fmadd, fmsub, fnmsub, fnmadd
        let kind = word >> 2 & 3
        let negatesProduct = kind >= 2
        let negatesAddend = kind == 1 || kind == 3
        switch word >> 25 & 3 {
        case 0:
            f[rd] = nanBoxed(
                SoftFloat.fma32(
                    unboxed(rs1) ^ (negatesProduct ? signS : 0), unboxed(rs2),
                    unboxed(rs3) ^ (negatesAddend ? signS : 0), rm: rm, flags: &flags))
        case 1:
            let a = rs1 ^ (negatesProduct ? signD : 0)
            let c = rs3 ^ (negatesAddend ? signD : 0)
            f[rd] = SoftFloat.fma64(a, rs2, c, rm: rm, flags: &flags)
        default: return false
        }
        return true
    }

    // MARK: Double precision

    private func operateD(_ word: UInt32, _ flags: inout UInt8) -> Bool {
        let rd = Int(word >> 7 & 31)
        let first = Int(word >> 15 & 31)
        let second = Int(word >> 20 & 31)
        let a = f[first]
        let b = f[second]
        let function = word >> 12 & 7
        switch word >> 27 {
        case 0:
            guard let rm = rounding(function) else { return false }
            f[rd] = SoftFloat.add64(a, b, rm: rm, flags: &flags)
        case 1:
            guard let rm = rounding(function) else { return false }
            f[rd] = SoftFloat.sub64(a, b, rm: rm, flags: &flags)
        case 2:
            guard let rm = rounding(function) else { return false }
            f[rd] = SoftFloat.mul64(a, b, rm: rm, flags: &flags)
        case 3:
            guard let rm = rounding(function) else { return false }
            f[rd] = SoftFloat.div64(a, b, rm: rm, flags: &flags)
        case 11:
            guard second == 0, let rm = rounding(function) else { return false }
            f[rd] =
                pointee.floatFast && rm == 0
                ? HostFloat.squareRoot(a) ?? SoftFloat.sqrt64(a, rm: rm, flags: &flags)
                : SoftFloat.sqrt64(a, rm: rm, flags: &flags)
        case 4:
            switch function {
            case 0: f[rd] = a & ~signD | b & signD
            case 1: f[rd] = a & ~signD | ~b & signD
            case 2: f[rd] = a ^ b & signD
            default: return false
            }
        case 5:
            switch function {
            case 0: f[rd] = SoftFloat.min64(a, b, flags: &flags)
            case 1: f[rd] = SoftFloat.max64(a, b, flags: &flags)
            case 2: f[rd] = SoftFloat.minimum64(a, b, flags: &flags)
            case 3: f[rd] = SoftFloat.maximum64(a, b, flags: &flags)
            default: return false
            }
        case 8:
            guard let rm = rounding(function) else { return false }
            switch second {
            case 0: f[rd] = SoftFloat.f32ToF64(unboxed(a), flags: &flags)
            case 2: f[rd] = SoftFloat.f16ToF64(unboxedHalf(a), flags: &flags)
            case 4: f[rd] = SoftFloat.roundToIntegral64(a, rm: rm, raisesInexact: false, flags: &flags)
            case 5: f[rd] = SoftFloat.roundToIntegral64(a, rm: rm, raisesInexact: true, flags: &flags)
            default: return false
            }
        case 20:
            switch function {
            case 0: setInteger(rd, SoftFloat.le64(a, b, flags: &flags) ? 1 : 0)
            case 1: setInteger(rd, SoftFloat.lt64(a, b, flags: &flags) ? 1 : 0)
            case 2: setInteger(rd, SoftFloat.eq64(a, b, flags: &flags) ? 1 : 0)
            case 4: setInteger(rd, SoftFloat.quietLE64(a, b, flags: &flags) ? 1 : 0)
            case 5: setInteger(rd, SoftFloat.quietLT64(a, b, flags: &flags) ? 1 : 0)
            default: return false
            }
        case 24:
            guard let rm = rounding(function) else { return false }
            switch second {
            case 0: setInteger(rd, extended(SoftFloat.toInt32_64(a, rm: rm, flags: &flags)))
            case 1: setInteger(rd, signExtended(SoftFloat.toUInt32_64(a, rm: rm, flags: &flags)))
            case 2: setInteger(rd, UInt64(bitPattern: SoftFloat.toInt64_64(a, rm: rm, flags: &flags)))
            case 3: setInteger(rd, SoftFloat.toUInt64_64(a, rm: rm, flags: &flags))
            case 8:
                guard function == SoftFloat.roundingTowardZero else { return false }
                setInteger(rd, extended(SoftFloat.toInt32Modular_64(a, flags: &flags)))
            default: return false
            }
        case 26:
            guard let rm = rounding(function) else { return false }
            let value = x[first]
            switch second {
            case 0: f[rd] = SoftFloat.fromInt32_64(Int32(truncatingIfNeeded: value), rm: rm, flags: &flags)
            case 1: f[rd] = SoftFloat.fromUInt32_64(UInt32(truncatingIfNeeded: value), rm: rm, flags: &flags)
            case 2: f[rd] = SoftFloat.fromInt64_64(Int64(bitPattern: value), rm: rm, flags: &flags)
            case 3: f[rd] = SoftFloat.fromUInt64_64(value, rm: rm, flags: &flags)
            default: return false
            }
        case 28:
            guard second == 0 else { return false }
            switch function {
            case 0: setInteger(rd, a)
            case 1: setInteger(rd, SoftFloat.classify64(a))
            default: return false
            }
        case 30:
            guard function == 0 else { return false }
            switch second {
            case 0: f[rd] = x[first]
            case 1: f[rd] = FloatConstant.double(first)
            default: return false
            }
        default: return false
        }
        return true
    }

    // MARK: Single precision

    private func operateS(_ word: UInt32, _ flags: inout UInt8) -> Bool {
        let rd = Int(word >> 7 & 31)
        let first = Int(word >> 15 & 31)
        let second = Int(word >> 20 & 31)
        let a = unboxed(f[first])
        let b = unboxed(f[second])
        let function = word >> 12 & 7
        switch word >> 27 {
        case 0:
            guard let rm = rounding(function) else { return false }
            f[rd] = nanBoxed(SoftFloat.add32(a, b, rm: rm, flags: &flags))
        case 1:
            guard let rm = rounding(function) else { return false }
            f[rd] = nanBoxed(SoftFloat.sub32(a, b, rm: rm, flags: &flags))
        case 2:
            guard let rm = rounding(function) else { return false }
            f[rd] = nanBoxed(SoftFloat.mul32(a, b, rm: rm, flags: &flags))
        case 3:
            guard let rm = rounding(function) else { return false }
            f[rd] = nanBoxed(SoftFloat.div32(a, b, rm: rm, flags: &flags))
        case 11:
            guard second == 0, let rm = rounding(function) else { return false }
            f[rd] = nanBoxed(SoftFloat.sqrt32(a, rm: rm, flags: &flags))
        case 4:
            switch function {
            case 0: f[rd] = nanBoxed(a & ~signS | b & signS)
            case 1: f[rd] = nanBoxed(a & ~signS | ~b & signS)
            case 2: f[rd] = nanBoxed(a ^ b & signS)
            default: return false
            }
        case 5:
            switch function {
            case 0: f[rd] = nanBoxed(SoftFloat.min32(a, b, flags: &flags))
            case 1: f[rd] = nanBoxed(SoftFloat.max32(a, b, flags: &flags))
            case 2: f[rd] = nanBoxed(SoftFloat.minimum32(a, b, flags: &flags))
            case 3: f[rd] = nanBoxed(SoftFloat.maximum32(a, b, flags: &flags))
            default: return false
            }
        case 8:
            guard let rm = rounding(function) else { return false }
            switch second {
            case 1: f[rd] = nanBoxed(SoftFloat.f64ToF32(f[first], rm: rm, flags: &flags))
            case 2: f[rd] = nanBoxed(SoftFloat.f16ToF32(unboxedHalf(f[first]), flags: &flags))
            case 4: f[rd] = nanBoxed(SoftFloat.roundToIntegral32(a, rm: rm, raisesInexact: false, flags: &flags))
            case 5: f[rd] = nanBoxed(SoftFloat.roundToIntegral32(a, rm: rm, raisesInexact: true, flags: &flags))
            default: return false
            }
        case 20:
            switch function {
            case 0: setInteger(rd, SoftFloat.le32(a, b, flags: &flags) ? 1 : 0)
            case 1: setInteger(rd, SoftFloat.lt32(a, b, flags: &flags) ? 1 : 0)
            case 2: setInteger(rd, SoftFloat.eq32(a, b, flags: &flags) ? 1 : 0)
            case 4: setInteger(rd, SoftFloat.quietLE32(a, b, flags: &flags) ? 1 : 0)
            case 5: setInteger(rd, SoftFloat.quietLT32(a, b, flags: &flags) ? 1 : 0)
            default: return false
            }
        case 24:
            guard let rm = rounding(function) else { return false }
            switch second {
            case 0: setInteger(rd, extended(SoftFloat.toInt32_32(a, rm: rm, flags: &flags)))
            case 1: setInteger(rd, signExtended(SoftFloat.toUInt32_32(a, rm: rm, flags: &flags)))
            case 2: setInteger(rd, UInt64(bitPattern: SoftFloat.toInt64_32(a, rm: rm, flags: &flags)))
            case 3: setInteger(rd, SoftFloat.toUInt64_32(a, rm: rm, flags: &flags))
            default: return false
            }
        case 26:
            guard let rm = rounding(function) else { return false }
            let value = x[first]
            switch second {
            case 0: f[rd] = nanBoxed(SoftFloat.fromInt32_32(Int32(truncatingIfNeeded: value), rm: rm, flags: &flags))
            case 1: f[rd] = nanBoxed(SoftFloat.fromUInt32_32(UInt32(truncatingIfNeeded: value), rm: rm, flags: &flags))
            case 2: f[rd] = nanBoxed(SoftFloat.fromInt64_32(Int64(bitPattern: value), rm: rm, flags: &flags))
            case 3: f[rd] = nanBoxed(SoftFloat.fromUInt64_32(value, rm: rm, flags: &flags))
            default: return false
            }
        case 28:
            guard second == 0 else { return false }
            switch function {
            case 0: setInteger(rd, signExtended(UInt32(truncatingIfNeeded: f[first])))
            case 1: setInteger(rd, SoftFloat.classify32(a))
            default: return false
            }
        case 30:
            guard function == 0 else { return false }
            switch second {
            case 0: f[rd] = nanBoxed(UInt32(truncatingIfNeeded: x[first]))
            case 1: f[rd] = nanBoxed(FloatConstant.single(first))
            default: return false
            }
        default: return false
        }
        return true
    }

    // MARK: Half precision (Zfhmin)

    private func operateH(_ word: UInt32, _ flags: inout UInt8) -> Bool {
        let rd = Int(word >> 7 & 31)
        let first = Int(word >> 15 & 31)
        let second = word >> 20 & 31
        let function = word >> 12 & 7
        switch (word >> 27, second) {
        case (8, 0):
            guard let rm = rounding(function) else { return false }
            f[rd] = nanBoxed(SoftFloat.f32ToF16(unboxed(f[first]), rm: rm, flags: &flags))
        case (8, 1):
            guard let rm = rounding(function) else { return false }
            f[rd] = nanBoxed(SoftFloat.f64ToF16(f[first], rm: rm, flags: &flags))
        case (28, 0):
            guard function == 0 else { return false }
            setInteger(rd, UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: f[first]))))
        case (30, 0):
            guard function == 0 else { return false }
            f[rd] = nanBoxed(UInt16(truncatingIfNeeded: x[first]))
        default: return false
        }
        return true
    }

    private func setInteger(_ register: Int, _ value: UInt64) {
        if register != 0 { x[register] = value }
    }

    private func extended(_ value: Int32) -> UInt64 { UInt64(bitPattern: Int64(value)) }
}

/// What fli loads (Zfa), by the number that stands for rs1.
enum FloatConstant {
    static func double(_ index: Int) -> UInt64 {
        index == 1 ? 1 << 52 : index == 31 ? SoftFloat.canonicalNaN64 : value(index).bitPattern
    }
    static func single(_ index: Int) -> UInt32 {
        index == 1 ? 1 << 23 : index == 31 ? SoftFloat.canonicalNaN32 : Float(value(index)).bitPattern
    }

    /// Those that are the same number in each precision.
    private static func value(_ index: Int) -> Double {
        switch index {
        case 0: -1
        case 2: 0x1p-16
        case 3: 0x1p-15
        case 4: 0x1p-8
        case 5: 0x1p-7
        case 6: 0.0625
        case 7: 0.125
        // Two fraction bits from here on.
        case 8...19: Double(4 + index & 3) * (index < 12 ? 0.0625 : index < 16 ? 0.125 : 0.25)
        case 20: 2
        case 21: 2.5
        case 22: 3
        case 23: 4
        case 24: 8
        case 25: 16
        case 26: 128
        case 27: 256
        case 28: 0x1p15
        case 29: 0x1p16
        default: .infinity
        }
    }
}

/// The host's arithmetic where it gives the same result and cannot raise a
/// flag but NX: rounding to nearest, and a result that is normal, finite, and
/// not so small that it may have been tiny before rounding. Callers use it only
/// with NX already set.
enum HostFloat {
    @inline(__always)
    private static func checked(_ value: Double) -> UInt64? {
        let bits = value.bitPattern
        // Exponents 2 to 0x7fe.
        return (bits >> 52 & 0x7ff) &- 2 < 0x7fd ? bits : nil
    }
    /// An x register's value, or nil for NaNs, some of which raise NV.
    @inline(__always)
    static func compare(_ a: UInt64, _ b: UInt64, _ relation: (Double, Double) -> Bool) -> UInt64? {
        let a = Double(bitPattern: a)
        let b = Double(bitPattern: b)
        guard a == a && b == b else { return nil }
        return relation(a, b) ? 1 : 0
    }
    @inline(__always)
    static func add(_ a: UInt64, _ b: UInt64) -> UInt64? { checked(Double(bitPattern: a) + Double(bitPattern: b)) }
    @inline(__always)
    static func subtract(_ a: UInt64, _ b: UInt64) -> UInt64? {
        checked(Double(bitPattern: a) - Double(bitPattern: b))
    }
    @inline(__always)
    static func multiply(_ a: UInt64, _ b: UInt64) -> UInt64? {
        checked(Double(bitPattern: a) * Double(bitPattern: b))
    }
    @inline(__always)
    static func divide(_ a: UInt64, _ b: UInt64) -> UInt64? { checked(Double(bitPattern: a) / Double(bitPattern: b)) }
    @inline(__always)
    static func squareRoot(_ a: UInt64) -> UInt64? { checked(Double(bitPattern: a).squareRoot()) }
    @inline(__always)
    static func fma(_ a: UInt64, _ b: UInt64, _ c: UInt64) -> UInt64? {
        checked(Double(bitPattern: c).addingProduct(Double(bitPattern: a), Double(bitPattern: b)))
    }
}
