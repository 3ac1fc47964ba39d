import BatonRuntime

/// One of the SBI's supervisor software events.
struct SupervisorEvent: Equatable {
    enum State: UInt64 {
        case unused = 0
        case registered, enabled, running
    }
    var state = State.unused
    var isPending = false
    /// Lower values come first.
    var priority: UInt64 = 0
    /// Whether it is disabled when it has been handled.
    var isOneShot = false
    /// Where it is handled; of a local event always its own hart.
    var hart: Int
    var entry: UInt64 = 0
    var argument: UInt64 = 0
    /// What the handler interrupted; valid while it runs.
    var interruptedSEPC: UInt64 = 0
    var interruptedFlags: UInt64 = 0
    var interruptedA6: UInt64 = 0
    var interruptedA7: UInt64 = 0

    static let flagSPP: UInt64 = 1
    static let flagSPIE: UInt64 = 2
    /// Flags that may be written, though the hart lacks what the upper four are of.
    static let flags: UInt64 = 0x3f
}

/// The SBI's supervisor software events (SSE): traps into S-mode that come even
/// where its interrupts are disabled. There are the two that software injects,
/// one a hart and a global one; the others are of hardware that is not there.
///
/// `HartState.hasEvents` is kept true while an event is to be delivered to a
/// hart: before its next instruction.
final class SupervisorEvents {
    /// `local` has an event a hart.
    private enum Identity {
        case local
        case global

        static func parse(_ number: UInt64) -> Result<Identity, Refusal> {
            switch number & 0xffff_ffff {
            case 0xffff_0000: return .success(.local)
            case 0xffff_8000: return .success(.global)
            // RAS, double trap and PMU overflow.
            case 0, 1, 0x8000, 0x1_0000, 0x10_0000, 0x10_8000: return .failure(Refusal(code: .notSupported))
            case let number where number & 0x4000 != 0 && [0, 1, 0x10, 0xffff].contains(number >> 16):
                // A platform's.
                return .failure(Refusal(code: .notSupported))
            default: return .failure(Refusal(code: .invalidParameter))
            }
        }
    }

    private struct Refusal: Error {
        let code: BuiltinSBI.Failure
    }

    private enum Attribute: UInt64, CaseIterable {
        case status = 0
        case priority, configuration, preferredHart, entry, argument
        case interruptedSEPC, interruptedFlags, interruptedA6, interruptedA7
    }

    private unowned let accelerator: SoftwareAccelerator
    private unowned let addressSpace: AddressSpace
    private(set) var local: [SupervisorEvent]
    private(set) var global = SupervisorEvent(hart: 0)
    /// Harts that take no events; all after a reset.
    private(set) var masked: [Bool]

    init(accelerator: SoftwareAccelerator, addressSpace: AddressSpace) {
        self.accelerator = accelerator
        self.addressSpace = addressSpace
        local = accelerator.harts.map { SupervisorEvent(hart: $0.index) }
        masked = Array(repeating: true, count: accelerator.harts.count)
    }

    /// A hart is reset or stops: its events are unregistered, the global one
    /// too if it was to be handled there.
    func reset(hart: Int) {
        local[hart] = SupervisorEvent(hart: hart)
        masked[hart] = true
        if global.hart == hart, global.state == .enabled || global.state == .running {
            global = SupervisorEvent(hart: hart)
        }
        update(hart)
    }

    func resetGlobal() {
        global = SupervisorEvent(hart: 0)
        for hart in local.indices { update(hart) }
    }

    /// Takes a hart's state from a checkpoint, and the global event if it has that.
    func restore(hart: Int, masked isMasked: Bool, local event: SupervisorEvent, global: SupervisorEvent?) {
        masked[hart] = isMasked
        local[hart] = event
        if let global { self.global = global }
        for hart in local.indices { update(hart) }
    }

    // MARK: Calls

    func call(
        _ hart: Hart, _ function: UInt64, _ a0: UInt64, _ a1: UInt64, _ a2: UInt64, _ a3: UInt64, _ a4: UInt64
    ) -> BuiltinSBI.Answer {
        switch function {
        case 6: return complete(hart)
        case 8: return setMask(hart.index, false)
        case 9: return setMask(hart.index, true)
        case 0...5, 7: break
        default: return .failure(.notSupported)
        }
        let identity: Identity
        switch Identity.parse(a0) {
        case .success(let known): identity = known
        case .failure(let refusal): return .failure(refusal.code)
        }
        switch function {
        case 0, 1:
            return attributes(
                hart.index, identity, first: a1 & 0xffff_ffff, count: a2 & 0xffff_ffff, at: a3, high: a4,
                writing: function == 1)
        case 2: return register(hart.index, identity, entry: a1, argument: a2)
        case 7: return inject(identity, hart: a1)
        default: return move(hart.index, identity, function)
        }
    }

