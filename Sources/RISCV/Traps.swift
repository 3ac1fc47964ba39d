import BatonRuntime

extension UnsafeMutablePointer where Pointee == HartState {
    /// An op raises an exception instead of retiring.
    /// - Returns: the first op of the handler.
    @inline(never)
    func trap(_ op: OpPointer, _ cause: UInt64, _ value: UInt64) -> OpPointer {
        let address = pc(of: op)
        pointee.retiredAtEnd &-= 1
        takeTrap(cause, value: value, from: address)
        return resolve(pointee.pc)
    }

    /// Enters the handler of an exception or interrupt (`Cause.interrupt` set);
    /// `pc` is its address afterwards.
    @inline(never)
    func takeTrap(_ cause: UInt64, value: UInt64, from address: UInt64) {
        let isInterrupt = cause & Cause.interrupt != 0
        let delegated = (isInterrupt ? pointee.mideleg : pointee.medeleg) >> (cause & 63) & 1 != 0
        if Log.mask.contains(.int) {
            Log.interrupt(
                "riscv_cpu_do_interrupt: hart:\(pointee.hartID), async:\(isInterrupt ? 1 : 0), "
                    + "cause:\(Hex(cause & ~Cause.interrupt)), epc:\(Hex(address)), tval:\(Hex(value)), "
                    + "desc=\(causeName(cause))")
        }
        var status = pointee.mstatus
        if delegated && pointee.mode <= Mode.supervisor {
            status = status & ~(MStatus.spie | MStatus.sie | MStatus.spp)
            if pointee.mstatus & MStatus.sie != 0 { status |= MStatus.spie }
            if pointee.mode == Mode.supervisor { status |= MStatus.spp }
            pointee.mstatus = status
            pointee.scause = cause
            pointee.sepc = address
            pointee.stval = value
            pointee.pc = handler(pointee.stvec, cause)
            setMode(Mode.supervisor)
        } else {
            status = status & ~(MStatus.mpie | MStatus.mie | MStatus.mpp)
            if pointee.mstatus & MStatus.mie != 0 { status |= MStatus.mpie }
            status |= UInt64(pointee.mode) << 11
            pointee.mstatus = status
            pointee.mcause = cause
            pointee.mepc = address
            pointee.mtval = value
            pointee.pc = handler(pointee.mtvec, cause)
            setMode(Mode.machine)
        }
    }

    private func handler(_ vector: UInt64, _ cause: UInt64) -> UInt64 {
        let base = vector & ~3
        return vector & 1 != 0 && cause & Cause.interrupt != 0 ? base &+ 4 &* (cause & 63) : base
    }

    func setMode(_ mode: UInt8) {
        pointee.mode = mode
        selectTLB()
    }

    /// The interrupt to take now, if any, as its number.
    var deliverableInterrupt: UInt64? {
        let pending = pointee.pendingBits & pointee.mie
        guard pending != 0 else { return nil }
        let forMachine = pending & ~pointee.mideleg
        let forSupervisor = pending & pointee.mideleg
        let machineOpen = pointee.mode < Mode.machine || pointee.mstatus & MStatus.mie != 0
        let supervisorOpen =
            pointee.mode < Mode.supervisor
            || (pointee.mode == Mode.supervisor && pointee.mstatus & MStatus.sie != 0)
        let open = machineOpen && forMachine != 0 ? forMachine : supervisorOpen ? forSupervisor : 0
        guard open != 0 else { return nil }
        if pointee.hasAIA, let owner = pointee.owner {
            let machine = open & pointee.mideleg == 0
            return owner._withUnsafeGuaranteedRef { $0.aia?.mostUrgent(open, machine: machine)?.number }
        }
        for number in HartAIA.order where open >> number & 1 != 0 { return number }
        return nil
    }

    /// Takes the most urgent interrupt that is pending and enabled.
    func takeInterrupt() {
        if let number = deliverableInterrupt {
            takeTrap(Cause.interrupt | number, value: 0, from: pointee.pc)
        }
    }

    /// Leaves the loop if there is an interrupt to take: after whatever may
    /// have enabled one.
    func checkInterrupts() {
        if pointee.pendingBits & pointee.mie != 0, deliverableInterrupt != nil { leaveLoop() }
    }

