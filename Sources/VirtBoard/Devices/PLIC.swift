import BatonRuntime

/// The platform-level interrupt controller (RISC-V PLIC specification 1.0.0,
/// as SiFive's): level-triggered sources, priorities 0 to 7.
public final class PLIC: MMIODevice, Device {
    public let stateName = "plic"
    /// Bytes of its registers.
    public static let size: UInt64 = 0x60_0000
    /// The highest source id; source 0 does not exist.
    public static let maxSource = 95
    private static let words = 3
    private static let maxPriority: UInt8 = 7

    private let contextCount: Int
    /// Tells a context's hart of its external interrupt.
    private let output: (_ context: Int, _ level: Bool) -> Void

    private var priority = [UInt8](repeating: 0, count: PLIC.maxSource + 1)
    private var levels = [UInt32](repeating: 0, count: PLIC.words)
    private var pending = [UInt32](repeating: 0, count: PLIC.words)
    /// Claimed and not completed: the gateway lets nothing through.
    private var claimed = [UInt32](repeating: 0, count: PLIC.words)
    /// `words` words a context.
    private var enabled: [UInt32]
    private var threshold: [UInt8]
    private var outputs: [Bool]

    /// - Parameters:
    ///   - contextCount: at most 15872; M and S of each hart in turn.
    ///   - output: called when a context's interrupt changes.
    public init(contextCount: Int, output: @escaping (_ context: Int, _ level: Bool) -> Void) {
        precondition(contextCount > 0 && contextCount <= 0x400)
        self.contextCount = contextCount
        self.output = output
        enabled = Array(repeating: 0, count: PLIC.words * contextCount)
        threshold = Array(repeating: 0, count: contextCount)
        outputs = Array(repeating: false, count: contextCount)
    }

    /// The wire of a source, 1 to `maxSource`.
    public func line(_ source: Int) -> InterruptLine {
        precondition((1...PLIC.maxSource).contains(source))
        return InterruptLine { [unowned self] level in setLevel(source, level) }
    }

    private func setLevel(_ source: Int, _ level: Bool) {
        let word = source / 32
        let bit = UInt32(1) << UInt32(source % 32)
        guard (levels[word] & bit != 0) != level else { return }
        if level {
            levels[word] |= bit
            if claimed[word] & bit == 0 { pending[word] |= bit }
        } else {
            // What the gateway has forwarded stays pending until it is claimed.
            levels[word] &= ~bit
        }
        update()
    }

    // MARK: Contexts

    /// The source that a claim by `context` gets, and its priority; 0 when none.
    private func best(_ context: Int) -> (source: Int, priority: UInt8) {
        var result = (source: 0, priority: UInt8(0))
        for word in 0..<PLIC.words {
            var bits = pending[word] & enabled[context * PLIC.words + word]
            while bits != 0 {
                let source = word * 32 + bits.trailingZeroBitCount
                bits &= bits - 1
                if priority[source] > result.priority { result = (source, priority[source]) }
            }
        }
        return result
    }

    private func update() {
        for context in 0..<contextCount {
            let level = best(context).priority > threshold[context]
            guard level != outputs[context] else { continue }
            outputs[context] = level
            output(context, level)
        }
    }

    private func claim(_ context: Int) -> Int {
        // The threshold masks the interrupt, not the claim (specification, 9).
        let source = best(context).source
        guard source != 0 else { return 0 }
        let bit = UInt32(1) << UInt32(source % 32)
        pending[source / 32] &= ~bit
        claimed[source / 32] |= bit
        update()
        return source
    }

    private func complete(_ context: Int, _ source: UInt32) {
        guard source >= 1, source <= UInt32(PLIC.maxSource) else {
            return Log.guestError("plic: completion of source \(source), which does not exist")
        }
        let word = Int(source) / 32
        let bit = UInt32(1) << (source % 32)
        // A completion of what is not enabled is ignored (specification, 10).
        guard enabled[context * PLIC.words + word] & bit != 0 else { return }
        claimed[word] &= ~bit
        if levels[word] & bit != 0 { pending[word] |= bit }
        update()
    }

    // MARK: Registers

    private static let pendingBase: UInt64 = 0x1000
    private static let enableBase: UInt64 = 0x2000
    private static let enableStride: UInt64 = 0x80
    private static let contextBase: UInt64 = 0x20_0000
    private static let contextStride: UInt64 = 0x1000