    private func register(_ hart: Int, _ identity: Identity, entry: UInt64, argument: UInt64) -> BuiltinSBI.Answer {
        var event = self[identity, hart]
        guard event.state == .unused else { return .failure(.invalidState) }
        guard entry & 1 == 0 else { return .failure(.invalidParameter) }
        event.state = .registered
        event.entry = entry
        event.argument = argument
        self[identity, hart] = event
        return .success
    }

    /// Unregister (3), enable (4), disable (5).
    private func move(_ hart: Int, _ identity: Identity, _ function: UInt64) -> BuiltinSBI.Answer {
        var event = self[identity, hart]
        guard event.state == (function == 5 ? .enabled : .registered) else { return .failure(.invalidState) }
        switch function {
        case 3:
            event.state = .unused
            event.isPending = false
            event.entry = 0
            event.argument = 0
        case 4: event.state = .enabled
        default: event.state = .registered
        }
        self[identity, hart] = event
        update(event.hart)
        return .success
    }

    private func inject(_ identity: Identity, hart: UInt64) -> BuiltinSBI.Answer {
        var target = 0
        if identity == .local {
            guard hart < UInt64(local.count) else { return .failure(.invalidParameter) }
            target = Int(hart)
        }
        var event = self[identity, target]
        guard event.state == .enabled || event.state == .running else { return .failure(.invalidState) }
        event.isPending = true
        self[identity, target] = event
        update(event.hart)
        return .success
    }

    private func setMask(_ hart: Int, _ value: Bool) -> BuiltinSBI.Answer {
        guard masked[hart] != value else { return .failure(value ? .alreadyStopped : .alreadyStarted) }
        masked[hart] = value
        update(hart)
        return .success
    }

    // MARK: Attributes

    private func attributes(
        _ hart: Int, _ identity: Identity, first: UInt64, count: UInt64, at address: UInt64, high: UInt64,
        writing: Bool
    ) -> BuiltinSBI.Answer {
        guard count > 0 else { return .failure(.invalidParameter) }
        guard first + count <= UInt64(Attribute.allCases.count) else { return .failure(.badRange) }
        // What the call writes, the guest reads.
        guard high == 0, address & 7 == 0,
            let memory = addressSpace.dma(address, length: count * 8, writing: !writing)
        else { return .failure(.invalidAddress) }
        let values = UnsafeMutableRawPointer(memory).assumingMemoryBound(to: UInt64.self)
        let chosen = Attribute.allCases[Int(first)..<Int(first + count)]
        var event = self[identity, hart]
        if writing {
            // Nothing is changed unless all is allowed.
            for (index, attribute) in chosen.enumerated() {
                let failure = write(&event, attribute, values[index], identity, by: hart)
                if let failure { return .failure(failure) }
            }
            self[identity, hart] = event
            update(event.hart)
        } else {
            for (index, attribute) in chosen.enumerated() { values[index] = read(event, attribute) }
            addressSpace.didWrite(address, length: count * 8)
        }
        return .success
    }

    private func read(_ event: SupervisorEvent, _ attribute: Attribute) -> UInt64 {
        switch attribute {
        // Both can be injected.
        case .status: event.state.rawValue | (event.isPending ? 4 : 0) | 8
        case .priority: event.priority
        case .configuration: event.isOneShot ? 1 : 0
        case .preferredHart: UInt64(event.hart)
        case .entry: event.entry
        case .argument: event.argument
        case .interruptedSEPC: event.interruptedSEPC
        case .interruptedFlags: event.interruptedFlags
        case .interruptedA6: event.interruptedA6
        case .interruptedA7: event.interruptedA7
        }
    }

