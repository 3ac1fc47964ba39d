import BatonRuntime

/// An interrupt domain of the advanced platform-level interrupt controller
/// (RISC-V AIA 1.0, 4): the machine-level root, or its supervisor-level child,
/// which has the sources that the root delegates to it.
///
/// Whether a domain delivers to harts by wire or by messages is the board's
/// choice, as in QEMU, and not the guest's.
public final class APLIC: MMIODevice, Device {
    public let stateName: String
    /// Bytes of a domain's registers.
    public static let size: UInt64 = 0x8000
    /// Sources are 1 to this.
    public static let maxSource = 96
    static let words = 4

    /// How interrupts get to harts.
    public enum Delivery {
        /// Told of changes of a hart's external interrupt.
        case wires((_ hart: Int, _ level: Bool) -> Void)
        /// Sends a message, a 32-bit store.
        case messages((_ address: UInt64, _ identity: UInt32) -> Void)
    }

    public let delivery: Delivery
    let hartCount: Int
    /// Nil for the root.
    private unowned let parent: APLIC?
    private(set) var child: APLIC?

    // MARK: State

    var isEnabled = false
    /// What drives the sources, before inversion.
    private(set) var inputs = [UInt32](repeating: 0, count: words)
    var sourceConfig = [UInt32](repeating: 0, count: maxSource + 1)
    var targets = [UInt32](repeating: 0, count: maxSource + 1)
    var pending = [UInt32](repeating: 0, count: words)
    var enabled = [UInt32](repeating: 0, count: words)
    /// Of the root alone: where messages of both levels go.
    var messageAddress = MessageAddresses()
    var generated: UInt32 = 0
    /// One a hart, for wires.
    var idcs: [IDC]
    private var outputs: [Bool]

    /// The interrupt delivery control of a hart.
    struct IDC {
        var delivers = false
        var forced = false
        var threshold: UInt32 = 0
    }

    struct MessageAddresses {
        var machineLow: UInt32 = 0
        var machineHigh: UInt32 = 0
        var supervisorLow: UInt32 = 0
        var supervisorHigh: UInt32 = 0
        var isLocked: Bool { machineHigh >> 31 != 0 }
    }

    /// sourcecfg.
    enum Mode {
        static let inactive: UInt32 = 0
        static let detached: UInt32 = 1
        static let risingEdge: UInt32 = 4
        static let fallingEdge: UInt32 = 5
        static let highLevel: UInt32 = 6
        static let lowLevel: UInt32 = 7
    }
    static let delegated: UInt32 = 1 << 10

    /// - Parameters:
    ///   - name: `aplic.m` or `aplic.s`.
    ///   - parent: the root, for its child; it must not have one yet.
    public init(name: String, hartCount: Int, parent: APLIC? = nil, delivery: Delivery) {
        stateName = name
        self.hartCount = hartCount
        self.parent = parent
        self.delivery = delivery
        idcs = Array(repeating: IDC(), count: hartCount)
        outputs = Array(repeating: false, count: hartCount)
        parent?.child = self
    }

    var sendsMessages: Bool { if case .messages = delivery { true } else { false } }

    /// The wire of a source, 1 to `maxSource`, of the root.
    public func line(_ source: Int) -> InterruptLine {
        precondition((1...APLIC.maxSource).contains(source))
        return InterruptLine { [unowned self] level in setInput(source, level) }
    }

    // MARK: Sources

    static func bit(_ source: Int) -> UInt32 { 1 << UInt32(source % 32) }
    func isSet(_ words: [UInt32], _ source: Int) -> Bool { words[source / 32] & APLIC.bit(source) != 0 }

    /// Whether the source is this domain's to configure.
    func isOwn(_ source: Int) -> Bool {
        guard let parent else { return true }
        return parent.sourceConfig[source] & APLIC.delegated != 0
    }