    // MARK: Instructions

    func returnFromMachineTrap(_ op: OpPointer) -> OpPointer {
        guard pointee.mode == Mode.machine else { return illegal(op, 0x3020_0073) }
        let status = pointee.mstatus
        let mode = UInt8(truncatingIfNeeded: status >> 11 & 3)
        var new = status & ~(MStatus.mie | MStatus.mpp)
        if status & MStatus.mpie != 0 { new |= MStatus.mie }
        new |= MStatus.mpie
        if mode != Mode.machine { new &= ~MStatus.mprv }
        pointee.mstatus = new
        setMode(mode)
        checkInterrupts()
        return resolve(pointee.mepc)
    }

    func returnFromSupervisorTrap(_ op: OpPointer) -> OpPointer {
        let status = pointee.mstatus
        guard pointee.mode == Mode.machine || (pointee.mode == Mode.supervisor && status & MStatus.tsr == 0) else {
            return illegal(op, 0x1020_0073)
        }
        var new = status & ~(MStatus.sie | MStatus.spp | MStatus.mprv)
        if status & MStatus.spie != 0 { new |= MStatus.sie }
        new |= MStatus.spie
        pointee.mstatus = new
        setMode(status & MStatus.spp != 0 ? Mode.supervisor : Mode.user)
        checkInterrupts()
        return resolve(pointee.sepc)
    }

    func waitForInterrupt(_ op: OpPointer) -> OpPointer {
        guard pointee.mode == Mode.machine || (pointee.mode == Mode.supervisor && pointee.mstatus & MStatus.tw == 0)
        else { return illegal(op, 0x1050_0073) }
        if pointee.pendingBits & pointee.mie == 0 { pointee.waiting = true }
        leaveLoop()
        return op + op.pointee.step
    }

    /// wrs.nto and wrs.sto (Zawrs) may end at any time, and end at once: who could store to the reservation has the next
    /// turn.
    func waitOnReservation(_ op: OpPointer, _ d: DecodedOp) -> OpPointer {
        let word = UInt32(bitPattern: d.imm)
        let isShort = word == 0x01d0_0073
        guard isShort || pointee.mode == Mode.machine || pointee.mstatus & MStatus.tw == 0 else {
            return illegal(op, word)
        }
        return op + d.step
    }

    func environmentCall(_ op: OpPointer) -> OpPointer {
        if pointee.hasBuiltinSBI, pointee.mode == Mode.supervisor, let owner = pointee.owner {
            let next = pc(of: op + op.pointee.step)
            pointee.pc = next
            owner._withUnsafeGuaranteedRef { $0.accelerator.sbi?.call($0) }
            checkInterrupts()
            return resolve(pointee.pc)
        }
        return trap(op, Cause.ecallFromUser + UInt64(pointee.mode), 0)
    }

    func fenceVMA(_ op: OpPointer, _ d: DecodedOp) -> OpPointer {
        guard pointee.mode == Mode.machine || (pointee.mode == Mode.supervisor && pointee.mstatus & MStatus.tvm == 0)
        else { return illegal(op, UInt32(bitPattern: d.imm)) }
        if d.rs1 == 0 { flushTLB() } else { flushTLB(page: x[d.source1]) }
        return resolve(pc(of: op + d.step))
    }

    func illegal(_ op: OpPointer, _ word: UInt32) -> OpPointer { trap(op, Cause.illegal, UInt64(word)) }

    private func causeName(_ cause: UInt64) -> String {
        if cause & Cause.interrupt != 0 {
            switch cause & 63 {
            case 1: return "s_software"
            case 3: return "m_software"
            case 5: return "s_timer"
            case 7: return "m_timer"
            case 9: return "s_external"
            case 11: return "m_external"
            default: return "(unknown)"
            }
        }
        let names = [
            "misaligned_fetch", "fault_fetch", "illegal_instruction", "breakpoint", "misaligned_load",
            "fault_load", "misaligned_store", "fault_store", "user_ecall", "supervisor_ecall",
            "hypervisor_ecall", "machine_ecall", "exec_page_fault", "load_page_fault", "reserved",
            "store_page_fault",
        ]
        return cause < UInt64(names.count) ? names[Int(cause)] : "(unknown)"
    }
}
