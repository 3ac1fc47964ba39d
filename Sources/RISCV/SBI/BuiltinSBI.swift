import BatonRuntime

/// The Supervisor Binary Interface, version 3.0, answered by the VMM in place
/// of firmware in M-mode: BASE, TIME, IPI, RFENCE, HSM, SRST, SUSP, DBCN, FWFT,
/// SSE, and the legacy calls that early consoles use.
///
/// Arguments that the specification gives 32 bits have no others: the upper
/// half of their registers is ignored.
public final class BuiltinSBI {
    /// Ours; there is no registry for private implementations.
    static let implementationID: UInt64 = 0x42

    public weak var console: (any SBIConsole)?
    unowned let accelerator: SoftwareAccelerator
    unowned let vm: VirtualMachine
    let features: FirmwareFeatures
    let events: SupervisorEvents

    init(accelerator: SoftwareAccelerator, vm: VirtualMachine) {
        self.accelerator = accelerator
        self.vm = vm
        features = FirmwareFeatures(hartCount: accelerator.harts.count)
        events = SupervisorEvents(accelerator: accelerator, addressSpace: vm.addressSpace)
    }

    /// Extension ids: four letters, but for BASE and the legacy calls.
    enum Extension {
        static let legacySetTimer: UInt64 = 0
        static let legacyPutchar: UInt64 = 1
        static let legacyGetchar: UInt64 = 2
        static let legacyShutdown: UInt64 = 8
        static let base: UInt64 = 0x10
        static let time: UInt64 = 0x5449_4d45
        static let ipi: UInt64 = 0x73_5049
        static let rfence: UInt64 = 0x5246_4e43
        static let hsm: UInt64 = 0x48_534d
        static let srst: UInt64 = 0x5352_5354
        static let dbcn: UInt64 = 0x4442_434e
        static let susp: UInt64 = 0x5355_5350
        static let fwft: UInt64 = 0x4657_4654
        static let sse: UInt64 = 0x53_5345
        static let all = [
            legacySetTimer, legacyPutchar, legacyGetchar, legacyShutdown, base, time, ipi, rfence, hsm, srst, dbcn,
            susp, fwft, sse,
        ]
    }

    /// Error codes of the specification.
    enum Failure: Int64 {
        case failed = -1
        case notSupported = -2
        case invalidParameter = -3
        case denied = -4
        case invalidAddress = -5
        case alreadyAvailable = -6
        case alreadyStarted = -7
        case alreadyStopped = -8
        case invalidState = -10
        case badRange = -11
        case deniedLocked = -14
    }

    enum Answer {
        case value(UInt64)
        case failure(Failure)
        /// Legacy calls return in a0 alone.
        case legacy(UInt64)
        /// The hart does not go on behind the call.
        case noReturn

        static let success = Answer.value(0)
    }

    /// What firmware leaves behind when it enters the next stage.
    func reset(_ hart: Hart) {
        let state = hart.state
        state.pointee.hasBuiltinSBI = true
        state.pointee.medeleg = CSR.delegableExceptions & ~(1 << 9)
        state.pointee.mideleg = CSR.supervisorInterrupts
        state.pointee.mcounteren = 0xffff_ffff
        state.pointee.scounteren = 7
        // The timer behind the SBI's calls is stimecmp, whether or not S-mode has it too.
        state.pointee.menvcfg |= EnvCfg.stce | EnvCfg.supervisor(state.has) & ~EnvCfg.fiom
        state.pmpaddr[0] = PMP.addressMask
        state.pmpcfg[0] = PMP.read | PMP.write | PMP.execute | PMP.matching
        state.updatePMP()
        state.pointee.hsm = hart.index == 0 ? .started : .stopped
        features.reset(hart: hart.index)
        events.reset(hart: hart.index)
        if hart.index == 0 { events.resetGlobal() }
    }

    /// Carries out the call that the hart has made; its `pc` is behind it.
    func call(_ hart: Hart) {
        let x = hart.state.x
        hart.state.noteSlowWork(SlowWork.outside)
        let answer: Answer
        switch x[17] {
        case Extension.base: answer = base(x[16], x[10])
        case Extension.time: answer = x[16] == 0 ? setTimer(hart, x[10]) : .failure(.notSupported)
        case Extension.ipi: answer = x[16] == 0 ? sendIPI(mask: x[10], base: x[11]) : .failure(.notSupported)
        case Extension.rfence: answer = remoteFence(x[16], mask: x[10], base: x[11], start: x[12], size: x[13])
        case Extension.hsm: answer = hartState(hart, x[16])
        case Extension.srst: answer = x[16] == 0 ? systemReset(type: x[10], reason: x[11]) : .failure(.notSupported)
        case Extension.dbcn: answer = debugConsole(x[16], x[10], x[11], x[12])
        case Extension.susp:
            answer =
                x[16] == 0
                ? suspendSystem(hart, type: x[10], at: x[11], opaque: x[12]) : .failure(.notSupported)
        case Extension.fwft: answer = features.call(hart.index, x[16], x[10], x[11], x[12])
        case Extension.sse: answer = events.call(hart, x[16], x[10], x[11], x[12], x[13], x[14])
        case Extension.legacySetTimer:
            _ = setTimer(hart, x[10])
            answer = .legacy(0)
        case Extension.legacyPutchar:
            writeByte(UInt8(truncatingIfNeeded: x[10]))
            answer = .legacy(0)
        case Extension.legacyGetchar: answer = .legacy(readByte())
        case Extension.legacyShutdown:
            vm.guestRequestedShutdown(status: 0)
            answer = .noReturn
        default:
            Log.unimplemented("SBI: extension \(Hex(x[17])) function \(Hex(x[16]))")
            answer = .failure(.notSupported)
        }
        switch answer {
        case .value(let value):
            x[10] = 0
            x[11] = value
        case .failure(let code):
            x[10] = UInt64(bitPattern: code.rawValue)
            x[11] = 0
        case .legacy(let value): x[10] = value
        case .noReturn: break
        }
        if hart.state.pointee.hasEvents { events.deliver(to: hart) }
    }