    private func write(
        _ event: inout SupervisorEvent, _ attribute: Attribute, _ value: UInt64, _ identity: Identity, by hart: Int
    ) -> BuiltinSBI.Failure? {
        let isIdle = event.state == .unused || event.state == .registered
        switch attribute {
        case .status, .entry, .argument: return .denied
        case .priority:
            guard isIdle else { return .invalidState }
            guard value <= UInt64(UInt32.max) else { return .invalidParameter }
            event.priority = value
        case .configuration:
            guard isIdle else { return .invalidState }
            guard value <= 1 else { return .invalidParameter }
            event.isOneShot = value == 1
        case .preferredHart:
            guard identity == .global else { return .denied }
            guard isIdle else { return .invalidState }
            guard value < UInt64(local.count) else { return .invalidParameter }
            event.hart = Int(value)
        case .interruptedSEPC, .interruptedFlags, .interruptedA6, .interruptedA7:
            guard event.state == .running, event.hart == hart else { return .invalidState }
            switch attribute {
            case .interruptedSEPC: event.interruptedSEPC = value
            case .interruptedA6: event.interruptedA6 = value
            case .interruptedA7: event.interruptedA7 = value
            default:
                guard value & ~SupervisorEvent.flags == 0 else { return .invalidParameter }
                event.interruptedFlags = value
            }
        }
        return nil
    }

    // MARK: Handling

    private subscript(identity: Identity, hart: Int) -> SupervisorEvent {
        get { identity == .local ? local[hart] : global }
        set { if identity == .local { local[hart] = newValue } else { global = newValue } }
    }

    /// The events of a hart; of equal priorities the first comes first.
    private func identities(_ hart: Int) -> [Identity] {
        guard global.hart == hart else { return [.local] }
        return global.priority < local[hart].priority ? [.global, .local] : [.local, .global]
    }

    /// The event that is to be handled next: none behind one that runs.
    private func next(_ hart: Int) -> Identity? {
        guard !masked[hart] else { return nil }
        for identity in identities(hart) {
            let event = self[identity, hart]
            if event.state == .running { return nil }
            if event.state == .enabled && event.isPending { return identity }
        }
        return nil
    }

    private func update(_ hart: Int) { accelerator.harts[hart].state.pointee.hasEvents = next(hart) != nil }

    /// Enters the handler of the event that is to be handled next. The hart's
    /// `pc` must be valid.
    func deliver(to hart: Hart) {
        guard let identity = next(hart.index) else { return }
        let state = hart.state
        let status = state.pointee.mstatus
        var event = self[identity, hart.index]
        event.state = .running
        event.isPending = false
        event.interruptedSEPC = state.pointee.sepc
        event.interruptedFlags =
            (status & MStatus.spp != 0 ? SupervisorEvent.flagSPP : 0)
            | (status & MStatus.spie != 0 ? SupervisorEvent.flagSPIE : 0)
        event.interruptedA6 = state.x[16]
        event.interruptedA7 = state.x[17]
        self[identity, hart.index] = event
        update(hart.index)

        var new = status & ~(MStatus.sie | MStatus.spie | MStatus.spp)
        if status & MStatus.sie != 0 { new |= MStatus.spie }
        if state.pointee.mode != Mode.user { new |= MStatus.spp }
        state.pointee.mstatus = new
        state.pointee.sepc = state.pointee.pc
        state.pointee.pc = event.entry
        state.x[16] = UInt64(hart.index)
        state.x[17] = event.argument
        state.setMode(Mode.supervisor)
    }

    /// Ends the handler that runs on a hart; without one, does nothing.
    private func complete(_ hart: Hart) -> BuiltinSBI.Answer {
        guard let identity = identities(hart.index).first(where: { self[$0, hart.index].state == .running }) else {
            return .success
        }
        let state = hart.state
        let status = state.pointee.mstatus
        var event = self[identity, hart.index]
        event.state = event.isOneShot ? .registered : .enabled
        self[identity, hart.index] = event
        update(hart.index)

        var new = status & ~(MStatus.sie | MStatus.spie | MStatus.spp)
        if status & MStatus.spie != 0 { new |= MStatus.sie }
        if event.interruptedFlags & SupervisorEvent.flagSPIE != 0 { new |= MStatus.spie }
        if event.interruptedFlags & SupervisorEvent.flagSPP != 0 { new |= MStatus.spp }
        state.pointee.mstatus = new
        state.pointee.pc = state.pointee.sepc
        state.pointee.sepc = event.interruptedSEPC & ~1
        state.x[16] = event.interruptedA6
        state.x[17] = event.interruptedA7
        state.setMode(status & MStatus.spp != 0 ? Mode.supervisor : Mode.user)
        return .noReturn
    }
}