    func mode(_ source: Int) -> UInt32 {
        sourceConfig[source] & APLIC.delegated != 0 ? Mode.inactive : sourceConfig[source] & 7
    }

    func isLevel(_ source: Int) -> Bool { mode(source) >= Mode.highLevel }

    /// The input as the source's mode sees it.
    func rectified(_ source: Int) -> Bool {
        switch mode(source) {
        case Mode.risingEdge, Mode.highLevel: isSet(inputs, source)
        case Mode.fallingEdge, Mode.lowLevel: !isSet(inputs, source)
        default: false
        }
    }

    private func setInput(_ source: Int, _ level: Bool) {
        let before = rectified(source)
        let word = source / 32
        inputs[word] = level ? inputs[word] | APLIC.bit(source) : inputs[word] & ~APLIC.bit(source)
        if sourceConfig[source] & APLIC.delegated != 0 { child?.setInput(source, level) }
        let after = rectified(source)
        guard before != after else { return }
        if after {
            pending[word] |= APLIC.bit(source)
        } else if isLevel(source) {
            pending[word] &= ~APLIC.bit(source)
        }
        update()
    }

    /// Writes sourcecfg.
    func configure(_ source: Int, _ value: UInt32) {
        guard isOwn(source) else { return }
        var new = value & 7
        if value & APLIC.delegated != 0 {
            // The one child has the number 0.
            new = child != nil && value & 0x3ff == 0 ? APLIC.delegated : 0
        } else if new == 2 || new == 3 {
            new = Mode.inactive
        }
        let wasDelegated = sourceConfig[source] & APLIC.delegated != 0
        sourceConfig[source] = new
        let level = isSet(inputs, source)
        if new & APLIC.delegated != 0 {
            child?.setInput(source, level)
        } else if wasDelegated {
            child?.forget(source)
        }
        let word = source / 32
        if mode(source) == Mode.inactive {
            pending[word] &= ~APLIC.bit(source)
            enabled[word] &= ~APLIC.bit(source)
            // Then its target is zero too (4.5.16).
            targets[source] = 0
        } else if rectified(source) {
            pending[word] |= APLIC.bit(source)
        } else if isLevel(source) {
            pending[word] &= ~APLIC.bit(source)
        }
        if mode(source) != Mode.inactive && targets[source] == 0 { setTarget(source, 0) }
    }

    /// The parent has taken a source back.
    private func forget(_ source: Int) {
        let word = source / 32
        sourceConfig[source] = 0
        targets[source] = 0
        for path in [\APLIC.pending, \APLIC.enabled, \APLIC.inputs] as [ReferenceWritableKeyPath<APLIC, [UInt32]>] {
            self[keyPath: path][word] &= ~APLIC.bit(source)
        }
        update()
    }

    /// Software sets or clears a pending bit (4.7).
    func setPending(_ source: Int, _ value: Bool) {
        guard mode(source) != Mode.inactive else { return }
        if isLevel(source) {
            // By wires the bit is the input; by messages it can be set only
            // while the input is.
            guard sendsMessages, !value || rectified(source) else { return }
        }
        let word = source / 32
        pending[word] = value ? pending[word] | APLIC.bit(source) : pending[word] & ~APLIC.bit(source)
    }

    func setEnabled(_ source: Int, _ value: Bool) {
        guard mode(source) != Mode.inactive else { return }
        let word = source / 32
        enabled[word] = value ? enabled[word] | APLIC.bit(source) : enabled[word] & ~APLIC.bit(source)
    }

    /// Writes target: hart, and priority or message.
    func setTarget(_ source: Int, _ value: UInt32) {
        guard mode(source) != Mode.inactive else { return }
        let hart = value & 0xfffc_0000
        if sendsMessages {
            targets[source] = hart | value & 0x7ff
        } else {
            // A priority of 0 is not allowed.
            targets[source] = hart | max(1, value & 0xff)
        }
    }

    // MARK: Delivery