    private enum Target {
        case priority(Int), pending(Int), enable(Int), threshold(Int), claim(Int), none
    }

    private func target(_ offset: UInt64) -> Target {
        if offset < PLIC.pendingBase {
            let source = Int(offset / 4)
            return source <= PLIC.maxSource ? .priority(source) : .none
        }
        if offset < PLIC.enableBase {
            let word = Int((offset - PLIC.pendingBase) / 4)
            return word < PLIC.words ? .pending(word) : .none
        }
        if offset < PLIC.contextBase {
            let context = Int((offset - PLIC.enableBase) / PLIC.enableStride)
            let word = Int((offset - PLIC.enableBase) % PLIC.enableStride / 4)
            return context < contextCount && word < PLIC.words ? .enable(context * PLIC.words + word) : .none
        }
        let context = Int((offset - PLIC.contextBase) / PLIC.contextStride)
        guard context < contextCount else { return .none }
        switch (offset - PLIC.contextBase) % PLIC.contextStride {
        case 0: return .threshold(context)
        case 4: return .claim(context)
        default: return .none
        }
    }

    public func accepts(offset: UInt64, width: Int) -> Bool { width == 4 && offset % 4 == 0 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        switch target(offset) {
        case .priority(let source): return UInt64(priority[source])
        case .pending(let word): return UInt64(pending[word])
        case .enable(let index): return UInt64(enabled[index])
        case .threshold(let context): return UInt64(threshold[context])
        case .claim(let context): return UInt64(claim(context))
        case .none:
            Log.guestError("plic: read of the register at \(Hex(offset))")
            return 0
        }
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        let value = UInt32(truncatingIfNeeded: value)
        switch target(offset) {
        case .priority(let source):
            guard source > 0 else { return }
            priority[source] = UInt8(truncatingIfNeeded: value) & PLIC.maxPriority
            update()
        case .enable(let index):
            // Source 0 cannot be enabled.
            enabled[index] = index % PLIC.words == 0 ? value & ~1 : value
            update()
        case .threshold(let context):
            threshold[context] = UInt8(truncatingIfNeeded: value) & PLIC.maxPriority
            update()
        case .claim(let context): complete(context, value)
        case .pending, .none: Log.guestError("plic: write of the register at \(Hex(offset))")
        }
    }

    // MARK: Device

    public func reset() {
        for index in priority.indices { priority[index] = 0 }
        for word in 0..<PLIC.words {
            // Devices that are reset after this lower their lines themselves.
            pending[word] = levels[word]
            claimed[word] = 0
        }
        for index in enabled.indices { enabled[index] = 0 }
        for index in threshold.indices { threshold[index] = 0 }
        update()
    }

    public func save(to writer: inout StateWriter) {
        writer.put("priority", bytes: priority)
        writer.put("levels", levels.map(UInt64.init))
        writer.put("pending", pending.map(UInt64.init))
        writer.put("claimed", claimed.map(UInt64.init))
        writer.put("enabled", enabled.map(UInt64.init))
        writer.put("threshold", bytes: threshold)
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let newPriority = try reader.bytes("priority", count: priority.count...priority.count)
        let newThreshold = try reader.bytes("threshold", count: contextCount...contextCount)
        guard newPriority.allSatisfy({ $0 <= PLIC.maxPriority }), newThreshold.allSatisfy({ $0 <= PLIC.maxPriority })
        else { throw VMMError("section '\(reader.section)' has a priority above \(PLIC.maxPriority)") }
        func words(_ name: String, _ count: Int) throws(VMMError) -> [UInt32] {
            var result: [UInt32] = []
            for (index, word) in try reader.array(name, count: count...count).enumerated() {
                guard let word = UInt32(exactly: word), index % PLIC.words != 0 || word & 1 == 0 else {
                    throw VMMError("field '\(name)' of section '\(reader.section)' has a source that does not exist")
                }
                result.append(word)
            }
            return result
        }
        let newLevels = try words("levels", PLIC.words)
        let newPending = try words("pending", PLIC.words)
        let newClaimed = try words("claimed", PLIC.words)
        let newEnabled = try words("enabled", PLIC.words * contextCount)
        try reader.finish()
        return { [self] in
            priority = newPriority
            threshold = newThreshold
            levels = newLevels
            pending = newPending
            claimed = newClaimed
            enabled = newEnabled
            update()
            // Whatever the harts have loaded, they agree with this.
            for context in 0..<contextCount { output(context, outputs[context]) }
        }
    }
}
