extension UnsafeMutablePointer where Pointee == HartState {
    /// Carries out an op that the loop did not finish.
    /// - Parameter address: what the loop computed for it: the address of a
    ///   load or store that missed the TLB, or the target of a jump that did.
    /// - Returns: the op to go on with.
    @inline(never)
    func executeSlow(_ op: OpPointer, _ address: UInt64) -> OpPointer {
        noteSlowWork(1)
        let d = op.pointee
        switch d.code {
        case .undecoded: return decode(op)
        case .pageEnd: return resolve(address)
        case .crossing: return runCrossing(op)
        case .refetch:
            // Not an instruction, but it uses up budget.
            pointee.retiredAtEnd &-= 1
            return resolve(pc(of: op))

        case .jFar, .jalFar, .jr, .jalr, .cJr, .cJalr:
            x[d.destination] = pc(of: op + d.step)
            return resolve(address)
        case .beqFar, .bneFar, .bltFar, .bgeFar, .bltuFar, .bgeuFar: return resolve(address)

        case .lb: return slowLoad(op, d, address, 1) { UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: $0))) }
        case .lh: return slowLoad(op, d, address, 2) { UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: $0))) }
        case .lw, .cLw: return slowLoad(op, d, address, 4) { UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: $0))) }
        case .ld, .cLd: return slowLoad(op, d, address, 8) { $0 }
        case .lbu: return slowLoad(op, d, address, 1) { $0 }
        case .lhu: return slowLoad(op, d, address, 2) { $0 }
        case .lwu: return slowLoad(op, d, address, 4) { $0 }
        case .sb: return slowStore(op, d, address, 1, x[d.destination])
        case .sh: return slowStore(op, d, address, 2, x[d.destination])
        case .sw, .cSw: return slowStore(op, d, address, 4, x[d.destination])
        case .sd, .cSd: return slowStore(op, d, address, 8, x[d.destination])

        case .flw, .fld, .cFld:
            return slowFloatLoad(op, d, address, d.code == .flw ? 4 : 8)
        case .fsw, .fsd, .cFsd:
            guard enableFloat() else { return illegalFloat(op) }
            return slowStore(op, d, address, d.code == .fsw ? 4 : 8, f[d.destination])

        case .flh: return slowFloatLoad(op, d, x[d.source1] &+ d.immediate, 2)
        case .fsh:
            guard enableFloat() else { return illegalFloat(op) }
            return slowStore(op, d, x[d.source1] &+ d.immediate, 2, f[d.destination])

        // Not in the loop: the host's fma is a call, and a loop that makes no
        // calls but to here has all registers to itself.
        case .fmaD:
            if pointee.floatFast {
                let word = UInt32(bitPattern: d.imm)
                let kind = word >> 2 & 3
                let a = f[d.source1] ^ (kind >= 2 ? 1 << 63 : 0)
                let c = f[Int(word >> 27)] ^ (kind == 1 || kind == 3 ? 1 << 63 : 0)
                if let value = HostFloat.fma(a, f[Int(word >> 20 & 31)], c) {
                    f[d.destination] = value
                    return op + 2
                }
            }
            return executeFloat(op, d)
        case .float, .faddD, .fsubD, .fmulD, .fdivD, .fsgnjD, .feqD, .fltD, .fleD, .fmvXD, .fmvDX:
            return executeFloat(op, d)
        case .atomic: return executeAtomic(op, d)
        case .other: return executeOther(op, d)
        case .cacheBlock: return executeCacheBlock(op, d)
        case .csr: return executeCSR(op, d)
        case .ecall: return environmentCall(op)
        case .ebreak: return trap(op, Cause.breakpoint, pc(of: op))
        case .mret: return returnFromMachineTrap(op)
        case .sret: return returnFromSupervisorTrap(op)
        case .wfi: return waitForInterrupt(op)
        case .waitOnReservation: return waitOnReservation(op, d)
        case .sfenceVMA, .sinvalVMA: return fenceVMA(op, d)
        case .invalidationFence:
            // sinval.vma has done it all.
            return pointee.mode == Mode.user ? illegal(op, UInt32(bitPattern: d.imm)) : op + d.step
        case .fenceI:
            // Ops are dropped when their page is written from here, so they
            // are never stale unless others write too.
            guard pointee.cache.pointee.hasForeignWriters else { return op + d.step }
            let next = pc(of: op + d.step)
            synchronizeCode()
            return resolve(next)
        default: return illegal(op, UInt32(bitPattern: d.imm))
        }
    }

    /// `fence.i` on this hart: fetches see all that was stored to RAM so far.
    func synchronizeCode() {
        guard pointee.cache.pointee.hasForeignWriters else { return }
        pointee.cache.pointee.beginGeneration()
        dropFetchEntries()
    }

    @inline(__always)
    func slowLoad(
        _ op: OpPointer, _ d: DecodedOp, _ address: UInt64, _ size: Int, _ extend: (UInt64) -> UInt64
    ) -> OpPointer {
        guard let value = load(address, size: size) else {
            return trap(op, pointee.fault.cause, pointee.fault.address)
        }
        x[d.destination] = extend(value)
        return op + d.step
    }

    private func slowFloatLoad(_ op: OpPointer, _ d: DecodedOp, _ address: UInt64, _ size: Int) -> OpPointer {
        guard enableFloat() else { return illegalFloat(op) }
        guard let value = load(address, size: size) else {
            return trap(op, pointee.fault.cause, pointee.fault.address)
        }
        f[d.destination] =
            switch size {
            case 2: nanBoxed(UInt16(truncatingIfNeeded: value))
            case 4: nanBoxed(UInt32(truncatingIfNeeded: value))
            default: value
            }
        return op + d.step
    }

    @inline(__always)
    func slowStore(_ op: OpPointer, _ d: DecodedOp, _ address: UInt64, _ size: Int, _ value: UInt64)
        -> OpPointer
    {
        guard store(address, size: size, value) else {
            return trap(op, pointee.fault.cause, pointee.fault.address)
        }
        return op + d.step
    }

    /// A load or store of an f register while mstatus.FS is Off: its word is
    /// not in the op, so it is read again for mtval.
    private func illegalFloat(_ op: OpPointer) -> OpPointer {
        let address = pc(of: op)
        guard let low = fetchHalf(address) else { return illegal(op, 0) }
        if op.pointee.length == 1 { return illegal(op, UInt32(low)) }
        guard let high = fetchHalf(address &+ 2) else { return illegal(op, UInt32(low)) }
        return illegal(op, UInt32(low) | UInt32(high) << 16)
    }
}

/// A slice ends after so many instructions, as many as the last ones did in its
/// time. Ops off the loop may take a thousand times as long, so these look at
/// the clock too.
enum SlowWork {
    /// In ops of a page walk's or a float op's length.
    static let betweenLooks: Int64 = 64
    /// What leaves the hart, an access to a device or a firmware call, counts
    /// as so many: some of these move 64 KiB, or map memory.
    static let outside: Int64 = 32
}

extension UnsafeMutablePointer where Pointee == HartState {
    @inline(__always)
    func noteSlowWork(_ amount: Int64) {
        pointee.slowWorkLeft &-= amount
        if pointee.slowWorkLeft <= 0 { endLateSlice() }
    }

    @inline(never)
    private func endLateSlice() {
        pointee.slowWorkLeft = SlowWork.betweenLooks
        pointee.owner?._withUnsafeGuaranteedRef { $0.accelerator.endLateSlice() }
    }
}
