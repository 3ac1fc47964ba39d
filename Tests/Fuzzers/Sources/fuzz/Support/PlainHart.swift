/// RV64IM as the specification has it, one instruction after the other, in M-mode, with nothing that is fast: what the
/// hart is compared with. Stops at whatever else there is.
struct PlainHart {
    var x = [UInt64](repeating: 0, count: 32)
    var pc: UInt64
    let base: UInt64
    var memory: [UInt8]
    /// Where code is, which is neither read nor written as data.
    let code: Range<UInt64>

    init(pc: UInt64, base: UInt64, memory: [UInt8], code: Range<UInt64>) {
        (self.pc, self.base, self.memory, self.code) = (pc, base, memory, code)
    }

    private static func signExtended(_ value: UInt64, _ bits: Int) -> UInt64 {
        UInt64(bitPattern: Int64(bitPattern: value << UInt64(64 - bits)) >> Int64(64 - bits))
    }

    /// A place in memory for data; nil for anything else.
    private func place(_ address: UInt64, _ size: Int) -> Int? {
        let offset = address &- base
        guard offset <= UInt64(memory.count - size), !code.overlaps(address..<address + UInt64(size)) else {
            return nil
        }
        return Int(offset)
    }

    private func load(_ address: UInt64, _ size: Int) -> UInt64? {
        guard let at = place(address, size) else { return nil }
        return (0..<size).reversed().reduce(0) { $0 << 8 | UInt64(memory[at + $1]) }
    }

    /// Carries out the instruction at `pc`.
    /// - Returns: false for one that is not known here; then nothing has changed.
    mutating func step() -> Bool {
        guard code.contains(pc), code.upperBound - pc >= 4, pc % 4 == 0 else { return false }
        let word: UInt32 = memory.load(Int(pc - base))
        let (rd, rs1, rs2) = (Int(word >> 7 & 31), Int(word >> 15 & 31), Int(word >> 20 & 31))
        let (funct3, funct7) = (word >> 12 & 7, word >> 25)
        let (a, b) = (x[rs1], x[rs2])
        let immediate = PlainHart.signExtended(UInt64(word >> 20), 12)
        var result: UInt64?
        var next = pc &+ 4
        switch word & 0x7f {
        case 0x37: result = PlainHart.signExtended(UInt64(word & 0xffff_f000), 32)
        case 0x17: result = pc &+ PlainHart.signExtended(UInt64(word & 0xffff_f000), 32)
        case 0x6f:
            let high = UInt64(word >> 31) << 20 | UInt64(word >> 12 & 0xff) << 12
            let offset = high | UInt64(word >> 20 & 1) << 11 | UInt64(word >> 21 & 0x3ff) << 1
            result = next
            next = pc &+ PlainHart.signExtended(offset, 21)
        case 0x67 where funct3 == 0:
            result = next
            next = (a &+ immediate) & ~1
        case 0x63:
            let isTaken: Bool
            switch funct3 {
            case 0: isTaken = a == b
            case 1: isTaken = a != b
            case 4: isTaken = Int64(bitPattern: a) < Int64(bitPattern: b)
            case 5: isTaken = Int64(bitPattern: a) >= Int64(bitPattern: b)
            case 6: isTaken = a < b
            case 7: isTaken = a >= b
            default: return false
            }
            let high = UInt64(word >> 31) << 12 | UInt64(word >> 7 & 1) << 11
            let offset = high | UInt64(word >> 25 & 0x3f) << 5 | UInt64(word >> 8 & 15) << 1
            if isTaken { next = pc &+ PlainHart.signExtended(offset, 13) }
        case 0x03:
            let size = 1 << Int(funct3 & 3)
            guard funct3 != 7, let value = load(a &+ immediate, size) else { return false }
            result = funct3 < 4 ? PlainHart.signExtended(value, 8 * size) : value
        case 0x23:
            let offset = PlainHart.signExtended(UInt64(funct7 << 5 | word >> 7 & 31), 12)
            guard funct3 < 4, let at = place(a &+ offset, 1 << Int(funct3)) else { return false }
            for index in 0..<1 << Int(funct3) { memory[at + index] = UInt8(truncatingIfNeeded: b >> UInt64(8 * index)) }
        case 0x13:
            let shift = UInt64(word >> 20 & 63)
            switch (funct3, word >> 26) {
            case (0, _): result = a &+ immediate
            case (1, 0): result = a << shift
            case (2, _): result = Int64(bitPattern: a) < Int64(bitPattern: immediate) ? 1 : 0
            case (3, _): result = a < immediate ? 1 : 0
            case (4, _): result = a ^ immediate
            case (5, 0): result = a >> shift
            case (5, 16): result = UInt64(bitPattern: Int64(bitPattern: a) >> Int64(shift))
            case (6, _): result = a | immediate
            case (7, _): result = a & immediate
            default: return false
            }
        case 0x1b:
            let shift = UInt32(word >> 20 & 31)
            let low = UInt32(truncatingIfNeeded: a)
            let value: UInt32
            switch (funct3, funct7) {
            case (0, _): value = UInt32(truncatingIfNeeded: a &+ immediate)
            case (1, 0): value = low << shift
            case (5, 0): value = low >> shift
            case (5, 0x20): value = UInt32(bitPattern: Int32(bitPattern: low) >> Int32(shift))
            default: return false
            }
            result = PlainHart.signExtended(UInt64(value), 32)
        case 0x33:
            guard let value = PlainHart.arithmetic(funct3, funct7, a, b) else { return false }
            result = value
        case 0x3b:
            let (low, other) = (UInt32(truncatingIfNeeded: a), UInt32(truncatingIfNeeded: b))
            guard let value = PlainHart.wordArithmetic(funct3, funct7, low, other) else { return false }
            result = PlainHart.signExtended(UInt64(value), 32)
        default: return false
        }
        // Code outside is another matter, and so are halves of words.
        guard code.contains(next), next % 4 == 0 else { return false }
        if let result, rd != 0 { x[rd] = result }
        pc = next
        return true
    }

