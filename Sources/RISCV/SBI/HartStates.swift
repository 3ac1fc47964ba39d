import BatonRuntime

/// HSM and SUSP: harts that start, stop and sleep.
extension BuiltinSBI {
    func hartState(_ hart: Hart, _ function: UInt64) -> Answer {
        let x = hart.state.x
        switch function {
        case 0: return startHart(x[10], at: x[11], opaque: x[12])
        case 1:
            features.reset(hart: hart.index)
            events.reset(hart: hart.index)
            hart.state.pointee.hsm = .stopped
            hart.state.pointee.waiting = false
            hart.state.leaveLoop()
            return .noReturn
        case 2:
            guard x[10] < UInt64(accelerator.harts.count) else { return .failure(.invalidParameter) }
            return .value(UInt64(accelerator.harts[Int(x[10])].state.pointee.hsm.rawValue))
        case 3: return suspend(hart, type: x[10], at: x[11], opaque: x[12])
        default: return .failure(.notSupported)
        }
    }

    private func startHart(_ number: UInt64, at address: UInt64, opaque: UInt64) -> Answer {
        guard number < UInt64(accelerator.harts.count) else { return .failure(.invalidParameter) }
        let target = accelerator.harts[Int(number)]
        guard target.state.pointee.hsm == .stopped else { return .failure(.alreadyAvailable) }
        guard isCode(address) else { return .failure(.invalidAddress) }
        target.enterSupervisor(at: address, opaque: opaque)
        return .success
    }

    private func suspend(_ hart: Hart, type: UInt64, at address: UInt64, opaque: UInt64) -> Answer {
        switch type & 0xffff_ffff {
        case 0:
            // Default retentive: WFI that returns.
            if !hart.hasWakeUp {
                hart.state.pointee.resumeAddress = HartState.noResume
                hart.state.pointee.hsm = .suspended
                hart.state.pointee.waiting = true
            }
            hart.state.leaveLoop()
            return .success
        case 0x8000_0000: return sleep(hart, at: address, opaque: opaque)
        case 0x1000_0000...0x7fff_ffff, 0x9000_0000...0xffff_ffff: return .failure(.notSupported)
        default: return .failure(.invalidParameter)
        }
    }

    /// SUSP: like a non-retentive suspend of the last hart that is not stopped.
    func suspendSystem(_ hart: Hart, type: UInt64, at address: UInt64, opaque: UInt64) -> Answer {
        switch type & 0xffff_ffff {
        case 0: break
        case 0x8000_0000...0xffff_ffff: return .failure(.notSupported)
        default: return .failure(.invalidParameter)
        }
        guard accelerator.harts.allSatisfy({ $0 === hart || $0.state.pointee.hsm == .stopped }) else {
            return .failure(.denied)
        }
        return sleep(hart, at: address, opaque: opaque)
    }

    /// Non-retentive: the hart waits for an interrupt and goes on at `address`,
    /// as if it had been started there.
    private func sleep(_ hart: Hart, at address: UInt64, opaque: UInt64) -> Answer {
        guard isCode(address) else { return .failure(.invalidAddress) }
        hart.state.pointee.resumeAddress = address
        hart.state.pointee.resumeOpaque = opaque
        hart.state.pointee.hsm = .suspended
        hart.state.pointee.waiting = true
        if hart.hasWakeUp { hart.wakeUp() }
        hart.state.leaveLoop()
        return .noReturn
    }

    /// Whether a hart can begin at a physical address.
    private func isCode(_ address: UInt64) -> Bool {
        address & 1 == 0 && vm.addressSpace.dma(address, length: 4, writing: false) != nil
    }
}

extension Hart {
    /// Enters S-mode in the state that the SBI gives to harts that it starts
    /// or resumes.
    func enterSupervisor(at address: UInt64, opaque: UInt64) {
        state.pointee.satp = 0
        state.pointee.mstatus &= ~MStatus.sie
        state.pointee.pc = address
        state.x[10] = UInt64(index)
        state.x[11] = opaque
        state.pointee.waiting = false
        state.pointee.resumeAddress = HartState.noResume
        state.flushTLB()
        state.setMode(Mode.supervisor)
        state.pointee.hsm = .started
    }

    /// Ends a wait for an interrupt.
    func wakeUp() {
        state.pointee.waiting = false
        guard state.pointee.hsm == .suspended else { return }
        state.pointee.hsm = .started
        let address = state.pointee.resumeAddress
        if address != HartState.noResume { enterSupervisor(at: address, opaque: state.pointee.resumeOpaque) }
    }
}