    /// Brings what goes to the harts up to date.
    func update() {
        switch delivery {
        case .messages: if isEnabled { forward() }
        case .wires(let output):
            for hart in 0..<hartCount {
                let level = isEnabled && idcs[hart].delivers && (idcs[hart].forced || top(hart) != 0)
                guard level != outputs[hart] else { continue }
                outputs[hart] = level
                output(hart, level)
            }
        }
    }

    /// Sends the messages of all that is pending and enabled.
    private func forward() {
        for word in 0..<APLIC.words {
            // A message may come back as a pending bit: each is looked at once.
            var ready = pending[word] & enabled[word]
            while ready != 0 {
                let source = word * 32 + ready.trailingZeroBitCount
                ready &= ready - 1
                pending[word] &= ~APLIC.bit(source)
                send(hart: targets[source] >> 18, identity: targets[source] & 0x7ff)
            }
        }
    }

    /// Sends one message to a hart's interrupt file (4.9.1).
    func send(hart: UInt32, identity: UInt32) {
        guard case .messages(let store) = delivery else { return }
        let addresses = (parent ?? self).messageAddress
        let low = parent == nil ? addresses.machineLow : addresses.supervisorLow
        let high = parent == nil ? addresses.machineHigh : addresses.supervisorHigh
        // The fields for harts and groups are the machine level's for both;
        // where a hart's files start is each level's own.
        let groupShift = UInt64(addresses.machineHigh >> 24 & 0x1f)
        let groupWidth = UInt64(addresses.machineHigh >> 16 & 7)
        let hartWidth = UInt64(addresses.machineHigh >> 12 & 15)
        let hartShift = UInt64(high >> 20 & 7)
        let group = UInt64(hart) >> hartWidth & (1 << groupWidth - 1)
        let index = UInt64(hart) & (1 << hartWidth - 1)
        let page = UInt64(low) | UInt64(high & 0xfff) << 32 | group << (groupShift + 12) | index << hartShift
        store(page << 12, identity)
    }

    /// The most urgent interrupt of a hart, as topi has it; 0 for none.
    func top(_ hart: Int) -> UInt32 {
        var best: UInt32 = 0
        var bestPriority = UInt32.max
        for word in 0..<APLIC.words {
            var ready = pending[word] & enabled[word]
            while ready != 0 {
                let source = word * 32 + ready.trailingZeroBitCount
                ready &= ready - 1
                let target = targets[source]
                let priority = target & 0xff
                guard Int(target >> 18) == hart, priority < bestPriority else { continue }
                bestPriority = priority
                best = UInt32(source) << 16 | priority
            }
        }
        let threshold = idcs[hart].threshold
        return threshold == 0 || bestPriority < threshold ? best : 0
    }

    /// claimi: the top interrupt is being handled.
    func claim(_ hart: Int) -> UInt32 {
        let top = top(hart)
        if top == 0 {
            idcs[hart].forced = false
        } else {
            let source = Int(top >> 16)
            if !isLevel(source) { pending[source / 32] &= ~APLIC.bit(source) }
        }
        update()
        return top
    }

    // MARK: Device

    /// Gives the child every source and says where the supervisor level's files
    /// are: what firmware does, for a machine without.
    public func delegateAll(messagesTo address: UInt64) {
        for source in 1...APLIC.maxSource { configure(source, APLIC.delegated) }
        let page = address >> 12
        messageAddress.supervisorLow = UInt32(truncatingIfNeeded: page)
        messageAddress.supervisorHigh = UInt32(truncatingIfNeeded: page >> 32)
        // Harts are numbered within one group.
        messageAddress.machineHigh = 4 << 12
        isEnabled = true
        update()
    }

    /// Called after a reset, by boards without firmware.
    public var afterReset: (() -> Void)?

