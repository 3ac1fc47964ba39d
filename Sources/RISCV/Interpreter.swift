/// Runs the hart from `pc` until its budget is used up or `leaveLoop` is called.
///
/// Each op ends with `continue`; an op that does not (a TLB miss, a rare or a
/// system instruction, code not decoded yet) leaves the switch with `address`
/// set and is carried out by `executeSlow`, which returns the op to go on with.
/// Only `executeSlow` and what it calls may change the mode, the TLB sets or
/// the budget.
@inline(never)
func interpret(_ s: HartPointer) {
    var op = s.resolve(s.pointee.pc)
    var budget = s.pointee.budget
    var dataTLB = s.pointee.dataTLB
    let x = s.x
    while true {
        budget &-= 1
        if budget < 0 { break }
        let d = op.pointee
        var address: UInt64 = 0
        switch d.code {
        // MARK: Not instructions
        case .pageEnd:
            budget &+= 1
            address = s.pc(of: op)
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                continue
            }

        // MARK: Control flow
        case .nop, .fence:
            op += d.step
            continue
        case .j:
            op += Int(d.imm)
            continue
        case .jal:
            x[d.destination] = s.pc(of: op + d.step)
            op += Int(d.imm)
            continue
        case .jFar, .jalFar:
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                x[d.destination] = s.pc(of: op + d.step)
                s.enterPage(address, target)
                op = target
                continue
            }
        case .jr:
            address = (x[d.source1] &+ d.immediate) & ~1
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                continue
            }
        case .jalr:
            address = (x[d.source1] &+ d.immediate) & ~1
            if let target = s.fetchHit(address) {
                x[d.destination] = s.pc(of: op + d.step)
                s.enterPage(address, target)
                op = target
                continue
            }
        case .beq:
            if x[d.source1] == x[d.destination] {
                op += Int(d.imm)
                continue
            }
            op += d.step
            continue
        case .bne:
            if x[d.source1] != x[d.destination] {
                op += Int(d.imm)
                continue
            }
            op += d.step
            continue
        case .blt:
            if Int64(bitPattern: x[d.source1]) < Int64(bitPattern: x[d.destination]) {
                op += Int(d.imm)
                continue
            }
            op += d.step
            continue
        case .bge:
            if Int64(bitPattern: x[d.source1]) >= Int64(bitPattern: x[d.destination]) {
                op += Int(d.imm)
                continue
            }
            op += d.step
            continue
        case .bltu:
            if x[d.source1] < x[d.destination] {
                op += Int(d.imm)
                continue
            }
            op += d.step
            continue
        case .bgeu:
            if x[d.source1] >= x[d.destination] {
                op += Int(d.imm)
                continue
            }
            op += d.step
            continue
        case .beqz:
            if x[d.source1] == 0 {
                op += Int(d.imm)
                continue
            }
            op += d.step
            continue
        case .bnez:
            if x[d.source1] != 0 {
                op += Int(d.imm)
                continue
            }
            op += d.step
            continue
        case .beqFar:
            guard x[d.source1] == x[d.destination] else {
                op += d.step
                continue
            }
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                continue
            }
        case .bneFar:
            guard x[d.source1] != x[d.destination] else {
                op += d.step
                continue
            }
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                continue
            }
        case .bltFar:
            guard Int64(bitPattern: x[d.source1]) < Int64(bitPattern: x[d.destination]) else {
                op += d.step
                continue
            }
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                continue
            }
        case .bgeFar:
            guard Int64(bitPattern: x[d.source1]) >= Int64(bitPattern: x[d.destination]) else {
                op += d.step
                continue
            }
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                continue
            }
        case .bltuFar:
            guard x[d.source1] < x[d.destination] else {
                op += d.step
                continue
            }
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                continue
            }
        case .bgeuFar:
            guard x[d.source1] >= x[d.destination] else {
                op += d.step
                continue
            }
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                continue
            }

        // MARK: Loads and stores
        case .lb:
            address = x[d.source1] &+ d.immediate
            if let host = loadHit(dataTLB, address, Int8.self) {
                let value = host.loadUnaligned(as: Int8.self)
                x[d.destination] = UInt64(bitPattern: Int64(value))
                op += d.step
                continue
            }
        case .lh:
            address = x[d.source1] &+ d.immediate
            if let host = loadHit(dataTLB, address, Int16.self) {
                let value = host.loadUnaligned(as: Int16.self)
                x[d.destination] = UInt64(bitPattern: Int64(value))
                op += d.step
                continue
            }
        case .lw:
            address = x[d.source1] &+ d.immediate
            if let host = loadHit(dataTLB, address, Int32.self) {
                let value = host.loadUnaligned(as: Int32.self)
                x[d.destination] = UInt64(bitPattern: Int64(value))
                op += d.step
                continue
            }
        case .ld:
            address = x[d.source1] &+ d.immediate
            if let host = loadHit(dataTLB, address, UInt64.self) {
                let value = host.loadUnaligned(as: UInt64.self)
                x[d.destination] = value
                op += d.step
                continue
            }
        case .lbu:
            address = x[d.source1] &+ d.immediate
            if let host = loadHit(dataTLB, address, UInt8.self) {
                let value = host.loadUnaligned(as: UInt8.self)
                x[d.destination] = UInt64(value)
                op += d.step
                continue
            }
        case .lhu:
            address = x[d.source1] &+ d.immediate
            if let host = loadHit(dataTLB, address, UInt16.self) {
                let value = host.loadUnaligned(as: UInt16.self)
                x[d.destination] = UInt64(value)
                op += d.step
                continue
            }
        case .lwu:
            address = x[d.source1] &+ d.immediate
            if let host = loadHit(dataTLB, address, UInt32.self) {
                let value = host.loadUnaligned(as: UInt32.self)
                x[d.destination] = UInt64(value)
                op += d.step
                continue
            }
        case .sb:
            address = x[d.source1] &+ d.immediate
            if let host = storeHit(dataTLB, address, UInt8.self) {
                host.storeBytes(of: UInt8(truncatingIfNeeded: x[d.destination]), as: UInt8.self)
                op += d.step
                continue
            }
        case .sh:
            address = x[d.source1] &+ d.immediate
            if let host = storeHit(dataTLB, address, UInt16.self) {
                host.storeBytes(of: UInt16(truncatingIfNeeded: x[d.destination]), as: UInt16.self)
                op += d.step
                continue
            }
        case .sw:
            address = x[d.source1] &+ d.immediate
            if let host = storeHit(dataTLB, address, UInt32.self) {
                host.storeBytes(of: UInt32(truncatingIfNeeded: x[d.destination]), as: UInt32.self)
                op += d.step
                continue
            }
        case .sd:
            address = x[d.source1] &+ d.immediate
            if let host = storeHit(dataTLB, address, UInt64.self) {
                host.storeBytes(of: x[d.destination], as: UInt64.self)
                op += d.step
                continue
            }

        // MARK: Immediates
        case .li:
            x[d.destination] = d.immediate
            op += d.step
            continue
        case .auipc:
            x[d.destination] = s.pc(of: op) &+ d.immediate
            op += d.step
            continue
        case .mv:
            x[d.destination] = x[d.source1]
            op += d.step
            continue
        case .addi:
            x[d.destination] = x[d.source1] &+ d.immediate
            op += d.step
            continue
        case .slti:
            x[d.destination] = Int64(bitPattern: x[d.source1]) < Int64(d.imm) ? 1 : 0
            op += d.step
            continue
        case .sltiu:
            x[d.destination] = x[d.source1] < d.immediate ? 1 : 0
            op += d.step
            continue
        case .xori:
            x[d.destination] = x[d.source1] ^ d.immediate
            op += d.step
            continue
        case .ori:
            x[d.destination] = x[d.source1] | d.immediate
            op += d.step
            continue
        case .andi:
            x[d.destination] = x[d.source1] & d.immediate
            op += d.step
            continue
        case .slli:
            x[d.destination] = x[d.source1] &<< d.immediate
            op += d.step
            continue
        case .srli:
            x[d.destination] = x[d.source1] &>> d.immediate
            op += d.step
            continue
        case .srai:
            x[d.destination] = UInt64(bitPattern: Int64(bitPattern: x[d.source1]) &>> Int64(d.imm))
            op += d.step
            continue
        case .addiw:
            x[d.destination] = signExtended(UInt32(truncatingIfNeeded: x[d.source1]) &+ UInt32(bitPattern: d.imm))
            op += d.step
            continue
        case .slliw:
            x[d.destination] = signExtended(UInt32(truncatingIfNeeded: x[d.source1]) &<< UInt32(bitPattern: d.imm))
            op += d.step
            continue
        case .srliw:
            x[d.destination] = signExtended(UInt32(truncatingIfNeeded: x[d.source1]) &>> UInt32(bitPattern: d.imm))
            op += d.step
            continue
        case .sraiw:
            x[d.destination] = signExtended(UInt32(bitPattern: Int32(truncatingIfNeeded: x[d.source1]) &>> d.imm))
            op += d.step
            continue

        // MARK: Registers
        case .add:
            x[d.destination] = x[d.source1] &+ x[d.source2]
            op += d.step
            continue
        case .sub:
            x[d.destination] = x[d.source1] &- x[d.source2]
            op += d.step
            continue
        case .sll:
            x[d.destination] = x[d.source1] &<< x[d.source2]
            op += d.step
            continue
        case .slt:
            x[d.destination] = Int64(bitPattern: x[d.source1]) < Int64(bitPattern: x[d.source2]) ? 1 : 0
            op += d.step
            continue
        case .sltu:
            x[d.destination] = x[d.source1] < x[d.source2] ? 1 : 0
            op += d.step
            continue
        case .xor:
            x[d.destination] = x[d.source1] ^ x[d.source2]
            op += d.step
            continue
        case .srl:
            x[d.destination] = x[d.source1] &>> x[d.source2]
            op += d.step
            continue
        case .sra:
            x[d.destination] = UInt64(bitPattern: Int64(bitPattern: x[d.source1]) &>> Int64(bitPattern: x[d.source2]))
            op += d.step
            continue
        case .or:
            x[d.destination] = x[d.source1] | x[d.source2]
            op += d.step
            continue
        case .and:
            x[d.destination] = x[d.source1] & x[d.source2]
            op += d.step
            continue
        case .addw:
            x[d.destination] = signExtended(UInt32(truncatingIfNeeded: x[d.source1]) &+ UInt32(truncatingIfNeeded: x[d.source2]))
            op += d.step
            continue
        case .subw:
            x[d.destination] = signExtended(UInt32(truncatingIfNeeded: x[d.source1]) &- UInt32(truncatingIfNeeded: x[d.source2]))
            op += d.step
            continue
        case .sllw:
            x[d.destination] = signExtended(UInt32(truncatingIfNeeded: x[d.source1]) &<< UInt32(truncatingIfNeeded: x[d.source2]))
            op += d.step
            continue
        case .srlw:
            x[d.destination] = signExtended(UInt32(truncatingIfNeeded: x[d.source1]) &>> UInt32(truncatingIfNeeded: x[d.source2]))
            op += d.step
            continue
        case .sraw:
            x[d.destination] = signExtended(UInt32(bitPattern: Int32(truncatingIfNeeded: x[d.source1]) &>> Int32(truncatingIfNeeded: x[d.source2])))
            op += d.step
            continue

        // MARK: Multiplication and division
        case .mul:
            x[d.destination] = x[d.source1] &* x[d.source2]
            op += d.step
            continue
        case .mulh:
            x[d.destination] = UInt64(bitPattern: Int64(bitPattern: x[d.source1]).multipliedFullWidth(by: Int64(bitPattern: x[d.source2])).high)
            op += d.step
            continue
        case .mulhsu:
            x[d.destination] = multiplyHighSignedUnsigned(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .mulhu:
            x[d.destination] = x[d.source1].multipliedFullWidth(by: x[d.source2]).high
            op += d.step
            continue
        case .mulw:
            x[d.destination] = signExtended(UInt32(truncatingIfNeeded: x[d.source1]) &* UInt32(truncatingIfNeeded: x[d.source2]))
            op += d.step
            continue
        case .div:
            x[d.destination] = divide(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .divu:
            x[d.destination] = divideUnsigned(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .rem:
            x[d.destination] = remainder(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .remu:
            x[d.destination] = remainderUnsigned(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .divw:
            x[d.destination] = divide32(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .divuw:
            x[d.destination] = divideUnsigned32(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .remw:
            x[d.destination] = remainder32(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .remuw:
            x[d.destination] = remainderUnsigned32(x[d.source1], x[d.source2])
            op += d.step
            continue

        // MARK: Zba
        case .sh1add:
            x[d.destination] = (x[d.source1] &<< 1) &+ x[d.source2]
            op += d.step
            continue
        case .sh2add:
            x[d.destination] = (x[d.source1] &<< 2) &+ x[d.source2]
            op += d.step
            continue
        case .sh3add:
            x[d.destination] = (x[d.source1] &<< 3) &+ x[d.source2]
            op += d.step
            continue
        case .addUW:
            x[d.destination] = UInt64(UInt32(truncatingIfNeeded: x[d.source1])) &+ x[d.source2]
            op += d.step
            continue
        case .sh1addUW:
            x[d.destination] = (UInt64(UInt32(truncatingIfNeeded: x[d.source1])) &<< 1) &+ x[d.source2]
            op += d.step
            continue
        case .sh2addUW:
            x[d.destination] = (UInt64(UInt32(truncatingIfNeeded: x[d.source1])) &<< 2) &+ x[d.source2]
            op += d.step
            continue
        case .sh3addUW:
            x[d.destination] = (UInt64(UInt32(truncatingIfNeeded: x[d.source1])) &<< 3) &+ x[d.source2]
            op += d.step
            continue
        case .slliUW:
            x[d.destination] = UInt64(UInt32(truncatingIfNeeded: x[d.source1])) &<< d.immediate
            op += d.step
            continue

        // MARK: Zbb
        case .andn:
            x[d.destination] = x[d.source1] & ~x[d.source2]
            op += d.step
            continue
        case .orn:
            x[d.destination] = x[d.source1] | ~x[d.source2]
            op += d.step
            continue
        case .xnor:
            x[d.destination] = ~(x[d.source1] ^ x[d.source2])
            op += d.step
            continue
        case .clz:
            x[d.destination] = UInt64(truncatingIfNeeded: x[d.source1].leadingZeroBitCount)
            op += d.step
            continue
        case .ctz:
            x[d.destination] = UInt64(truncatingIfNeeded: x[d.source1].trailingZeroBitCount)
            op += d.step
            continue
        case .cpop:
            x[d.destination] = UInt64(truncatingIfNeeded: x[d.source1].nonzeroBitCount)
            op += d.step
            continue
        case .clzw:
            x[d.destination] = UInt64(truncatingIfNeeded: UInt32(truncatingIfNeeded: x[d.source1]).leadingZeroBitCount)
            op += d.step
            continue
        case .ctzw:
            x[d.destination] = UInt64(truncatingIfNeeded: UInt32(truncatingIfNeeded: x[d.source1]).trailingZeroBitCount)
            op += d.step
            continue
        case .cpopw:
            x[d.destination] = UInt64(truncatingIfNeeded: UInt32(truncatingIfNeeded: x[d.source1]).nonzeroBitCount)
            op += d.step
            continue
        case .max:
            x[d.destination] = Int64(bitPattern: x[d.source1]) < Int64(bitPattern: x[d.source2]) ? x[d.source2] : x[d.source1]
            op += d.step
            continue
        case .maxu:
            x[d.destination] = x[d.source1] < x[d.source2] ? x[d.source2] : x[d.source1]
            op += d.step
            continue
        case .min:
            x[d.destination] = Int64(bitPattern: x[d.source1]) < Int64(bitPattern: x[d.source2]) ? x[d.source1] : x[d.source2]
            op += d.step
            continue
        case .minu:
            x[d.destination] = x[d.source1] < x[d.source2] ? x[d.source1] : x[d.source2]
            op += d.step
            continue
        case .sextB:
            x[d.destination] = UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: x[d.source1])))
            op += d.step
            continue
        case .sextH:
            x[d.destination] = UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: x[d.source1])))
            op += d.step
            continue
        case .zextH:
            x[d.destination] = x[d.source1] & 0xffff
            op += d.step
            continue
        case .rol:
            x[d.destination] = rotateLeft(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .ror:
            x[d.destination] = rotateRight(x[d.source1], x[d.source2])
            op += d.step
            continue
        case .rori:
            x[d.destination] = rotateRight(x[d.source1], d.immediate)
            op += d.step
            continue
        case .rolw:
            x[d.destination] = signExtended(rotateLeft(UInt32(truncatingIfNeeded: x[d.source1]), UInt32(truncatingIfNeeded: x[d.source2])))
            op += d.step
            continue
        case .rorw:
            x[d.destination] = signExtended(rotateRight(UInt32(truncatingIfNeeded: x[d.source1]), UInt32(truncatingIfNeeded: x[d.source2])))
            op += d.step
            continue
        case .roriw:
            x[d.destination] = signExtended(rotateRight(UInt32(truncatingIfNeeded: x[d.source1]), UInt32(bitPattern: d.imm)))
            op += d.step
            continue
        case .orcB:
            x[d.destination] = orCombineBytes(x[d.source1])
            op += d.step
            continue
        case .rev8:
            x[d.destination] = x[d.source1].byteSwapped
            op += d.step
            continue

        // MARK: Zbs
        case .bclr:
            x[d.destination] = x[d.source1] & ~(1 &<< x[d.source2])
            op += d.step
            continue
        case .bext:
            x[d.destination] = (x[d.source1] &>> x[d.source2]) & 1
            op += d.step
            continue
        case .binv:
            x[d.destination] = x[d.source1] ^ (1 &<< x[d.source2])
            op += d.step
            continue
        case .bset:
            x[d.destination] = x[d.source1] | (1 &<< x[d.source2])
            op += d.step
            continue
        case .bclri:
            x[d.destination] = x[d.source1] & ~(1 &<< d.immediate)
            op += d.step
            continue
        case .bexti:
            x[d.destination] = (x[d.source1] &>> d.immediate) & 1
            op += d.step
            continue
        case .binvi:
            x[d.destination] = x[d.source1] ^ (1 &<< d.immediate)
            op += d.step
            continue
        case .bseti:
            x[d.destination] = x[d.source1] | (1 &<< d.immediate)
            op += d.step
            continue

        // MARK: Floating point
        case .flw:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, let host = loadHit(dataTLB, address, UInt32.self) {
                let value = host.loadUnaligned(as: UInt32.self)
                s.f[d.destination] = nanBoxed(value)
                op += d.step
                continue
            }
        case .fld:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, let host = loadHit(dataTLB, address, UInt64.self) {
                let value = host.loadUnaligned(as: UInt64.self)
                s.f[d.destination] = value
                op += d.step
                continue
            }
        case .fsw:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, let host = storeHit(dataTLB, address, UInt32.self) {
                host.storeBytes(of: UInt32(truncatingIfNeeded: s.f[d.destination]), as: UInt32.self)
                op += d.step
                continue
            }
        case .fsd:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, let host = storeHit(dataTLB, address, UInt64.self) {
                host.storeBytes(of: s.f[d.destination], as: UInt64.self)
                op += d.step
                continue
            }

        case .undecoded, .crossing, .refetch, .fenceI, .float, .atomic, .csr, .ecall, .ebreak, .mret, .sret,
            .wfi, .sfenceVMA, .illegal:
            break
        }
        s.pointee.budget = budget
        op = s.executeSlow(op, address)
        budget = s.pointee.budget
        dataTLB = s.pointee.dataTLB
    }
    s.pointee.budget = 0
    s.pointee.pc = s.pc(of: op)
}
