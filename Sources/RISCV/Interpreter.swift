import CBaton

/// Runs the hart from `pc` until its budget is used up or `leaveLoop` is called.
///
/// The budget is looked at where code can loop: at taken branches and jumps,
/// page ends, and behind slow ops. It may be overdrawn by the ops in between.
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
    run: while true {
        budget &-= 1
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
                if budget > 0 { continue }
                break run
            }

        // MARK: Control flow
        case .nop:
            op += 2
            continue
        case .fence:
            cbaton_full_fence()
            op += 2
            continue
        case .cNop:
            op += 1
            continue
        case .j:
            op += Int(d.imm)
            if budget > 0 { continue }
            break run
        case .jal:
            x[d.destination] = s.pc(of: op + 2)
            op += Int(d.imm)
            if budget > 0 { continue }
            break run
        case .jFar, .jalFar:
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                x[d.destination] = s.pc(of: op + d.step)
                s.enterPage(address, target)
                op = target
                if budget > 0 { continue }
                break run
            }
        case .jr:
            address = (x[d.source1] &+ d.immediate) & ~1
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                if budget > 0 { continue }
                break run
            }
        case .cJr:
            address = (x[d.source1] &+ d.immediate) & ~1
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                if budget > 0 { continue }
                break run
            }
        case .jalr:
            address = (x[d.source1] &+ d.immediate) & ~1
            if let target = s.fetchHit(address) {
                x[d.destination] = s.pc(of: op + 2)
                s.enterPage(address, target)
                op = target
                if budget > 0 { continue }
                break run
            }
        case .cJalr:
            address = (x[d.source1] &+ d.immediate) & ~1
            if let target = s.fetchHit(address) {
                x[d.destination] = s.pc(of: op + 1)
                s.enterPage(address, target)
                op = target
                if budget > 0 { continue }
                break run
            }
        case .beq:
            if x[d.source1] == x[d.destination] {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 2
            continue
        case .bne:
            if x[d.source1] != x[d.destination] {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 2
            continue
        case .blt:
            if signed(x[d.source1]) < signed(x[d.destination]) {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 2
            continue
        case .bge:
            if signed(x[d.source1]) >= signed(x[d.destination]) {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 2
            continue
        case .bltu:
            if x[d.source1] < x[d.destination] {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 2
            continue
        case .bgeu:
            if x[d.source1] >= x[d.destination] {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 2
            continue
        case .beqz:
            if x[d.source1] == 0 {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 2
            continue
        case .cBeqz:
            if x[d.source1] == 0 {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 1
            continue
        case .bnez:
            if x[d.source1] != 0 {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 2
            continue
        case .cBnez:
            if x[d.source1] != 0 {
                op += Int(d.imm)
                if budget > 0 { continue }
                break run
            }
            op += 1
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
                if budget > 0 { continue }
                break run
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
                if budget > 0 { continue }
                break run
            }
        case .bltFar:
            guard signed(x[d.source1]) < signed(x[d.destination]) else {
                op += d.step
                continue
            }
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                if budget > 0 { continue }
                break run
            }
        case .bgeFar:
            guard signed(x[d.source1]) >= signed(x[d.destination]) else {
                op += d.step
                continue
            }
            address = s.pc(of: op) &+ d.immediate
            if let target = s.fetchHit(address) {
                s.enterPage(address, target)
                op = target
                if budget > 0 { continue }
                break run
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
                if budget > 0 { continue }
                break run
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
                if budget > 0 { continue }
                break run
            }

        // MARK: Loads and stores
        case .lb:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, Int8.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: Int8.self)
                x[d.destination] = UInt64(bitPattern: Int64(value))
                op += 2
                continue
            }
        case .lh:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, Int16.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: Int16.self)
                x[d.destination] = UInt64(bitPattern: Int64(value))
                op += 2
                continue
            }
        case .lw:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, Int32.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: Int32.self)
                x[d.destination] = UInt64(bitPattern: Int64(value))
                op += 2
                continue
            }
        case .cLw:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, Int32.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: Int32.self)
                x[d.destination] = UInt64(bitPattern: Int64(value))
                op += 1
                continue
            }
        case .ld:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, UInt64.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: UInt64.self)
                x[d.destination] = value
                op += 2
                continue
            }
        case .cLd:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, UInt64.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: UInt64.self)
                x[d.destination] = value
                op += 1
                continue
            }
        case .lbu:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, UInt8.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: UInt8.self)
                x[d.destination] = UInt64(value)
                op += 2
                continue
            }
        case .lhu:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, UInt16.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: UInt16.self)
                x[d.destination] = UInt64(value)
                op += 2
                continue
            }
        case .lwu:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB, address, UInt32.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: UInt32.self)
                x[d.destination] = UInt64(value)
                op += 2
                continue
            }
        case .sb:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB + TLB.storeOffset, address, UInt8.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: UInt8(truncatingIfNeeded: x[d.destination]), as: UInt8.self)
                op += 2
                continue
            }
        case .sh:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB + TLB.storeOffset, address, UInt16.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: UInt16(truncatingIfNeeded: x[d.destination]), as: UInt16.self)
                op += 2
                continue
            }
        case .sw:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB + TLB.storeOffset, address, UInt32.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: UInt32(truncatingIfNeeded: x[d.destination]), as: UInt32.self)
                op += 2
                continue
            }
        case .cSw:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB + TLB.storeOffset, address, UInt32.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: UInt32(truncatingIfNeeded: x[d.destination]), as: UInt32.self)
                op += 1
                continue
            }
        case .sd:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB + TLB.storeOffset, address, UInt64.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: x[d.destination], as: UInt64.self)
                op += 2
                continue
            }
        case .cSd:
            address = x[d.source1] &+ d.immediate
            if tlbHit(dataTLB + TLB.storeOffset, address, UInt64.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: x[d.destination], as: UInt64.self)
                op += 1
                continue
            }

        // MARK: Immediates
        case .li:
            x[d.destination] = d.immediate
            op += 2
            continue
        case .cLi:
            x[d.destination] = d.immediate
            op += 1
            continue
        case .auipc:
            x[d.destination] = s.pc(of: op) &+ d.immediate
            op += 2
            continue
        case .mv:
            x[d.destination] = x[d.source1]
            op += 2
            continue
        case .cMv:
            x[d.destination] = x[d.source1]
            op += 1
            continue
        case .addi:
            x[d.destination] = x[d.source1] &+ d.immediate
            op += 2
            continue
        case .cAddi:
            x[d.destination] = x[d.source1] &+ d.immediate
            op += 1
            continue
        case .slti:
            x[d.destination] = signed(x[d.source1]) < Int64(d.imm) ? 1 : 0
            op += 2
            continue
        case .sltiu:
            x[d.destination] = x[d.source1] < d.immediate ? 1 : 0
            op += 2
            continue
        case .xori:
            x[d.destination] = x[d.source1] ^ d.immediate
            op += 2
            continue
        case .ori:
            x[d.destination] = x[d.source1] | d.immediate
            op += 2
            continue
        case .andi:
            x[d.destination] = x[d.source1] & d.immediate
            op += 2
            continue
        case .cAndi:
            x[d.destination] = x[d.source1] & d.immediate
            op += 1
            continue
        case .slli:
            x[d.destination] = x[d.source1] &<< d.immediate
            op += 2
            continue
        case .cSlli:
            x[d.destination] = x[d.source1] &<< d.immediate
            op += 1
            continue
        case .srli:
            x[d.destination] = x[d.source1] &>> d.immediate
            op += 2
            continue
        case .cSrli:
            x[d.destination] = x[d.source1] &>> d.immediate
            op += 1
            continue
        case .srai:
            x[d.destination] = UInt64(bitPattern: signed(x[d.source1]) &>> Int64(d.imm))
            op += 2
            continue
        case .cSrai:
            x[d.destination] = UInt64(bitPattern: signed(x[d.source1]) &>> Int64(d.imm))
            op += 1
            continue
        case .addiw:
            x[d.destination] = signExtended(low(x[d.source1]) &+ UInt32(bitPattern: d.imm))
            op += 2
            continue
        case .cAddiw:
            x[d.destination] = signExtended(low(x[d.source1]) &+ UInt32(bitPattern: d.imm))
            op += 1
            continue
        case .slliw:
            x[d.destination] = signExtended(low(x[d.source1]) &<< UInt32(bitPattern: d.imm))
            op += 2
            continue
        case .srliw:
            x[d.destination] = signExtended(low(x[d.source1]) &>> UInt32(bitPattern: d.imm))
            op += 2
            continue
        case .sraiw:
            x[d.destination] = signExtended(UInt32(bitPattern: signedLow(x[d.source1]) &>> d.imm))
            op += 2
            continue

        // MARK: Registers
        case .add:
            x[d.destination] = x[d.source1] &+ x[d.source2]
            op += 2
            continue
        case .cAdd:
            x[d.destination] = x[d.source1] &+ x[d.source2]
            op += 1
            continue
        case .sub:
            x[d.destination] = x[d.source1] &- x[d.source2]
            op += 2
            continue
        case .cSub:
            x[d.destination] = x[d.source1] &- x[d.source2]
            op += 1
            continue
        case .sll:
            x[d.destination] = x[d.source1] &<< x[d.source2]
            op += 2
            continue
        case .slt:
            x[d.destination] = signed(x[d.source1]) < signed(x[d.source2]) ? 1 : 0
            op += 2
            continue
        case .sltu:
            x[d.destination] = x[d.source1] < x[d.source2] ? 1 : 0
            op += 2
            continue
        case .xor:
            x[d.destination] = x[d.source1] ^ x[d.source2]
            op += 2
            continue
        case .cXor:
            x[d.destination] = x[d.source1] ^ x[d.source2]
            op += 1
            continue
        case .srl:
            x[d.destination] = x[d.source1] &>> x[d.source2]
            op += 2
            continue
        case .sra:
            x[d.destination] = UInt64(bitPattern: signed(x[d.source1]) &>> signed(x[d.source2]))
            op += 2
            continue
        case .or:
            x[d.destination] = x[d.source1] | x[d.source2]
            op += 2
            continue
        case .cOr:
            x[d.destination] = x[d.source1] | x[d.source2]
            op += 1
            continue
        case .and:
            x[d.destination] = x[d.source1] & x[d.source2]
            op += 2
            continue
        case .cAnd:
            x[d.destination] = x[d.source1] & x[d.source2]
            op += 1
            continue
        case .addw:
            x[d.destination] = signExtended(low(x[d.source1]) &+ low(x[d.source2]))
            op += 2
            continue
        case .cAddw:
            x[d.destination] = signExtended(low(x[d.source1]) &+ low(x[d.source2]))
            op += 1
            continue
        case .subw:
            x[d.destination] = signExtended(low(x[d.source1]) &- low(x[d.source2]))
            op += 2
            continue
        case .cSubw:
            x[d.destination] = signExtended(low(x[d.source1]) &- low(x[d.source2]))
            op += 1
            continue
        case .sllw:
            x[d.destination] = signExtended(low(x[d.source1]) &<< low(x[d.source2]))
            op += 2
            continue
        case .srlw:
            x[d.destination] = signExtended(low(x[d.source1]) &>> low(x[d.source2]))
            op += 2
            continue
        case .sraw:
            x[d.destination] = signExtended(UInt32(bitPattern: signedLow(x[d.source1]) &>> signedLow(x[d.source2])))
            op += 2
            continue

        // MARK: Multiplication and division
        case .mul:
            x[d.destination] = x[d.source1] &* x[d.source2]
            op += 2
            continue
        case .mulh:
            x[d.destination] = multiplyHigh(x[d.source1], x[d.source2])
            op += 2
            continue
        case .mulhsu:
            x[d.destination] = multiplyHighSignedUnsigned(x[d.source1], x[d.source2])
            op += 2
            continue
        case .mulhu:
            x[d.destination] = x[d.source1].multipliedFullWidth(by: x[d.source2]).high
            op += 2
            continue
        case .mulw:
            x[d.destination] = signExtended(low(x[d.source1]) &* low(x[d.source2]))
            op += 2
            continue
        case .div:
            x[d.destination] = divide(x[d.source1], x[d.source2])
            op += 2
            continue
        case .divu:
            x[d.destination] = divideUnsigned(x[d.source1], x[d.source2])
            op += 2
            continue
        case .rem:
            x[d.destination] = remainder(x[d.source1], x[d.source2])
            op += 2
            continue
        case .remu:
            x[d.destination] = remainderUnsigned(x[d.source1], x[d.source2])
            op += 2
            continue
        case .divw:
            x[d.destination] = divide32(x[d.source1], x[d.source2])
            op += 2
            continue
        case .divuw:
            x[d.destination] = divideUnsigned32(x[d.source1], x[d.source2])
            op += 2
            continue
        case .remw:
            x[d.destination] = remainder32(x[d.source1], x[d.source2])
            op += 2
            continue
        case .remuw:
            x[d.destination] = remainderUnsigned32(x[d.source1], x[d.source2])
            op += 2
            continue

        // MARK: Zba
        case .sh1add:
            x[d.destination] = (x[d.source1] &<< 1) &+ x[d.source2]
            op += 2
            continue
        case .sh2add:
            x[d.destination] = (x[d.source1] &<< 2) &+ x[d.source2]
            op += 2
            continue
        case .sh3add:
            x[d.destination] = (x[d.source1] &<< 3) &+ x[d.source2]
            op += 2
            continue
        case .addUW:
            x[d.destination] = UInt64(low(x[d.source1])) &+ x[d.source2]
            op += 2
            continue
        case .sh1addUW:
            x[d.destination] = (UInt64(low(x[d.source1])) &<< 1) &+ x[d.source2]
            op += 2
            continue
        case .sh2addUW:
            x[d.destination] = (UInt64(low(x[d.source1])) &<< 2) &+ x[d.source2]
            op += 2
            continue
        case .sh3addUW:
            x[d.destination] = (UInt64(low(x[d.source1])) &<< 3) &+ x[d.source2]
            op += 2
            continue
        case .slliUW:
            x[d.destination] = UInt64(low(x[d.source1])) &<< d.immediate
            op += 2
            continue

        // MARK: Zbb
        case .andn:
            x[d.destination] = x[d.source1] & ~x[d.source2]
            op += 2
            continue
        case .orn:
            x[d.destination] = x[d.source1] | ~x[d.source2]
            op += 2
            continue
        case .xnor:
            x[d.destination] = ~(x[d.source1] ^ x[d.source2])
            op += 2
            continue
        case .clz:
            x[d.destination] = UInt64(truncatingIfNeeded: x[d.source1].leadingZeroBitCount)
            op += 2
            continue
        case .ctz:
            x[d.destination] = UInt64(truncatingIfNeeded: x[d.source1].trailingZeroBitCount)
            op += 2
            continue
        case .cpop:
            x[d.destination] = UInt64(truncatingIfNeeded: x[d.source1].nonzeroBitCount)
            op += 2
            continue
        case .clzw:
            x[d.destination] = UInt64(truncatingIfNeeded: low(x[d.source1]).leadingZeroBitCount)
            op += 2
            continue
        case .ctzw:
            x[d.destination] = UInt64(truncatingIfNeeded: low(x[d.source1]).trailingZeroBitCount)
            op += 2
            continue
        case .cpopw:
            x[d.destination] = UInt64(truncatingIfNeeded: low(x[d.source1]).nonzeroBitCount)
            op += 2
            continue
        case .max:
            x[d.destination] = signed(x[d.source1]) < signed(x[d.source2]) ? x[d.source2] : x[d.source1]
            op += 2
            continue
        case .maxu:
            x[d.destination] = x[d.source1] < x[d.source2] ? x[d.source2] : x[d.source1]
            op += 2
            continue
        case .min:
            x[d.destination] = signed(x[d.source1]) < signed(x[d.source2]) ? x[d.source1] : x[d.source2]
            op += 2
            continue
        case .minu:
            x[d.destination] = x[d.source1] < x[d.source2] ? x[d.source1] : x[d.source2]
            op += 2
            continue
        case .sextB:
            x[d.destination] = UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: x[d.source1])))
            op += 2
            continue
        case .sextH:
            x[d.destination] = UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: x[d.source1])))
            op += 2
            continue
        case .zextH:
            x[d.destination] = x[d.source1] & 0xffff
            op += 2
            continue
        case .rol:
            x[d.destination] = rotateLeft(x[d.source1], x[d.source2])
            op += 2
            continue
        case .ror:
            x[d.destination] = rotateRight(x[d.source1], x[d.source2])
            op += 2
            continue
        case .rori:
            x[d.destination] = rotateRight(x[d.source1], d.immediate)
            op += 2
            continue
        case .rolw:
            x[d.destination] = signExtended(rotateLeft(low(x[d.source1]), low(x[d.source2])))
            op += 2
            continue
        case .rorw:
            x[d.destination] = signExtended(rotateRight(low(x[d.source1]), low(x[d.source2])))
            op += 2
            continue
        case .roriw:
            x[d.destination] = signExtended(rotateRight(low(x[d.source1]), UInt32(bitPattern: d.imm)))
            op += 2
            continue
        case .orcB:
            x[d.destination] = orCombineBytes(x[d.source1])
            op += 2
            continue
        case .rev8:
            x[d.destination] = x[d.source1].byteSwapped
            op += 2
            continue

        // MARK: Zbs
        case .bclr:
            x[d.destination] = x[d.source1] & ~(1 &<< x[d.source2])
            op += 2
            continue
        case .bext:
            x[d.destination] = (x[d.source1] &>> x[d.source2]) & 1
            op += 2
            continue
        case .binv:
            x[d.destination] = x[d.source1] ^ (1 &<< x[d.source2])
            op += 2
            continue
        case .bset:
            x[d.destination] = x[d.source1] | (1 &<< x[d.source2])
            op += 2
            continue
        case .bclri:
            x[d.destination] = x[d.source1] & ~(1 &<< d.immediate)
            op += 2
            continue
        case .bexti:
            x[d.destination] = (x[d.source1] &>> d.immediate) & 1
            op += 2
            continue
        case .binvi:
            x[d.destination] = x[d.source1] ^ (1 &<< d.immediate)
            op += 2
            continue
        case .bseti:
            x[d.destination] = x[d.source1] | (1 &<< d.immediate)
            op += 2
            continue

        // MARK: Floating point
        case .flw:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, tlbHit(dataTLB, address, UInt32.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: UInt32.self)
                s.f[d.destination] = nanBoxed(value)
                op += 2
                continue
            }
        case .fld:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, tlbHit(dataTLB, address, UInt64.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: UInt64.self)
                s.f[d.destination] = value
                op += 2
                continue
            }
        case .cFld:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, tlbHit(dataTLB, address, UInt64.self) {
                let host = hostAddress(dataTLB, address)
                let value = host.loadUnaligned(as: UInt64.self)
                s.f[d.destination] = value
                op += 1
                continue
            }
        case .fsw:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, tlbHit(dataTLB + TLB.storeOffset, address, UInt32.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: UInt32(truncatingIfNeeded: s.f[d.destination]), as: UInt32.self)
                op += 2
                continue
            }
        case .fsd:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, tlbHit(dataTLB + TLB.storeOffset, address, UInt64.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: s.f[d.destination], as: UInt64.self)
                op += 2
                continue
            }
        case .cFsd:
            address = x[d.source1] &+ d.immediate
            if s.pointee.floatReady, tlbHit(dataTLB + TLB.storeOffset, address, UInt64.self) {
                let host = hostAddress(dataTLB + TLB.storeOffset, address)
                host.storeBytes(of: s.f[d.destination], as: UInt64.self)
                op += 1
                continue
            }
        case .faddD:
            if s.pointee.floatFast, let value = HostFloat.add(s.f[d.source1], s.f[d.wordSource2]) {
                s.f[d.destination] = value
                op += 2
                continue
            }
        case .fsubD:
            if s.pointee.floatFast, let value = HostFloat.subtract(s.f[d.source1], s.f[d.wordSource2]) {
                s.f[d.destination] = value
                op += 2
                continue
            }
        case .fmulD:
            if s.pointee.floatFast, let value = HostFloat.multiply(s.f[d.source1], s.f[d.wordSource2]) {
                s.f[d.destination] = value
                op += 2
                continue
            }
        case .fdivD:
            if s.pointee.floatFast, let value = HostFloat.divide(s.f[d.source1], s.f[d.wordSource2]) {
                s.f[d.destination] = value
                op += 2
                continue
            }
        case .fsgnjD:
            if s.pointee.floatReady {
                s.f[d.destination] = s.f[d.source1] & ~(1 << 63) | s.f[d.wordSource2] & 1 << 63
                op += 2
                continue
            }
        case .feqD:
            if s.pointee.floatReady, let result = HostFloat.compare(s.f[d.source1], s.f[d.wordSource2], { $0 == $1 }) {
                x[d.destination] = result
                op += 2
                continue
            }
        case .fltD:
            if s.pointee.floatReady, let result = HostFloat.compare(s.f[d.source1], s.f[d.wordSource2], { $0 < $1 }) {
                x[d.destination] = result
                op += 2
                continue
            }
        case .fleD:
            if s.pointee.floatReady, let result = HostFloat.compare(s.f[d.source1], s.f[d.wordSource2], { $0 <= $1 }) {
                x[d.destination] = result
                op += 2
                continue
            }
        case .fmvXD:
            if s.pointee.floatReady {
                x[d.destination] = s.f[d.source1]
                op += 2
                continue
            }
        case .fmvDX:
            if s.pointee.floatReady {
                s.f[d.destination] = x[d.source1]
                op += 2
                continue
            }

        case .undecoded, .crossing, .refetch, .fenceI, .other, .flh, .fsh, .fmaD, .float, .atomic, .csr, .ecall,
            .ebreak, .mret, .sret, .wfi, .waitOnReservation, .sfenceVMA, .sinvalVMA, .invalidationFence, .cacheBlock,
            .illegal:
            break
        }
        s.pointee.budget = budget
        op = s.executeSlow(op, address)
        budget = s.pointee.budget
        dataTLB = s.pointee.dataTLB
        if budget <= 0 { break }
    }
    s.pointee.pc = s.pc(of: op)
    s.pointee.retiredAtEnd &-= UInt64(bitPattern: budget)
    s.pointee.budget = 0
}