    private static func arithmetic(_ funct3: UInt32, _ funct7: UInt32, _ a: UInt64, _ b: UInt64) -> UInt64? {
        let (signed, other) = (Int64(bitPattern: a), Int64(bitPattern: b))
        switch (funct7, funct3) {
        case (0, 0): return a &+ b
        case (0x20, 0): return a &- b
        case (0, 1): return a << (b & 63)
        case (0, 2): return signed < other ? 1 : 0
        case (0, 3): return a < b ? 1 : 0
        case (0, 4): return a ^ b
        case (0, 5): return a >> (b & 63)
        case (0x20, 5): return UInt64(bitPattern: signed >> (other & 63))
        case (0, 6): return a | b
        case (0, 7): return a & b
        case (1, 0): return a &* b
        case (1, 1): return UInt64(bitPattern: signed.multipliedFullWidth(by: other).high)
        case (1, 2):
            // Signed by unsigned.
            let high = a.multipliedFullWidth(by: b).high
            return signed < 0 ? high &- b : high
        case (1, 3): return a.multipliedFullWidth(by: b).high
        case (1, 4):
            return UInt64(bitPattern: other == 0 ? -1 : signed.dividedReportingOverflow(by: other).partialValue)
        case (1, 5): return b == 0 ? .max : a / b
        case (1, 6):
            if other == 0 { return a }
            return other == -1 ? 0 : UInt64(bitPattern: signed % other)
        case (1, 7): return b == 0 ? a : a % b
        default: return nil
        }
    }

    private static func wordArithmetic(_ funct3: UInt32, _ funct7: UInt32, _ a: UInt32, _ b: UInt32) -> UInt32? {
        let (signed, other) = (Int32(bitPattern: a), Int32(bitPattern: b))
        switch (funct7, funct3) {
        case (0, 0): return a &+ b
        case (0x20, 0): return a &- b
        case (0, 1): return a << (b & 31)
        case (0, 5): return a >> (b & 31)
        case (0x20, 5): return UInt32(bitPattern: signed >> (other & 31))
        case (1, 0): return a &* b
        case (1, 4):
            return UInt32(bitPattern: other == 0 ? -1 : signed.dividedReportingOverflow(by: other).partialValue)
        case (1, 5): return b == 0 ? .max : a / b
        case (1, 6):
            if other == 0 { return a }
            return other == -1 ? 0 : UInt32(bitPattern: signed % other)
        case (1, 7): return b == 0 ? a : a % b
        default: return nil
        }
    }
}