    public func reset() {
        isEnabled = false
        for source in 0...APLIC.maxSource {
            sourceConfig[source] = 0
            targets[source] = 0
        }
        for word in 0..<APLIC.words {
            pending[word] = 0
            enabled[word] = 0
            // The root's inputs are wires; the child's come with delegation.
            if parent != nil { inputs[word] = 0 }
        }
        messageAddress = MessageAddresses()
        generated = 0
        for hart in idcs.indices { idcs[hart] = IDC() }
        update()
        afterReset?()
    }

    public func save(to writer: inout StateWriter) {
        writer.put("enabled-domain", isEnabled)
        writer.put("messages", sendsMessages)
        for (name, words) in [
            ("inputs", inputs), ("sources", sourceConfig), ("targets", targets), ("pending", pending),
            ("enabled", enabled),
        ] {
            writer.put(name, words.map(UInt64.init))
        }
        let addresses = messageAddress
        writer.put(
            "message-addresses",
            [addresses.machineLow, addresses.machineHigh, addresses.supervisorLow, addresses.supervisorHigh].map(
                UInt64.init))
        writer.put("genmsi", UInt64(generated))
        writer.put("idcs", idcs.flatMap { [$0.delivers ? 1 : 0, $0.forced ? 1 : 0, UInt64($0.threshold)] })
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        func words(_ name: String, _ count: Int) throws(VMMError) -> [UInt32] {
            var result: [UInt32] = []
            for value in try reader.array(name, count: count...count) {
                guard let word = UInt32(exactly: value) else {
                    throw VMMError("field '\(name)' of section '\(reader.section)' is out of range")
                }
                result.append(word)
            }
            return result
        }
        let newEnabled = try reader.bool("enabled-domain")
        guard try reader.bool("messages") == sendsMessages else {
            throw VMMError(
                "section '\(reader.section)' delivers interrupts otherwise",
                hint: "Start with the same -machine aia= as before.")
        }
        let newInputs = try words("inputs", APLIC.words)
        let newSources = try words("sources", APLIC.maxSource + 1)
        let newTargets = try words("targets", APLIC.maxSource + 1)
        let newPending = try words("pending", APLIC.words)
        let newEnables = try words("enabled", APLIC.words)
        let addresses = try words("message-addresses", 4)
        let newGenerated = try reader.uint32("genmsi")
        let newIDCs = try words("idcs", 3 * hartCount)
        try reader.finish()
        // Source 0 and those above the last do not exist.
        let none: UInt32 = ~0 << UInt32(APLIC.maxSource % 32 + 1)
        let noBits = [newInputs, newPending, newEnables].allSatisfy {
            $0[0] & 1 == 0 && $0[APLIC.words - 1] & none == 0
        }
        guard noBits, newSources[0] == 0, newTargets[0] == 0,
            newSources.allSatisfy({ $0 <= 7 && $0 != 2 && $0 != 3 || $0 == APLIC.delegated && child != nil }),
            newIDCs.indices.allSatisfy({ newIDCs[$0] <= ($0 % 3 == 2 ? 0xff : 1) })
        else { throw VMMError("section '\(reader.section)' has a source that does not exist, or an invalid register") }
        return { [self] in
            isEnabled = newEnabled
            inputs = newInputs
            sourceConfig = newSources
            targets = newTargets
            pending = newPending
            enabled = newEnables
            messageAddress = MessageAddresses(
                machineLow: addresses[0], machineHigh: addresses[1], supervisorLow: addresses[2],
                supervisorHigh: addresses[3])
            generated = newGenerated
            for hart in 0..<hartCount {
                idcs[hart] = IDC(
                    delivers: newIDCs[3 * hart] == 1, forced: newIDCs[3 * hart + 1] == 1,
                    threshold: newIDCs[3 * hart + 2])
            }
            guard case .wires(let output) = delivery else { return }
            update()
            // Whatever the harts have loaded, they agree with this.
            for hart in 0..<hartCount { output(hart, outputs[hart]) }
        }
    }
}