    // MARK: BASE and TIME

    private func base(_ function: UInt64, _ argument: UInt64) -> Answer {
        switch function {
        case 0: return .value(3 << 24)
        case 1: return .value(BuiltinSBI.implementationID)
        case 2: return .value(1)
        case 3: return .value(Extension.all.contains(argument) ? 1 : 0)
        // mvendorid, marchid, mimpid.
        case 4, 5, 6: return .value(0)
        default: return .failure(.notSupported)
        }
    }

    private func setTimer(_ hart: Hart, _ deadline: UInt64) -> Answer {
        hart.state.pointee.stimecmp = deadline
        hart.state.timerChanged()
        return .success
    }

    // MARK: IPI and RFENCE

    /// The harts of a hart mask, or nil when it names one that is not there.
    private func harts(mask: UInt64, base: UInt64) -> [Hart]? {
        if base == UInt64.max { return accelerator.harts }
        guard base < UInt64(accelerator.harts.count), mask >> (UInt64(accelerator.harts.count) - base) == 0 else {
            return mask == 0 ? [] : nil
        }
        return accelerator.harts.filter { UInt64($0.index) >= base && mask >> (UInt64($0.index) - base) & 1 != 0 }
    }

    private func sendIPI(mask: UInt64, base: UInt64) -> Answer {
        guard let targets = harts(mask: mask, base: base) else { return .failure(.invalidParameter) }
        for target in targets { target.setInterrupt(.supervisorSoftware, true) }
        return .success
    }

    private func remoteFence(_ function: UInt64, mask: UInt64, base: UInt64, start: UInt64, size: UInt64) -> Answer {
        guard function <= 2 else { return .failure(.notSupported) }
        guard let targets = harts(mask: mask, base: base) else { return .failure(.invalidParameter) }
        if function == 0 {
            for target in targets { target.state.synchronizeCode() }
            return .success
        }
        for target in targets {
            // Both 0, or a size of -1, stand for everything.
            if size > 64 << 12 || (start == 0 && size == 0) {
                target.state.flushTLB()
                continue
            }
            let pages = ((start & 0xfff) + size + 0xfff) >> 12
            for page in 0..<pages { target.state.flushTLB(page: start &+ page << 12) }
        }
        return .success
    }

    // MARK: SRST

    private func systemReset(type: UInt64, reason: UInt64) -> Answer {
        let (type, reason) = (type & 0xffff_ffff, reason & 0xffff_ffff)
        guard reason <= 1 || (0xe000_0000...0xffff_ffff).contains(reason) else { return .failure(.invalidParameter) }
        switch type {
        // As under QEMU with OpenSBI, the reason does not become the exit status.
        case 0: vm.guestRequestedShutdown(status: 0)
        case 1, 2: vm.guestRequestedReset()
        case 0xf000_0000...0xffff_ffff: return .failure(.notSupported)
        default: return .failure(.invalidParameter)
        }
        return .noReturn
    }

    // MARK: Consoles

    private func writeByte(_ byte: UInt8) { withUnsafeBytes(of: byte) { console?.write($0) } }

    private func readByte() -> UInt64 {
        var byte: UInt8 = 0
        let count = withUnsafeMutableBytes(of: &byte) { console?.read(into: $0) ?? 0 }
        return count == 1 ? UInt64(byte) : UInt64.max
    }

    private func debugConsole(_ function: UInt64, _ length: UInt64, _ low: UInt64, _ high: UInt64) -> Answer {
        switch function {
        case 0, 1:
            if length == 0 { return .value(0) }
            guard high == 0, let memory = vm.addressSpace.dma(low, length: length, writing: function == 1) else {
                return .failure(.invalidParameter)
            }
            // One call may move less than it was asked for.
            let length = min(length, 65536)
            if function == 0 {
                console?.write(UnsafeRawBufferPointer(start: memory, count: Int(length)))
                return .value(length)
            }
            let count = console?.read(into: UnsafeMutableRawBufferPointer(start: memory, count: Int(length))) ?? 0
            if count > 0 { vm.addressSpace.didWrite(low, length: UInt64(count)) }
            return .value(UInt64(max(0, count)))
        case 2:
            writeByte(UInt8(truncatingIfNeeded: length))
            return .success
        default: return .failure(.notSupported)
        }
    }
}
